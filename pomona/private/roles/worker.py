"""A worker: a process that sees one request, answers it and is gone.

It is forked from a process that has seen none: the tokenizer, the template and the endpoints are there already, so
nothing has to be read, and nothing of another request can be. What it is told, and what it says, is sealed; of the
model it has the tokenizer alone. No core dumps, and no debugger of the same user.

python -m pomona.private.roles.worker FD
"""

import asyncio
import contextlib
import dataclasses
import functools
import gc
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from pomona.api.app import build_app
from pomona.api.counters import Counters
from pomona.api.keys import Keys
from pomona.api.model import tokenizer_of
from pomona.api.service import Service
from pomona.api.template import Template, read_template
from pomona.core.machine import hide_memory
from pomona.data.tokenizer import load_tokenizer
from pomona.private.roles import between
from pomona.private.roles.asgi import respond
from pomona.private.roles.rehearsal import rehearse
from pomona.private.sealing.binary_http import decode_request
from pomona.private.sealing.envelope import AnswerSealer, NodeKey, open_request
from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.mlkem import MlKemKey
from pomona.serve.grammar import Grammars
from pomona.serve.link import Link
from pomona.serve.messages import framed, size_of

CPU_SECONDS = 120


class KeyGone(Exception):
    """The TPM does not let the node's key be used any more."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is there before any request."""

    order: between.Prepare
    service: Service
    app: Starlette
    mlkem: MlKemKey


@dataclasses.dataclass
class TheirKey:
    """The half of the node's key that is in the TPM, asked over the connection."""

    public_bytes: bytes
    connection: socket.socket

    def diffie_hellman(self, peer: bytes) -> bytes:
        """The x coordinate, 32 bytes.

        Raises:
            KeyGone: the TPM refused.
        """
        self.connection.sendall(framed(between.DiffieHellman(peer)))
        found = between.receive(self.connection)
        if not isinstance(found, between.Secret) or not found.shared:
            raise KeyGone
        return found.shared


def prepare(order: between.Prepare) -> Prepared:
    """Reads what requests share."""
    tokenizer = load_tokenizer(Path(order.model)) if order.mock else tokenizer_of(Path(order.model))[0]
    link = Link(order.context, lambda _: None)
    service = Service(
        name=order.name,
        adapters=tuple(order.adapters),
        tokenizer=tokenizer,
        link=link,
        template=read_template(Path(order.template), tuple(order.stops)) if order.template else Template(),
        keys=Keys(),
        counters=Counters(link),
        grammars=Grammars(tokenizer),
        most_waiting=order.most_waiting,
        created=0,
    )
    return Prepared(order, service, build_app(service), MlKemKey.from_seed(order.mlkem_seed))


def work(prepared: Prepared, connection: socket.socket) -> None:
    """Opens a request, answers it, and returns when all is said."""
    order = prepared.order
    answer = functools.partial(_answer, prepared)
    with asyncio.Runner() as runner:
        if not select.select([connection], [], [], 0)[0]:  # nobody waits for it yet
            runner.run(rehearse(answer, order.name, order.context, prepared.mlkem))
        asked = between.receive(connection)
        if not isinstance(asked, between.Request):
            return
        key = NodeKey(order.identity, TheirKey(order.public_point, connection), prepared.mlkem)
        try:
            plaintext, sealer = open_request(key, asked.envelope)
        except SealingError:
            outcome = "unsealed"
        except KeyGone:
            outcome = "key-gone"
        else:
            outcome = runner.run(answer(asked, plaintext, sealer, connection))
    with contextlib.suppress(OSError):
        connection.setblocking(True)
        connection.sendall(framed(between.Ended(outcome)))


async def _answer(
    prepared: Prepared, asked: between.Request, plaintext: bytes, sealer: AnswerSealer, connection: socket.socket
) -> str:
    """How it ended, one of `OUTCOMES`."""
    reader, writer = await asyncio.open_unix_connection(sock=connection.dup())
    link = Link(prepared.order.context, lambda order: writer.write(framed(order)))
    link.ready, link.elsewhere = asked.ready, asked.in_flight
    prepared.service.link = link
    gone = asyncio.Event()

    async def listen() -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                link.bring(between.to_worker(await reader.readexactly(size_of(await reader.readexactly(4)))))
        gone.set()
        link.lose("nobody waits")

    async def say(content: bytes, final: bool) -> None:
        writer.write(framed(between.Piece(sealer.chunk(content, final))))
        await writer.drain()

    listening = asyncio.create_task(listen())
    try:
        writer.write(framed(between.Piece(sealer.head())))
        try:
            request = decode_request(plaintext)
        except SealingError:
            return "unreadable"
        status = await respond(prepared.app, request, say, gone)
        return "answered" if status < 400 else "failed"
    except ConnectionError:
        return "lost"
    finally:
        listening.cancel()
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            writer.close()


def main() -> None:
    """Forks a worker for each connection that comes, until the node goes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    hide_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches all; the node decides
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers: they vanish
    order = between.receive(control)
    if not isinstance(order, between.Prepare):
        return
    prepared = prepare(order)
    control.sendall(b"+")
    gc.freeze()
    while True:
        sign, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not sign:
            return
        if os.fork() == 0:
            _be_worker(prepared, control, descriptors[0])
        os.close(descriptors[0])


def _be_worker(prepared: Prepared, control: socket.socket, descriptor: int) -> Any:
    control.close()
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):  # what a library prints could quote what was asked
        os.dup2(nothing, standard)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    try:
        work(prepared, socket.socket(fileno=descriptor))
    except BaseException:
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()

"""The server's life: start the engine, listen, answer until somebody ends it, finish what was begun."""

import asyncio
import contextlib
import dataclasses
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from pomona.api.app import build_app
from pomona.api.counters import Counters
from pomona.api.keys import Keys
from pomona.api.service import Service
from pomona.api.template import Template
from pomona.core.errors import UserError
from pomona.data.tokenizer import Tokenizer
from pomona.serve.grammar import Grammars
from pomona.serve.messages import Start
from pomona.serve.remote import Remote

DRAIN_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Listening:
    """What is served, where, to whom."""

    start: Start
    name: str
    tokenizer: Tokenizer
    template: Template
    keys: Keys
    host: str = "127.0.0.1"
    port: int = 8000
    most_waiting: int = 64


def run_server(
    listening: Listening, say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)
) -> None:
    """Serves until SIGINT or SIGTERM; then finishes what was begun, for a minute at most.

    Raises:
        UserError: the model cannot be served, or the address is taken.
    """
    asyncio.run(_serve(listening, say))


async def _serve(listening: Listening, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    sock = _bound(listening.host, listening.port)
    remote = Remote(listening.start)
    service = Service(
        name=listening.name,
        adapters=tuple(listening.start.adapters),
        tokenizer=listening.tokenizer,
        link=remote,
        template=listening.template,
        keys=listening.keys,
        counters=Counters(remote),
        grammars=Grammars(listening.tokenizer),
        most_waiting=listening.most_waiting,
        created=int(time.time()),
    )
    try:
        with sock:
            ready = await remote.start()
            host, port = sock.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            say(f"{', '.join(service.models())} at {address}, ready after {time.monotonic() - began:.1f} s")
            say(f"  {ready.slots} slots of {ready.context} tokens, {ready.memory_bytes / 1e9:.2f} GB, {ready.device}")
            say(f"  a chat in the browser: {address}/")
            say(f"  {_curl(address, listening)}")
            await _Server(build_app(service), service).serve([sock])
    finally:
        await remote.stop()


class _Server(uvicorn.Server):
    """Uvicorn, which tells the service when it begins to stop."""

    def __init__(self, app, service: Service) -> None:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN_SECONDS, lifespan="off"
        )
        super().__init__(config)
        self.service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's own, but without the same signal once more at the end: who asks for an end gets 0."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.draining = True
        super().handle_exit(sig, frame)


def _bound(host: str, port: int) -> socket.socket:
    sock = None
    try:
        if not 0 <= port < 1 << 16:
            raise OverflowError(f"there is no port {port}")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
        return sock
    except (OSError, OverflowError) as error:
        if sock is not None:
            sock.close()
        raise UserError(
            f"{host}:{port} cannot be listened at: {error}.",
            "an address of this machine, and a port of 0 to 65535 that nobody has.",
            "--port 0 for any that is free",
        ) from error


def _curl(address: str, listening: Listening) -> str:
    key = ' -H "Authorization: Bearer $KEY"' if listening.keys.principals else ""
    body = f'{{"model": "{listening.name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return f"curl {address}/v1/chat/completions{key} -d '{body}'"


def name_of(path: Path) -> str:
    """What a model is called where nothing else is said."""
    return path.stem if path.is_file() else path.resolve().name

"""The engine's own process: orders come in on a socket, events go out. What breaks here breaks no connection to a user.

python -m pomona.serve.process FD
"""

import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pomona.core.errors import UserError
from pomona.core.machine import hide_memory
from pomona.data.tokenizer import Tokenizer, load_tokenizer
from pomona.serve.backend import Backend
from pomona.serve.engine import Engine
from pomona.serve.grammar import Grammars
from pomona.serve.guess import Guesses, drafter_of
from pomona.serve.messages import Event, Ready, Refused, Start, framed, read_order

STATS_SECONDS = 0.5
GUESSES = 4
"""Guesses for a sequence in one dispatch under JAX, where their number is compiled in."""


def build(start: Start) -> tuple[Backend, Tokenizer]:
    """The backend of a model, and its tokenizer.

    Raises:
        UserError: it cannot be served.
    """
    adapters = {name: Path(path) for name, path in start.adapters.items()}
    sizes: dict[str, Any] = {"slots": start.slots, "context": start.context}
    if start.chunk:
        sizes["chunk"] = start.chunk
    if start.model == "mock":
        from pomona.serve.mock_backend import MockBackend

        options = dict(start.mock)
        tokenizer = load_tokenizer(Path(options.pop("tokenizer")))
        if start.draws:
            sizes["draws"] = start.draws
        return MockBackend(tokenizer.vocab_size, adapters=tuple(adapters), **sizes, **options), tokenizer
    if Path(start.model).is_file():
        from pomona.serve.device_backend import DeviceBackend

        device = DeviceBackend(
            Path(start.model), adapters, threads=start.threads, instruction_set=start.instruction_set, **sizes
        )
        return device, device.tokenizer
    from pomona.serve.jax_backend import JaxBackend

    if start.draws:
        sizes["draws"] = start.draws
    sizes["guesses"] = GUESSES if start.speculate != "none" else 0
    jax = JaxBackend(Path(start.model), start.step, adapters, cache=start.cache, tensor=start.tensor, **sizes)
    return jax, jax.tokenizer


def serve(connection: socket.socket) -> None:
    """Runs an engine until the other end closes."""
    began = time.monotonic()
    start = read_order(connection)
    if start.hidden:
        hide_memory()
    try:
        backend, tokenizer = build(start)
        drafter = drafter_of(start.speculate, tokenizer, start.context)
        backend.warm()
    except UserError as error:
        connection.sendall(framed(Refused(error.what, error.rule, error.fix)))
        return
    ready = Ready(backend.slots, backend.context, backend.device, backend.memory_bytes, time.monotonic() - began)
    connection.sendall(framed(ready))
    out: list[Event] = []
    guesses = Guesses(drafter, backend.slots, backend.guesses) if drafter and backend.guesses else None
    engine = Engine(backend, out.append, Grammars(tokenizer, backend.vocab_size), start.keep_prefixes, guesses)
    _run(engine, out, connection, _orders(connection))


def _orders(connection: socket.socket) -> "queue.SimpleQueue[Any]":
    """What comes in, read by a thread; None at the end."""
    orders: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> bool:
        order = read_order(connection)
        orders.put(order)
        return order is not None

    def listen_on() -> None:
        while listen():  # nothing of an order outlives the call
            pass

    threading.Thread(target=listen_on, daemon=True).start()
    return orders


def _take(engine: Engine, orders: "queue.SimpleQueue[Any]") -> bool:
    """Hands the next order to the engine; whether there was one."""
    order = orders.get()
    if order is not None:
        engine.receive(order)
    return order is not None


def _run(engine: Engine, out: list[Event], connection: socket.socket, orders: "queue.SimpleQueue[Any]") -> None:
    told = -1.0
    while True:
        while engine.idle or not orders.empty():
            if engine.idle and told >= 0:
                _tell(connection, [engine.stats()])
                told = -1.0
            if not _take(engine, orders):
                return
            if engine.idle:  # refused at once
                _tell(connection, out)
        engine.step()
        if time.monotonic() - told > STATS_SECONDS:
            told = time.monotonic()
            out.append(engine.stats())
        _tell(connection, out)


def _tell(connection: socket.socket, events: list[Event]) -> None:
    if events:
        connection.sendall(b"".join(map(framed, events)))
        events.clear()


def main() -> None:
    """Serves on the socket whose number is the argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches all; the server decides
    connection = socket.socket(fileno=int(sys.argv[1]))
    try:
        serve(connection)
    except (BrokenPipeError, ConnectionResetError):  # the server is gone
        pass


if __name__ == "__main__":
    main()

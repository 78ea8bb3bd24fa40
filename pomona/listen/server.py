"""Listening at an address, and serving there until SIGINT or SIGTERM."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from pomona.core.errors import UserError


class Server(uvicorn.Server):
    """Uvicorn without an access log, which says when it begins to stop."""

    def __init__(self, app: Any, stopping: Callable[[], None] = lambda: None, drain_seconds: int = 60) -> None:
        """
        Args:
            app: an ASGI application, which is told of its own start and end if it wants to be.
            stopping: called at the first signal; what was begun has `drain_seconds` to finish.
        """
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=drain_seconds, server_header=False
        )
        super().__init__(config)
        self.stopping = stopping

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
        self.stopping()
        super().handle_exit(sig, frame)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UserError: nobody can, or somebody does.
    """
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


def address_of(sock: socket.socket) -> str:
    """Its address as a client types it."""
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"

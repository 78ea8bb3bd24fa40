"""An answer that goes out as it comes: server-sent events, ended the moment the client goes away."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from pomona.api.errors import ApiError

T = TypeVar("T")
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"


class Gone(Exception):
    """The client has gone away."""


class Events:
    """The objects of a generator as server-sent events; an error on the way is the last of them."""

    def __init__(self, objects: AsyncGenerator[dict[str, Any], None]) -> None:
        self.objects = objects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        with contextlib.suppress(Gone):
            await while_there(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self.objects) as objects:
            try:
                async for each in objects:
                    await send({"type": "http.response.body", "body": event(each), "more_body": True})
                last = DONE
            except ApiError as error:
                last = event(error.body())
            await send({"type": "http.response.body", "body": last, "more_body": False})


def event(content: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


async def while_there(receive: Receive | Request, work: Awaitable[T]) -> T:
    """The result of some work, which is cancelled when the client goes away.

    Raises:
        Gone: it has.
    """
    listen = receive.receive if isinstance(receive, Request) else receive

    async def gone() -> None:
        while (await listen())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)

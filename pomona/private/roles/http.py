"""HTTP as every role speaks it: bodies up to a size, short answers, work that is done again and again beside."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable

import httpx2
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pomona.api.stream import Gone, while_there

LARGEST_BODY = 4 << 20
"""Bytes of a sealed request at most: a context of a hundred thousand tokens has room in it."""
PASSED_SECONDS = 120.0
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
"""As many answers may be under way as come: by itself httpx2 lets 100 through, and all others wait for these."""
SOON_SECONDS = 1.0
"""How long one may wait for the next byte of an answer."""


async def body(request: Request, largest: int = LARGEST_BODY) -> bytes | None:
    """The body, or None where it is larger than that, or whoever sends it goes away."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > largest:
                return None
            parts.append(part)
    except ClientDisconnect:
        return None
    return b"".join(parts)


def plain(status: int, text: str) -> Response:
    """An answer of one line."""
    return Response(text + "\n", status, {"cache-control": "no-store"}, "text/plain; charset=utf-8")


async def health(request: Request) -> Response:
    """Of a role that works as soon as it listens."""
    return plain(200, "ok")


@contextlib.asynccontextmanager
async def every(seconds: float, do: Callable[[], Awaitable[bool]]) -> AsyncGenerator[None, None]:
    """Does something at once and then again and again, as long as the block runs: sooner where it says that it is not
    done yet, or fails.

    What fails is said on standard error, by its kind and its own words, and tried again: it is never about a request.
    """

    async def repeat() -> None:
        said = ""
        while True:
            done = False
            try:
                done = await do()
                said = ""
            except Exception as error:
                if (text := f"{type(error).__name__}: {error}") != said:
                    print(text, file=sys.stderr, flush=True)
                said = text
            await asyncio.sleep(seconds if done else min(seconds, SOON_SECONDS))

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Cut(Exception):
    """An answer cannot go on; who listens is to notice."""


class Stream(Response):
    """Pieces as they come. Where they end in `Cut` the connection is cut in the middle of the answer, so that nobody
    takes what came for all of it; where the listener goes away, they are closed.
    """

    def __init__(self, pieces: AsyncGenerator[bytes, None], media_type: str) -> None:
        super().__init__(headers={"cache-control": "no-store"}, media_type=media_type)
        del self.headers["content-length"]
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with contextlib.suppress(Gone, Cut):
            await while_there(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self.pieces) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

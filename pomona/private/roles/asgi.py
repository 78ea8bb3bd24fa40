"""An application called without a server: a Binary HTTP request goes in, the pieces of a Binary HTTP answer come
out."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from pomona.private.sealing.binary_http import Request, encode_content, encode_end, encode_response_head

Say = Callable[[bytes, bool], Awaitable[None]]
"""Bytes of the answer, and whether they are the last."""


async def respond(app: Any, request: Request, say: Say, gone: asyncio.Event) -> int:
    """Runs a request through an ASGI application.

    Args:
        say: takes the answer, of indeterminate length (RFC 9292, section 3.2), as it comes.
        gone: set when nobody listens any more.

    Returns:
        The status.
    """
    status, asked = 0, [request.content]

    async def receive() -> dict[str, Any]:
        if asked:
            return {"type": "http.request", "body": asked.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            await say(encode_response_head(status, message.get("headers", ())), False)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        pieces = (encode_content(body) if body else b"") + (b"" if more else encode_end())
        if pieces:
            await say(pieces, not more)

    await app(_scope(request), receive, send)
    return status


def _scope(request: Request) -> dict[str, Any]:
    path, _, query = request.path.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method.decode("ascii", "replace"),
        "scheme": "https",
        "path": unquote(path.decode("ascii", "replace")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": list(request.headers),
        "client": None,
        "server": None,
    }

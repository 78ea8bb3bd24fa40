"""OpenAI's interface on this machine, for any tool, in front of the private cloud.

What a tool sends is sealed here; nothing of it leaves this machine otherwise. Of its headers only the type of the
content goes on: a tool's name, version or key would tell its user apart.
"""

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pomona.private.client.asking import Asker, NoSuchModel, Refused, releases
from pomona.private.client.buying import OutOfTokens
from pomona.private.client.oblivious import Answer, BrokenOff
from pomona.private.client.reading import Unreachable
from pomona.private.sealing import binary_http
from pomona.private.tokens.errors import TokenError
from pomona.private.transparency.errors import TransparencyError

LARGEST_BODY = 2 << 20
AUTHORITY = b"node"
PASSED_ON = (b"content-type", b"retry-after")
SEALED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


class _Named(msgspec.Struct):
    model: str = ""


def request_of(path: str, content: bytes) -> binary_http.Request:
    """What a node is asked: the same for every client and tool, but for the path and the content."""
    headers = ((b"content-type", b"application/json"),)
    return binary_http.Request(b"POST", b"https", AUTHORITY, path.encode(), headers, content)


def model_of(content: bytes) -> str:
    """The model that a request names, without its adapter; which nodes are drawn depends on it."""
    try:
        return msgspec.json.decode(content, type=_Named).model.partition(":")[0]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ""


def build_proxy(asker: Asker) -> Starlette:
    """The application; it closes the asker at its end."""

    async def sealed(request: Request) -> Response:
        content = bytearray()
        try:
            async for piece in request.stream():
                content += piece
                if len(content) > LARGEST_BODY:
                    return _error(413, f"The body is larger than {LARGEST_BODY} bytes.", "body_too_large")
        except ClientDisconnect:
            return _error(400, "The body ends too soon.", "invalid_body")  # nobody hears it
        try:
            async with contextlib.AsyncExitStack() as stack:
                asked = asker.ask(request_of(request.url.path, bytes(content)), model_of(bytes(content)))
                answer = await stack.enter_async_context(asked)
                told = [(name, value) for name, value in answer.headers if name in PASSED_ON]
                headers = {name.decode(): value.decode("latin-1") for name, value in told}
                if not headers.get("content-type", "").startswith("text/event-stream"):
                    return Response(await answer.whole(), answer.status, headers)
                return StreamingResponse(_events(answer, stack.pop_all()), answer.status, headers)
        except NoSuchModel as error:
            return _error(404, str(error), "model_not_found")
        except Refused as error:
            return _error(error.status if error.status in (413, 429) else 503, f"{error}.", "refused")
        except OutOfTokens as error:
            return _error(429, str(error), "out_of_tokens")
        except (Unreachable, BrokenOff, TransparencyError, TokenError) as error:
            return _error(503, f"{type(error).__name__}: {error}", "private_cloud_unavailable")

    async def models(request: Request) -> Response:
        try:
            found = releases(await asker.known())
        except (Unreachable, TransparencyError) as error:
            return _error(503, f"{type(error).__name__}: {error}", "private_cloud_unavailable")
        names = {leaf.name for leaf in found} | {f"{leaf.name}:{each}" for leaf in found for each in leaf.adapters}
        each = [
            {"id": name, "object": "model", "created": int(time.time()), "owned_by": "pomona"} for name in sorted(names)
        ]
        return _json(200, {"object": "list", "data": each})

    async def health(request: Request) -> Response:
        return _json(200, {"status": "ok"})

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncGenerator[None, None]:
        async with asker:
            yield

    routes = [Route(path, sealed, methods=["POST"]) for path in SEALED_PATHS]
    return Starlette(routes=[*routes, Route("/v1/models", models), Route("/health", health)], lifespan=life)


async def _events(answer: Answer, stack: contextlib.AsyncExitStack) -> AsyncGenerator[bytes, None]:
    """Events as they come. Where the answer breaks off the last of them is an error, and none says that it is done."""
    async with stack:
        try:
            async for piece in answer.pieces:
                yield piece
        except BrokenOff as error:
            content = msgspec.json.encode(_problem(f"BrokenOff: {error}", "broken_off", 503))
            yield b"\n\ndata: " + content + b"\n\n"  # whatever of an event came before


def _error(status: int, message: str, code: str) -> Response:
    return _json(status, _problem(message, code, status))


def _problem(message: str, code: str, status: int) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _json(status: int, content: Any) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")

"""The endpoints."""

import asyncio
import base64
import functools
import hashlib
import re
import traceback
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from pomona.api.chat import Chat
from pomona.api.completions import Completion, embeddings
from pomona.api.errors import ApiError
from pomona.api.keys import Principal
from pomona.api.service import Service
from pomona.api.stream import Events, Gone, while_there
from pomona.api.tokens import detokenize, tokenize, tokenizer_info
from pomona.api.wire import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
    read,
)

LARGEST_BODY = 16 << 20
Answer = Callable[[Request, Principal], Awaitable[Any]]


def build_app(service: Service) -> Starlette:
    """The server of one model."""

    async def completions(request: Request, who: Principal) -> Any:
        asked = read(CompletionRequest, await _body(request))
        completion = await asyncio.to_thread(Completion, service, asked, who)  # a long text holds up nobody else
        return Events(completion.stream()) if asked.stream else await while_there(request, completion.whole())

    async def chat(request: Request, who: Principal) -> Any:
        asked = read(ChatRequest, await _body(request))
        conversation = await asyncio.to_thread(Chat, service, asked, who)  # nor does a large schema
        return Events(conversation.stream()) if asked.stream else await while_there(request, conversation.whole())

    async def embed(request: Request, who: Principal) -> Any:
        asked = read(EmbeddingRequest, await _body(request))
        return await while_there(request, embeddings(service, asked, who))

    async def tokens_of(request: Request, who: Principal) -> Any:
        return await asyncio.to_thread(tokenize, service, read(TokenizeRequest, await _body(request)))

    async def text_of(request: Request, who: Principal) -> Any:
        return await asyncio.to_thread(detokenize, service, read(DetokenizeRequest, await _body(request)))

    async def info(request: Request, who: Principal) -> Any:
        return tokenizer_info(service)

    async def models(request: Request, who: Principal) -> Any:
        return {"object": "list", "data": [_model(service, name) for name in service.models()]}

    async def model(request: Request, who: Principal) -> Any:
        service.adapter(request.path_params["name"])
        return _model(service, request.path_params["name"])

    async def health(request: Request) -> Response:
        up = service.link.ready is not None and not service.draining
        status = {"status": "ok" if up else "stopping" if service.draining else "engine restarting"}
        return _json(status, 200 if up else 503)

    async def metrics(request: Request) -> Response:
        return Response(service.counters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(request: Request) -> Response:
        text, policy = chat_page()
        return HTMLResponse(text, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"})

    def guarded(path: str, answer: Answer, method: str) -> Route:
        return Route(path, _guarded(service, path, answer), methods=[method])

    routes = [
        Route("/", page),
        Route("/health", health),
        Route("/metrics", metrics),
        guarded("/v1/models", models, "GET"),
        guarded("/v1/models/{name:path}", model, "GET"),
        guarded("/v1/completions", completions, "POST"),
        guarded("/v1/chat/completions", chat, "POST"),
        guarded("/v1/embeddings", embed, "POST"),
        guarded("/tokenizer_info", info, "GET"),
        guarded("/tokenize", tokens_of, "POST"),
        guarded("/detokenize", text_of, "POST"),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _no_such})
    app.router.redirect_slashes = False
    return app


@functools.cache
def chat_page() -> tuple[str, str]:
    """The page, and the policy by which a browser runs nothing but what is in it."""
    text = resources.files("pomona.api").joinpath("page.html").read_text(encoding="utf-8")

    def digest(tag: str) -> str:
        found = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert found, f"the page has one <{tag}>"
        return f"'sha256-{base64.b64encode(hashlib.sha256(found.group(1).encode()).digest()).decode()}'"

    parts = (f"script-src {digest('script')}", f"style-src {digest('style')}", "connect-src 'self'", "img-src data:")
    return text, "; ".join(
        ("default-src 'none'", *parts, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'")
    )


def _guarded(service: Service, path: str, answer: Answer) -> Callable[[Request], Awaitable[Any]]:
    """An endpoint that lets in who may, and says in OpenAI's form what goes wrong."""

    async def endpoint(request: Request) -> Any:
        status = 200
        try:
            found = await answer(request, service.keys.who(request.headers.get("authorization")))
            return found if isinstance(found, Events) else _json(found)
        except ApiError as error:
            status = error.status
            headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
            return _json(error.body(), status, headers)
        except (Gone, ClientDisconnect):
            status = 499
            return Response(status_code=499)
        except Exception:
            status = 500
            traceback.print_exc()  # where, never what was asked
            return _json(ApiError(500, "The server has made a mistake.", "internal_error").body(), 500)
        finally:
            service.counters.requests.labels(path, status).inc()

    return endpoint


async def _body(request: Request) -> bytes:
    """The body, up to the largest."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST_BODY:
            raise ApiError(413, f"The body is larger than {LARGEST_BODY} bytes.", "body_too_large")
        parts.append(part)
    return b"".join(parts)


def _model(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "pomona",
        "max_model_len": service.context,
    }


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}."
    return _json(ApiError(error.status_code, message, "no_such_endpoint").body(), error.status_code)

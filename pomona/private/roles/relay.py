"""The relay: knows who asks from where, and nothing of what. It passes sealed bytes to one gateway and the answer back.

Nothing of the connection goes on: neither address nor any header but the media type. It keeps no log. Its operator
has to be another than the gateway's: together they would know who asked what size of question when.
"""

import contextlib
from collections.abc import AsyncGenerator

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pomona.private.roles.http import LARGEST_BODY, LIMITS, PASSED_SECONDS, Cut, Stream, body, health, plain
from pomona.private.sealing.oblivious_http import CHUNKED_REQUEST, CHUNKED_RESPONSE


def build_relay(gateway: str) -> Starlette:
    """An application that relays to this gateway alone, whatever is asked (RFC 9458, section 6.1).

    Args:
        gateway: the address of its oblivious resource.
    """
    client = httpx2.AsyncClient(timeout=httpx2.Timeout(PASSED_SECONDS, connect=5.0), limits=LIMITS)

    async def relay(request: Request) -> Response:
        if request.headers.get("content-type") != CHUNKED_REQUEST:
            return plain(415, f"the media type is {CHUNKED_REQUEST}")
        sealed = await body(request)
        if sealed is None:
            return plain(413, f"more than {LARGEST_BODY} bytes")
        passed = client.build_request("POST", gateway, content=sealed, headers={"content-type": CHUNKED_REQUEST})
        passed.headers.pop("user-agent", None)
        try:
            answer = await client.send(passed, stream=True)
        except httpx2.HTTPError:
            return plain(502, "the gateway does not answer")
        if answer.status_code != 200 or answer.headers.get("content-type") != CHUNKED_RESPONSE:
            status = answer.status_code
            await answer.aclose()
            return plain(status if 400 <= status < 600 else 502, "the gateway refuses")
        return Stream(_pieces(answer), CHUNKED_RESPONSE)

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncGenerator[None, None]:
        async with client:
            yield

    return Starlette(
        routes=[Route("/", relay, methods=["POST"]), Route("/health", health, methods=["GET"])], lifespan=life
    )


async def _pieces(answer: httpx2.Response) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx2.HTTPError as error:
        raise Cut from error
    finally:
        await answer.aclose()

"""One HTTP request through the relay to the gateway, which learns what it says and not who asks (RFC 9458, chunked)."""

import base64
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import httpx2

from pomona.private.attestation.case import Known
from pomona.private.client.reading import Unreachable
from pomona.private.sealing.binary_http import Request, Response, encode
from pomona.private.sealing.binary_http_reader import ResponseReader
from pomona.private.sealing.chunked_oblivious_http import open_chunked_response, seal_chunked_request
from pomona.private.sealing.chunks import HeadedOpener
from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.oblivious_http import CHUNKED_REQUEST, CHUNKED_RESPONSE, KeyConfig, parse_key_configs
from pomona.private.transparency.leaves import GatewayKey

LARGEST_WHOLE = 32 << 20


class BrokenOff(Exception):
    """An answer ended before its end: what came of it is genuine, and not all."""


class Answer:
    """A response as it comes: its head at once, its content when it is asked for."""

    def __init__(self, head: Response, pieces: AsyncIterator[bytes]) -> None:
        self.status, self.headers, self.pieces = head.status, head.headers, pieces

    async def whole(self) -> bytes:
        """All of the content.

        Raises:
            BrokenOff: it ended too soon, or there are more than 32 MiB of it.
        """
        found = bytearray()
        async for piece in self.pieces:
            found += piece
            if len(found) > LARGEST_WHOLE:
                raise BrokenOff(f"the answer has more than {LARGEST_WHOLE} bytes")
        return bytes(found)


def gateway_key(known: Known, gateway: str) -> KeyConfig:
    """The gateway's key, as the log has it: the newest that is good now.

    Raises:
        Unreachable: there is none.
    """
    leaves = [leaf for leaf in known.leaves if isinstance(leaf, GatewayKey) and leaf.gateway == gateway]
    try:
        configs = parse_key_configs(base64.b64decode(leaves[-1].key_config)) if leaves else ()
    except SealingError:
        configs = ()
    if not configs:
        raise Unreachable(f"the log has no key of the gateway {gateway} that is good now")
    return configs[0]


@contextlib.asynccontextmanager
async def through(
    client: httpx2.AsyncClient, relay: str, key: KeyConfig, request: Request
) -> AsyncGenerator[Answer, None]:
    """The gateway's answer to a request.

    Raises:
        Unreachable: relay or gateway does not answer, or not as it should.
    """
    head, sealer, exchange = seal_chunked_request(key)
    sealed = head + sealer.chunk(encode(request), final=True)
    asked = client.stream("POST", relay, content=sealed, headers={"content-type": CHUNKED_REQUEST})
    async with contextlib.AsyncExitStack() as stack:
        try:
            answer = await stack.enter_async_context(asked)
        except httpx2.HTTPError as error:
            raise Unreachable(f"the relay at {relay} does not answer: {type(error).__name__}") from error
        if answer.status_code != 200 or answer.headers.get("content-type") != CHUNKED_RESPONSE:
            raise Unreachable(f"the relay answers {answer.status_code}")
        parts = _parts(answer, open_chunked_response(exchange), ResponseReader())
        try:
            first = await anext(parts, None)
        except BrokenOff as error:
            raise Unreachable("the answer ended before it began") from error
        if not isinstance(first, Response):
            raise Unreachable("the gateway's answer has no head")
        yield Answer(first, _content(parts))


async def _parts(answer: httpx2.Response, opener: HeadedOpener, reader: ResponseReader) -> AsyncGenerator[object, None]:
    """What the response is made of, in its order.

    Raises:
        BrokenOff: it is truncated, or not what the gateway sealed.
    """
    try:
        async for sealed in answer.aiter_raw():
            for plain in opener.feed(sealed):
                for part in reader.feed(plain):
                    yield part
        for part in [*reader.feed(opener.close()), *reader.close()]:
            yield part
    except (SealingError, httpx2.HTTPError) as error:
        raise BrokenOff(f"the answer through the gateway broke off: {error}") from error


async def _content(parts: AsyncGenerator[object, None]) -> AsyncGenerator[bytes, None]:
    async for part in parts:
        if isinstance(part, bytes):
            yield part

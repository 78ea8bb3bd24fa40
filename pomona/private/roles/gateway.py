"""The gateway: knows how large a request is, for which nodes and that it is paid for; neither who asks nor what.

It opens the outer envelope, takes the token, and hands the inner one to a node among those that the client drew. It
also keeps the directory of nodes in the log, which is the same for everybody.
"""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import httpx2
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from pomona.private.attestation.case import Known
from pomona.private.client.asking import BUNDLES, ENVELOPE, MOST_BUNDLES, REQUESTS
from pomona.private.client.buying import challenge_of, key_of
from pomona.private.client.reading import read_log
from pomona.private.client.trust import LogTrust
from pomona.private.roles.fleet import Fleet, Serving
from pomona.private.roles.gateway_keys import drop_gateway_key, prepare_gateway_keys, published_config
from pomona.private.roles.http import LARGEST_BODY, LIMITS, PASSED_SECONDS, Cut, Stream, body, every, plain
from pomona.private.roles.publishing import Publisher, publish
from pomona.private.sealing.binary_http import (
    Request,
    decode_request,
    encode_content,
    encode_end,
    encode_response_head,
)
from pomona.private.sealing.chunked_oblivious_http import ChunkedRequestOpener, seal_chunked_response
from pomona.private.sealing.envelope import node_identities
from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.oblivious_http import CHUNKED_REQUEST, CHUNKED_RESPONSE, Exchange, GatewayKey
from pomona.private.tokens.auth_scheme import OfferedChallenge, decode_authorization, encode_www_authenticate
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.privacy_pass import IssuerKey, Token, verify_token
from pomona.private.tokens.spent import Reservation, SpentTokens
from pomona.private.transparency import leaves

KEYS_SECONDS, NODES_SECONDS = 900.0, 10.0
Pieces = AsyncGenerator[bytes, None]


@dataclasses.dataclass(frozen=True)
class GatewaySettings:
    """What a gateway is started with."""

    folder: Path
    name: str
    """As challenges and the log name it."""
    issuer_name: str
    nodes: tuple[str, ...]
    """Addresses of the nodes."""
    log: LogTrust
    publisher: Publisher


@dataclasses.dataclass(frozen=True)
class Reply:
    """What goes back inside: a short text, or pieces of a node's answer."""

    status: int
    content: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    pieces: Pieces | None = None


class Gateway:
    """One gateway, for one event loop."""

    def __init__(self, settings: GatewaySettings, clock: Callable[[], float] = time.time) -> None:
        self.settings, self.clock = settings, clock
        self.challenge = challenge_of(settings.issuer_name, settings.name)
        self.spent = SpentTokens(settings.folder / "spent.sqlite")
        self.client = httpx2.AsyncClient(timeout=httpx2.Timeout(PASSED_SECONDS, connect=5.0), limits=LIMITS)
        self.fleet = Fleet(settings.nodes, settings.publisher, self.client)
        self.keys: dict[int, GatewayKey] = {}
        self.known: Known | None = None

    async def answer(self, request: HttpRequest) -> Response:
        """Opens, serves, seals."""
        if request.headers.get("content-type") != CHUNKED_REQUEST:
            return plain(415, f"the media type is {CHUNKED_REQUEST}")
        sealed = await body(request)
        if sealed is None:
            return plain(413, f"more than {LARGEST_BODY} bytes")
        opener = ChunkedRequestOpener(tuple(self.keys.values()))
        try:
            inner = decode_request(b"".join(opener.feed(sealed)) + opener.close())
        except SealingError:
            return plain(400, "the request does not open under a key of this gateway")
        assert opener.exchange is not None
        return Stream(_sealed(opener.exchange, await self._reply(inner)), CHUNKED_RESPONSE)

    async def _reply(self, inner: Request) -> Reply:
        if inner.method != b"POST" or inner.authority.decode("ascii", "replace") != self.settings.name:
            return _text(404, "this gateway has no such resource")
        if inner.path == BUNDLES:
            return self._bundles(inner.content)
        if inner.path == REQUESTS and (b"content-type", ENVELOPE) in inner.headers:
            return await self._request(inner)
        return _text(404, "this gateway has no such resource")

    def _bundles(self, content: bytes) -> Reply:
        try:
            wanted = msgspec.json.decode(content, type=list[str])
            identities = [bytes.fromhex(each) for each in wanted[:MOST_BUNDLES]]
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return _text(400, "what is wanted is a list of nodes' identities in hexadecimal")
        found = [self.fleet.bundles[each] for each in identities if each in self.fleet.bundles]
        return Reply(200, json.dumps([base64.b64encode(each).decode() for each in found]).encode())

    async def _request(self, inner: Request) -> Reply:
        now = self.clock()
        try:
            header = next((value for name, value in inner.headers if name == b"authorization"), b"")
            token = decode_authorization(header.decode("latin-1"))
            key = self._issuer_key(token)
            await asyncio.to_thread(verify_token, token, self.challenge, key, now)
            identities = node_identities(inner.content)
        except TokenError as error:
            offered = encode_www_authenticate(OfferedChallenge(self.challenge, None)).encode()
            return _text(401, str(error), ((b"www-authenticate", offered),))
        except SealingError as error:
            return _text(400, str(error))
        digest = hashlib.sha256(inner.content).digest()
        got = await asyncio.to_thread(
            self.spent.reserve, token.nonce, token.token_key_id, digest, float(key.expires), now
        )
        if got is Reservation.REFUSED:
            return _text(401, "the token was spent")
        if got is Reservation.HELD:
            return _text(503, "the same request is under way")
        serving = await self.fleet.serve(identities, inner.content)
        if serving is None:
            await asyncio.to_thread(self.spent.release, token.nonce, token.token_key_id, digest)
            return _text(503, "none of these nodes takes a request now")
        pieces = self._spending(serving, token, digest)
        await anext(pieces)  # it has begun now, and so will do what it does at its end, whatever comes in between
        return Reply(200, headers=(), pieces=pieces)

    async def _spending(self, serving: Serving, token: Token, digest: bytes) -> Pieces:
        """A node's answer. The token is spent at its end, or where the client goes away; where the node fails in the
        middle, the same request may come again.
        """
        broken = False
        try:
            yield b""
            async for piece in serving.pieces():
                yield piece
        except Cut:
            broken = True
            raise
        finally:
            end = self.spent.release if broken else self.spent.settle
            end(token.nonce, token.token_key_id, digest)
            await serving.close()

    def _issuer_key(self, token: Token) -> IssuerKey:
        """The key of a token, if the log has it.

        Raises:
            TokenError: it does not.
        """
        for leaf in self.known.leaves if self.known else ():
            if not isinstance(leaf, leaves.IssuerKey) or leaf.issuer != self.settings.issuer_name:
                continue
            if leaf.token_key_id == token.token_key_id.hex():
                return key_of(leaf)
        raise TokenError("The token is of a key that is not in the log, or no longer good.")

    async def health(self, request: HttpRequest) -> Response:
        """Whether requests can be opened, and there are nodes for them."""
        up = bool(self.keys) and any(node.up for node in self.fleet.nodes.values())
        return plain(200 if up else 503, "ok" if up else "not ready")

    async def renew(self) -> bool:
        """Makes today's key and publishes it; a key that is not in the log is not used by anybody."""
        await asyncio.to_thread(self._renew)
        return True

    def _renew(self) -> None:
        now = self.clock()
        keys = prepare_gateway_keys(self.settings.folder / "keys", now)
        known = read_log(self.settings.log, self.settings.folder / "log", now)
        for day, key in keys.items():
            if known.is_revoked(published_config(self.settings.name, day, key)):
                drop_gateway_key(self.settings.folder / "keys", day)
        keys = prepare_gateway_keys(self.settings.folder / "keys", now)
        wanted = [published_config(self.settings.name, day, key) for day, key in keys.items()]
        if missing := [leaf for leaf in wanted if leaf not in known.written]:
            publish(self.settings.publisher, missing)
        self.keys = keys

    async def look(self) -> bool:
        """Reads the log, asks the nodes who they are, and publishes the directory where it has changed; whether all
        nodes are there."""
        now = self.clock()
        known = await asyncio.to_thread(read_log, self.settings.log, self.settings.folder / "log", now)
        self.known = known
        await self.fleet.look(known)
        return len({node.address for node in self.fleet.nodes.values()}) == len(self.settings.nodes)


def build_gateway(settings: GatewaySettings, clock: Callable[[], float] = time.time) -> Starlette:
    """The application of a gateway."""
    gateway = Gateway(settings, clock)

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncGenerator[None, None]:
        async with gateway.client, every(KEYS_SECONDS, gateway.renew), every(NODES_SECONDS, gateway.look):
            yield
        gateway.spent.close()

    return Starlette(
        routes=[Route("/", gateway.answer, methods=["POST"]), Route("/health", gateway.health, methods=["GET"])],
        lifespan=life,
    )


async def _sealed(exchange: Exchange, reply: Reply) -> Pieces:
    """A reply as a chunked response (draft-ietf-ohai-chunked-ohttp)."""
    nonce, sealer = seal_chunked_response(exchange)
    yield nonce + sealer.chunk(encode_response_head(reply.status, reply.headers))
    if reply.pieces is None:
        yield sealer.chunk(encode_content(reply.content) + encode_end(), final=True)
        return
    async with contextlib.aclosing(reply.pieces) as pieces:
        async for piece in pieces:
            yield sealer.chunk(encode_content(piece))
    yield sealer.chunk(encode_end(), final=True)


def _text(status: int, text: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    return Reply(status, text.encode(), headers)

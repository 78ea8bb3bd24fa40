"""The gateway's hold on nodes and tokens where something hangs, or somebody goes away."""

import asyncio
import contextlib
import hashlib
import sqlite3
import time
import types

import httpx2
import pytest
from inside import serving
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pomona.private.roles import fleet
from pomona.private.roles import gateway as gateway_module
from pomona.private.roles.fleet import Fleet, Node
from pomona.private.roles.gateway import Gateway, GatewaySettings, _sealed
from pomona.private.roles.http import Cut
from pomona.private.roles.publishing import Publisher
from pomona.private.roles.relay import build_relay
from pomona.private.sealing.binary_http import Request
from pomona.private.sealing.chunked_oblivious_http import seal_chunked_request
from pomona.private.sealing.kem import X25519, generate_key
from pomona.private.sealing.oblivious_http import CHUNKED_REQUEST, CHUNKED_RESPONSE, KeyConfig
from pomona.private.tokens.privacy_pass import Token
from pomona.private.tokens.spent import Reservation

TOKEN = Token(b"n" * 32, b"c" * 32, b"k" * 32, b"a" * 256)


def test_a_node_that_hangs_is_passed_over(monkeypatch):
    monkeypatch.setattr(fleet, "TAKEN_SECONDS", 0.3)

    async def hang(reader, writer):
        await reader.read(-1)
        writer.close()

    async def served():
        silent = await asyncio.start_server(hang, "127.0.0.1", 0)
        good = Starlette(routes=[Route("/requests", lambda request: Response(b"answer"), methods=["POST"])])
        async with serving(good) as address, httpx2.AsyncClient(timeout=30) as client:
            hanging = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
            nodes = {b"1": Node(hanging, b"", b""), b"2": Node(address, b"", b"")}
            found = Fleet((hanging, address), Publisher("", ""), client)
            found.nodes = nodes
            began = time.monotonic()
            for _ in range(2):
                serving_node = await found.serve([b"1", b"2"], b"envelope")
                assert serving_node.node is nodes[b"2"] and nodes[b"2"].under_way == 1
                assert b"".join([piece async for piece in serving_node.pieces()]) == b"answer"
                await serving_node.close()
                assert not nodes[b"1"].up  # it is asked last from now on
            assert time.monotonic() - began < 60
            assert [each.under_way for each in nodes.values()] == [0, 0]
            assert await found.serve([b"1"], b"envelope") is None
            assert await found.serve([b"3"], b"envelope") is None
        silent.close()

    asyncio.run(served())


class Answering:
    """A node's answer; `fails` after so many pieces."""

    def __init__(self, fails=False):
        self.fails, self.closed = fails, 0

    async def pieces(self):
        yield b"1"
        if self.fails:
            raise Cut
        yield b"2"

    async def close(self):
        self.closed += 1


def served_by(node):
    async def serve(identities, envelope):
        return node

    return serve


@pytest.mark.parametrize(
    ("read", "fails", "outcome"),
    [
        (0, False, "spent"),  # who goes away before the first byte has still had a node work for it
        (1, False, "spent"),
        (9, False, "spent"),
        (9, True, "again"),
    ],
)
def test_a_token_ends_as_the_answer_does(tmp_path, monkeypatch, read, fails, outcome):
    for name, found in (("decode_authorization", TOKEN), ("verify_token", None), ("node_identities", ())):
        monkeypatch.setattr(gateway_module, name, lambda *_, found=found: found)

    async def answered():
        gateway = Gateway(GatewaySettings(tmp_path, "g", "i", (), None, None), lambda: 1000.0)
        key, nonce, node = TOKEN.token_key_id, TOKEN.nonce, Answering(fails)
        monkeypatch.setattr(gateway, "_issuer_key", lambda token: types.SimpleNamespace(expires=9e9))
        monkeypatch.setattr(gateway.fleet, "serve", served_by(node))
        reply = await gateway._request(Request(b"POST", b"https", b"g", b"/requests", (), b"envelope"))
        assert reply.status == 200
        private = generate_key(X25519)
        config = KeyConfig(1, X25519.id, private.public_bytes, ((1, 1),))
        sealed = _sealed(seal_chunked_request(config)[2], reply)
        with contextlib.suppress(Cut, StopAsyncIteration):
            for _ in range(read):
                await anext(sealed)
        await sealed.aclose()
        del sealed, reply
        for _ in range(20):  # what was never begun is ended by the loop
            await asyncio.sleep(0.01)
        assert node.closed == 1
        again = gateway.spent.reserve(nonce, key, hashlib.sha256(b"envelope").digest(), 9e9, 1000.0)
        assert again is (Reservation.RESERVED if outcome == "again" else Reservation.REFUSED)
        assert gateway.spent.reserve(nonce, key, b"e" * 32, 9e9, 1000.0) is Reservation.REFUSED
        gateway.spent.close()
        await gateway.client.aclose()

    asyncio.run(answered())
    with contextlib.closing(sqlite3.connect(tmp_path / "spent.sqlite")) as connection:
        assert connection.execute("SELECT COUNT(*) FROM spent").fetchone() == (1,)


def test_more_answers_at_once_than_a_client_has_connections_by_itself():
    """Who reads slowly, or not at all, holds up nobody else."""

    async def passed():
        end = asyncio.Event()

        async def slowly():
            yield b"begun"
            await end.wait()
            yield b"done"

        async def gateway(request):
            return StreamingResponse(slowly(), media_type=CHUNKED_RESPONSE)

        app = Starlette(routes=[Route("/", gateway, methods=["POST"])])
        limits = httpx2.Limits(max_connections=None)
        async with (
            serving(app) as address,
            serving(build_relay(address + "/")) as relay,
            httpx2.AsyncClient(timeout=10, limits=limits) as client,
            contextlib.AsyncExitStack() as stack,
        ):
            headers = {"content-type": CHUNKED_REQUEST}
            for _ in range(130):
                answer = await stack.enter_async_context(client.stream("POST", relay, content=b"x", headers=headers))
                assert answer.status_code == 200
            end.set()
            assert (await answer.aread()) == b"begundone"

    asyncio.run(passed())

"""A node by itself: what it refuses, how much it takes, and what of it may die."""

import asyncio
import contextlib

import httpx2
import psutil
import pytest
from inside import Clock, Inside, bundles, question, quick, recipient, until

from pomona.core.run_folder import RunFolder
from pomona.private.client.asking import ENVELOPE
from pomona.private.sealing.answer import AnswerOpener
from pomona.private.sealing.binary_http import Request, encode
from pomona.private.sealing.binary_http_reader import ResponseReader
from pomona.private.sealing.envelope import seal_request
from pomona.private.sealing.padding import padded

HEADERS = {"content-type": ENVELOPE.decode()}


@contextlib.asynccontextmanager
async def one_node(folder, device_file, **mock):
    """A node, its address, and its only bundle."""
    cloud = Inside(folder, Clock())
    try:
        await cloud.start_log()
        await cloud.publish("operator", cloud.release())
        cloud.node = await cloud.start_node(RunFolder(device_file.with_suffix("")).tokenizer, **mock)
        async with httpx2.AsyncClient(timeout=30, base_url=cloud.addresses["node"]) as client:
            await until(lambda: healthy(client))
            yield cloud, client
    finally:
        await cloud.close()


async def healthy(client):
    return (await client.get("/health")).status_code == 200


def sealed(bundle, request=None):
    return seal_request([recipient(bundle)], padded(encode(request or question())))


async def answered(client, bundle, request=None):
    """The status inside."""
    envelope, keys = sealed(bundle, request)
    answer = await client.post("/requests", content=envelope, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    opener, reader = AnswerOpener(keys), ResponseReader()
    parts = [part for plain in opener.feed(answer.content) for part in reader.feed(plain)]
    opener.close()
    return parts[0].status


def wrong(caplog):
    """What the server has said that is more than a word in passing."""
    return {record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")}


def test_what_a_node_refuses(device_file, tmp_path, monkeypatch, capfd, caplog):
    quick(monkeypatch)

    async def refused():
        async with one_node(tmp_path, device_file) as (cloud, client):
            (bundle,) = await bundles(client, cloud.addresses["node"])
            post = lambda content, headers=HEADERS: client.post("/requests", content=content, headers=headers)
            assert await answered(client, bundle) == 200
            envelope, _ = sealed(bundle)
            assert (await post(envelope, {"content-type": "text/plain"})).status_code == 415
            for size in (0, 9, 41, 1242, len(envelope) - 1):
                assert (await post(sealed(bundle)[0][:size])).status_code == 400
            for place in (60, 200, 1200, 1300, len(envelope) - 1):  # enc, ciphertext, wrapped key, chunks
                damaged = bytearray(sealed(bundle)[0])
                damaged[place] ^= 1
                assert (await post(bytes(damaged))).status_code == 400, place
            assert (await post(envelope)).status_code == 200
            assert (await post(envelope)).status_code == 409
            longer = envelope + b"x"  # the same header: it is the same request, whatever follows
            assert (await post(longer)).status_code == 409
            other = bytearray(envelope)
            other[12] ^= 1  # its identity
            assert (await post(bytes(other))).status_code == 410
            with pytest.raises(httpx2.RemoteProtocolError):  # nothing that can be read: the answer is cut
                await post(seal_request([recipient(bundle)], padded(b"\7nothing"))[0])
            content = question().content
            headers = ((b"content-type", b"application/json"),)
            inner = lambda method, path, authority: Request(method, b"https", authority, path, headers, content)
            for method, path, status in (
                (b"POST", b"/v1/nothing", 404),
                (b"POST", b"/../../etc/passwd", 404),
                (b"GET", b"/v1/completions", 405),
                (b"DELETE", b"/v1/completions", 405),
                (b"POST", b"/metrics", 404),
                (b"POST", b"/requests", 404),
            ):
                found = await answered(client, bundle, inner(method, path, b"node"))
                assert found in (status, 404, 405), (method, path, found)
            assert await answered(client, bundle, inner(b"POST", b"/v1/completions", b"elsewhere")) == 200
            assert (await client.get("/machine")).status_code == 404
            assert (await client.post("/credential", content=b"{}")).status_code == 404
            assert await answered(client, bundle) == 200

    asyncio.run(refused())
    assert capfd.readouterr().err == ""
    assert wrong(caplog) <= {"ASGI callable returned without completing response."}


def test_more_than_a_node_takes(device_file, tmp_path, monkeypatch):
    """Two are computed and two wait; who comes then is refused, and nobody is dropped for it."""
    quick(monkeypatch)

    async def crowded():
        async with one_node(tmp_path, device_file, step_seconds=0.05) as (cloud, client):
            (bundle,) = await bundles(client, cloud.addresses["node"])
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(4):
                    envelope, _ = sealed(bundle, question(200))
                    answer = client.stream("POST", "/requests", content=envelope, headers=HEADERS)
                    assert (await stack.enter_async_context(answer)).status_code == 200
                envelope, _ = sealed(bundle)
                many = [client.post("/requests", content=envelope, headers=HEADERS) for _ in range(20)]
                assert {each.status_code for each in await asyncio.gather(*many)} == {503}
            await until(lambda: free(cloud))  # all four were given up: nothing goes on for them
            assert (await client.post("/requests", content=envelope, headers=HEADERS)).status_code == 200

    async def free(cloud):
        return not cloud.node._busy() and not cloud.node.generations[0].pool.running

    asyncio.run(crowded())


def test_the_process_that_forks_dies(device_file, tmp_path, monkeypatch, capfd, caplog):
    """Its keys are given up with it, and the node goes on with others."""
    quick(monkeypatch)

    async def died():
        async with one_node(tmp_path, device_file) as (cloud, client):
            (bundle,) = await bundles(client, cloud.addresses["node"])
            pool = cloud.node.generations[0].pool
            psutil.Process(pool._process.pid).kill()
            envelopes = [sealed(bundle)[0] for _ in range(6)]
            told = [await client.post("/requests", content=each, headers=HEADERS) for each in envelopes]
            assert {each.status_code for each in told} <= {200, 503, 410}

            async def renewed():
                found = await bundles(client, cloud.addresses["node"])
                return len(found) == 1 and found != [bundle]

            await until(renewed)
            (other,) = await bundles(client, cloud.addresses["node"])
            assert await answered(client, other) == 200

    asyncio.run(died())
    assert "Traceback" not in capfd.readouterr().err and not wrong(caplog)

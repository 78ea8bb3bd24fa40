"""What is wrong on purpose or by accident: every role says so in HTTP, every command in three parts, and all go on."""

import asyncio
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time

import httpx2
import pytest
from cloud import ROOT

from pomona.private.client.asking import ENVELOPE, REQUESTS
from pomona.private.client.buying import ISSUE_PATH, challenge_of, key_of, signing_key
from pomona.private.client.oblivious import gateway_key, through
from pomona.private.client.proxy import request_of
from pomona.private.sealing.binary_http import Request
from pomona.private.sealing.oblivious_http import CHUNKED_REQUEST
from pomona.private.tokens.auth_scheme import encode_authorization
from pomona.private.tokens.batches import BATCH_REQUEST_MEDIA_TYPE
from pomona.private.tokens.issuance import prepare_batch
from pomona.private.tokens.privacy_pass import IssuerKey
from pomona.private.transparency.leaves import IssuerKey as IssuerKeyLeaf

PLACES = {"log": 0, "issuer": 1, "relay": 2, "gateway": 3, "node0": 4, "node1": 5}
ENDPOINTS = [
    ("log", "POST", "/entries", "application/json"),
    ("log", "GET", "/checkpoint", ""),
    ("issuer", "POST", ISSUE_PATH, BATCH_REQUEST_MEDIA_TYPE),
    ("issuer", "GET", "/.well-known/private-token-issuer-directory", ""),
    ("relay", "POST", "/", CHUNKED_REQUEST),
    ("gateway", "POST", "/", CHUNKED_REQUEST),
    ("node0", "POST", "/requests", ENVELOPE.decode()),
    ("node0", "GET", "/bundles", ""),
    ("node0", "POST", "/credential", "application/json"),
    ("node0", "GET", "/metrics", ""),
]
TAKING = [each for each in ENDPOINTS if each[1] == "POST"]
HEADERS = {"issuer": "accounts", "log": "writers"}


def address(cloud, role):
    return f"http://127.0.0.1:{cloud.port + PLACES[role]}"


def headers(cloud, role, media_type):
    found = {"content-type": media_type} if media_type else {}
    if role in HEADERS:  # somebody who may
        found["authorization"] = "Bearer " + (cloud.folder / HEADERS[role]).read_text().split()[1]
    return found


def said(cloud):
    """All that the roles have printed."""
    return {path.name: path.read_text() for path in cloud.folder.glob("*.err")}


@pytest.fixture(autouse=True)
def nothing_else_is_said(cloud):
    """No role prints anything about what came, none dies, and a good question is answered afterwards."""
    before, alive = said(cloud), {name: each.pid for name, each in roles(cloud).items()}
    yield
    assert asyncio.run(asked(cloud))
    assert {name: text.removeprefix(before[name]) for name, text in said(cloud).items()} == dict.fromkeys(before, "")
    assert {name: each.pid for name, each in roles(cloud).items()} == alive


def roles(cloud):
    return {name: cloud.role(name) for name in PLACES}


async def asked(cloud):
    async with cloud.asker("bad") as asker:
        name = (await asker.known()).leaves[0].name
        body = {"model": name, "prompt": "hello", "max_tokens": 2, "temperature": 0}
        async with asker.ask(request_of("/v1/completions", json.dumps(body).encode()), name) as answer:
            return await answer.whole()


@pytest.mark.parametrize(("role", "method", "path", "media_type"), ENDPOINTS)
def test_other_methods(cloud, role, method, path, media_type):
    with httpx2.Client(base_url=address(cloud, role)) as client:
        for other in {"GET", "POST", "PUT", "DELETE", "PATCH"} - {method}:
            assert client.request(other, path).status_code in (404, 405)


@pytest.mark.parametrize("role", PLACES)
def test_other_paths(cloud, role):
    with httpx2.Client(base_url=address(cloud, role)) as client:
        outside = ("/../log.skey", "/tile/0/../../../log.skey", "/.checkpoint")
        for path in ("/nothing", *outside, "/tile/%D9%A3/000", "/%00"):
            for method in ("GET", "POST"):
                assert client.request(method, path).status_code in (404, 405)


@pytest.mark.parametrize(("role", "method", "path", "media_type"), TAKING)
def test_bodies_that_are_none(cloud, role, method, path, media_type):
    deep = b'{"entries":' + b"[" * 100_000
    nested = [b'{"x":' * count for count in (3000, 100_000)]
    bodies = [b"", b"\0", secrets.token_bytes(3000), b"{}", b"[]", b'"', deep, *nested, b"\xff" * 99]
    with httpx2.Client(base_url=address(cloud, role), timeout=30) as client:
        for content in bodies:
            answer = client.post(path, content=content, headers=headers(cloud, role, media_type))
            assert 400 <= answer.status_code < 500, (content[:20], answer.text)
        if role in ("issuer", "relay", "gateway", "node0") and path != "/credential":
            wrong = headers(cloud, role, "text/plain")
            assert client.post(path, content=b"x", headers=wrong).status_code == 415


@pytest.mark.parametrize(("role", "method", "path", "media_type"), TAKING)
def test_bodies_that_are_too_large(cloud, role, method, path, media_type):
    before = cloud.role(role).memory_info().rss

    def chunks():
        for _ in range(80):
            yield bytes(1 << 16)

    with httpx2.Client(base_url=address(cloud, role), timeout=30) as client:
        for content in (bytes(5 << 20), chunks()):
            try:
                answer = client.post(path, content=content, headers=headers(cloud, role, media_type))
                assert answer.status_code in (400, 404, 413)
            except (httpx2.WriteError, httpx2.ReadError, httpx2.RemoteProtocolError):
                pass  # it had enough before all was sent
    assert cloud.role(role).memory_info().rss < before + (40 << 20)


def test_who_goes_away_in_the_middle(cloud):
    for role, _, path, media_type in TAKING:
        place = cloud.port + PLACES[role]
        lines = [f"POST {path} HTTP/1.1", "host: x", "content-length: 100000"]
        lines += [f"{name}: {value}" for name, value in headers(cloud, role, media_type).items()]
        with socket.create_connection(("127.0.0.1", place)) as connection:
            connection.sendall("\r\n".join([*lines, "", "half"]).encode())
            time.sleep(0.1)


def test_two_hundred_at_once(cloud):
    before = {name: each.memory_info().rss for name, each in roles(cloud).items()}

    async def all_of_them():
        limits = httpx2.Limits(max_connections=50)
        async with httpx2.AsyncClient(timeout=60, limits=limits) as client:

            async def one(number):
                role, _, path, media_type = TAKING[number % len(TAKING)]
                given = {"content-type": media_type}
                content = secrets.token_bytes(20_000)
                return (await client.post(address(cloud, role) + path, content=content, headers=given)).status_code

            return await asyncio.gather(*(one(number) for number in range(200)))

    assert {status // 100 for status in asyncio.run(all_of_them())} == {4}
    for name, each in roles(cloud).items():
        assert each.memory_info().rss < before[name] + (60 << 20), name


def test_inner_requests_of_the_gateway(cloud):
    """What is sealed to the gateway is as little to be trusted."""

    async def all_of_them():
        async with cloud.asker("bad") as asker:
            known = await asker.known()
            key, name = gateway_key(known, asker.trust.gateway_name), asker.trust.gateway_name.encode()

            async def status(request):
                async with through(asker._client, asker.trust.relay, key, request) as answer:
                    return answer.status, (await answer.whole()).decode()

            sealed = (b"content-type", ENVELOPE)
            token = encode_authorization(await asker._purse.token(known, asker._client, time.time())).encode()
            paid = (b"authorization", token)
            ask = lambda *given, content=b"", path=REQUESTS, method=b"POST", authority=name: status(
                Request(method, b"https", authority, path, given, content)
            )
            nine = b"\1\0\x10\0\1\0\1\0\x41" + b"\t" + bytes(20_000)
            assert (await ask(sealed, paid, method=b"GET"))[0] == 404
            assert (await ask(sealed, paid, authority=b"other"))[0] == 404
            assert (await ask(sealed, paid, path=b"/other"))[0] == 404
            assert (await ask(paid, path=REQUESTS))[0] == 404
            for content in (b"", b"{", b"[1]", b'["zz"]', b"[" * 100_000, b"\xff"):
                assert (await ask(content=content, path=b"/bundles"))[0] == 400
            assert await ask(content=b'["' + b"00" * 32 + b'"]', path=b"/bundles") == (200, "[]")
            for given in (b"", b"PrivateToken", b"PrivateToken token=", b'PrivateToken token="AAAA"', b"\xff" * 50):
                assert (await ask(sealed, (b"authorization", given)))[0] == 401
            assert (await ask(sealed))[0] == 401
            for content in (b"", b"\1", secrets.token_bytes(3000), nine):
                assert (await ask(sealed, paid, content=content))[0] == 400  # which costs nothing
            nobody = b"\1\0\x10\0\1\0\1\0\x41" + b"\1" + secrets.token_bytes(2000)
            assert await ask(sealed, paid, content=nobody) == (503, "none of these nodes takes a request now")

    asyncio.run(all_of_them())


def test_tokens_of_others(cloud):
    """Of another challenge, and of a key that the log does not have."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    from pomona.private.tokens.batches import decode_batch_request, encode_batch_response
    from pomona.private.tokens.blind_rsa import blind_sign
    from pomona.private.tokens.issuance import finish_batch
    from pomona.private.tokens.privacy_pass import TokenResponse

    def forged(private, challenge):
        now = int(time.time())
        body, batch = prepare_batch(1, challenge, IssuerKey(private.public_key(), now, now + 9999))
        signed = [TokenResponse(blind_sign(private, each.blinded_msg)) for each in decode_batch_request(body)]
        return finish_batch(batch, encode_batch_response(signed))[0]

    async def sent():
        async with cloud.asker("bad") as asker:
            known, trust = await asker.known(), asker.trust
            recipients = (await asker.draw(known)).recipients
            from pomona.private.sealing.envelope import seal_request

            envelope = seal_request(recipients, b"x")[0]
            own = forged(rsa.generate_private_key(65537, 2048), challenge_of(trust.issuer_name, trust.gateway_name))
            elsewhere = challenge_of(trust.issuer_name, "another.gateway")
            key = signing_key(known, trust.issuer_name, time.time())
            body, batch = prepare_batch(1, elsewhere, key)
            given = headers(cloud, "issuer", BATCH_REQUEST_MEDIA_TYPE)
            answer = await asker._client.post(trust.issuer + ISSUE_PATH, content=body, headers=given)
            assert answer.status_code == 200
            found = []
            for token in (own, finish_batch(batch, answer.content)[0]):
                async with asker._send(known, envelope, token) as refused:
                    found.append((refused.status, b"www-authenticate" in dict(refused.headers)))
                    await refused.whole()
            return found

    assert asyncio.run(sent()) == [(401, True), (401, True)]


def test_the_issuer_refuses(cloud):
    async def sent():
        async with cloud.asker("bad") as asker:
            known, trust = await asker.known(), asker.trust
            challenge = challenge_of(trust.issuer_name, trust.gateway_name)
            today = signing_key(known, trust.issuer_name, time.time())
            leaf = [each for each in known.written if isinstance(each, IssuerKeyLeaf)][-1]
            given = headers(cloud, "issuer", BATCH_REQUEST_MEDIA_TYPE)
            unknown = given | {"authorization": "Bearer nobody"}
            post = lambda content, using: asker._client.post(trust.issuer + ISSUE_PATH, content=content, headers=using)
            assert (await post(prepare_batch(1, challenge, today)[0], unknown)).status_code == 401
            early = await post(prepare_batch(1, challenge, key_of(leaf))[0], given)
            assert early.status_code == 400 and "does not sign today" in early.text
            assert (await post(prepare_batch(2, challenge, today)[0][:-3], given)).status_code == 400
            batch = prepare_batch(1000, challenge, today)[0]  # all of a day's, of which some were taken already
            answers = [await post(batch, given) for _ in range(2)]
            assert {each.status_code for each in answers} == {429}
            assert re.match(r"1000 tokens were asked for, and \d+ are left of the 1000", answers[0].text)
            assert answers[0].text == answers[1].text  # neither was counted

    asyncio.run(sent())


def test_writers_of_the_log(cloud):
    lines = {line.split()[0]: line.split()[1] for line in (cloud.folder / "writers").read_text().splitlines()}
    size = lambda: (cloud.folder / "log/public/checkpoint").read_text().splitlines()[1]
    revocation = '{"expires":2,"kind":"revocation","leaf":"' + "00" * 32 + '","not_before":1,"reason":"x"}'
    before = size()
    with httpx2.Client(base_url=address(cloud, "log")) as client:
        write = lambda entries, key: client.post("/entries", json={"entries": entries}, headers={"authorization": key})
        assert write([revocation], "Bearer nobody").status_code == 401
        assert write([revocation], lines["operator"]).status_code == 401
        refused = write([revocation], "Bearer " + lines["gateway"])
        assert refused.status_code == 403 and "may not write revocation" in refused.text
        spaced, deep = revocation.replace(":1", ": 1"), '{"kind":' * 8000
        for entry in ("", "{", "null", '{"kind":"release"}', spaced, "\ud800", deep):
            content = json.dumps({"entries": [revocation, entry]})
            given = {"authorization": "Bearer " + lines["operator"]}
            assert client.post("/entries", content=content, headers=given).status_code == 400, entry[:20]
    assert size() == before


def pomona(*arguments, place=None, **environment):
    line = [sys.executable, "-m", "pomona.cli.main", "private", *map(str, arguments)]
    given = {name: value for name, value in os.environ.items() if not name.startswith("POMONA")}
    given |= {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(line, capture_output=True, text=True, env=given, cwd=place, timeout=60)


def test_what_a_person_types_first(cloud, device_file, tmp_path):
    damaged, empty = tmp_path / "bundle", tmp_path / "folder"
    damaged.write_bytes(b"{" + secrets.token_bytes(99))
    empty.mkdir()
    log = cloud.folder / "log/log.json"
    config = ["--config", cloud.config]
    wrong = {
        "there is no verb 'frobnicate'": ["frobnicate"],
        "private/client.json cannot be read": ["ask", "hello"],
        "there is no model here yet": ["up"],
        f"port {cloud.port} is taken": ["up", device_file, "--port", cloud.port, "--folder", tmp_path / "second"],
        "log.json does not say which log": ["node", device_file],
        "POMONA_LOG_KEY is not set": ["gateway", "--node", "http://127.0.0.1:1", "--log", log],
        "holds no model": ["release", empty, "--log", log, "--dry-run"],
        "KEY is not set": ["enrol", address(cloud, "relay"), "--by", "me", "--any-tpm", "--log", log],
        "who vouches for the TPM?": ["enrol", address(cloud, "relay"), "--by", "me", "--log", log],
        "the log has no machine with '000b12'": ["revoke", "machine", "000b12", "--reason", "stolen", "--log", log],
        "nobody 'x' cannot be taken back": ["revoke", "nobody", "--reason", "stolen", "x", "--log", log],
        "nowhere cannot be read": ["audit", "--bundle", "nowhere", *config],
        "does not exist": ["ask", "hello", "--model", "nobody", *config],
        "nothing.json cannot be read": ["status", "--config", "nothing.json"],
    }
    for part, arguments in wrong.items():
        found = pomona(*arguments, place=tmp_path)
        told = found.stderr
        assert found.returncode == 2 and part in told and "Traceback" not in told, (arguments, found)
        assert told.startswith("pomona: ") and len(told.strip()) < 900, told
    assert "usage: pomona private" in pomona(place=tmp_path).stdout
    found = pomona("audit", "--bundle", damaged, *config, place=tmp_path)
    assert found.returncode == 1 and "FAIL  readable" in found.stdout and not found.stderr

"""What goes wrong on either side of the connection: overload, disconnects, a dead engine, bad bytes, the end."""

import asyncio
import json
import os
import random
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import httpx2
import openai
import pytest
from mock_server import serving

HELLO = {"model": "toy", "prompt": "hello", "max_tokens": 8}


def post(url, body, path="/v1/completions", headers=None):
    """(status, headers, body) of a request with any bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, content, {"content-type": "application/json"} | (headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=30) as found:
            return found.status, found.headers, found.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def metric(url, name):
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    return float(re.search(rf"^pomona_{name} (\S+)$", text, re.MULTILINE).group(1))


def until(condition, seconds=20):
    """Waits for something that has to happen; how long it takes says nothing."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def raw(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def begin(url, **changes):
    """A stream that has begun, as a socket."""
    body = json.dumps({"model": "toy", "prompt": "hello", "max_tokens": 1000, "stream": True} | changes).encode()
    sock = raw(url)
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    assert sock.recv(100).startswith(b"HTTP/1.1 200")
    return sock


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (b"[1]", 400, "invalid_type"),
        (b"null", 400, "invalid_type"),
        (b'{"model": "toy", "prompt": "\xff\xfe"}', 400, "invalid_json"),
        (b'{"model": "toy"}', 400, "missing_required_parameter"),
        (b'{"model": "toy", "prompt": 5}', 400, "invalid_type"),
        (b'{"model": "toy", "prompt": []}', 400, "invalid_value"),
        (b'{"model": "toy", "prompt": [1, "a"]}', 400, "invalid_value"),
        (b'{"model": "toy", "prompt": [400]}', 400, "invalid_value"),
        (b'{"model": "toy", "prompt": [-1]}', 400, "invalid_value"),
        (b'{"model": "toy", "prompt": "a", "max_tokens": 1e400}', 400, None),
        (b'{"model": "toy", "prompt": "a", "seed": 99999999999999999999}', 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"model": "toy", "prompt": "' + b"a" * (17 << 20) + b'"}', 413, "body_too_large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_bytes_get_one_clear_error(server, body, status, code):
    found, _, content = post(server.url, body)
    error = json.loads(content)["error"]
    assert found == status and (code is None or error["code"] == code) and error["message"]


def test_lone_surrogates_and_odd_characters_are_text(server):
    for text in ("\x00\x01", "▁<n>\ue000", "\U0010ffff", "</s><s>"):
        status, _, content = post(server.url, HELLO | {"prompt": text, "echo": True, "max_tokens": 0})
        assert status == 200 and json.loads(content)["choices"][0]["text"] == text
    assert post(server.url, b'{"model": "toy", "prompt": "\\ud800"}')[0] in (200, 400)


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/nothing", 404), ("/v1/completions/", 404), ("/v1/chat/completions", 405)]
)
def test_other_paths_and_methods(server, path, status):
    try:
        urllib.request.urlopen(server.url + path)
    except urllib.error.HTTPError as error:
        with error:
            assert error.code == status and json.loads(error.read())["error"]["message"]


def test_too_many_are_asked_to_come_again():
    with serving(slots=1, waiting=1, context=2048, mock={"step_seconds": 0.02}) as server:
        streams = [begin(server.url), begin(server.url)]
        status, headers, content = post(server.url, HELLO)
        assert status == 429 and int(headers["retry-after"]) >= 1
        assert json.loads(content)["error"]["code"] == "overloaded"
        with pytest.raises(openai.RateLimitError):
            server.client.completions.create(**HELLO, n=2)
        for stream in streams:
            stream.close()
        until(lambda: post(server.url, HELLO)[0] == 200)


def test_whoever_goes_away_frees_the_slot():
    with serving(slots=1, context=4096, mock={"step_seconds": 0.02}) as server:
        for stream in (True, False):
            if stream:
                sock = begin(server.url, max_tokens=4000)
            else:
                body = json.dumps(HELLO | {"max_tokens": 4000}).encode()
                sock = raw(server.url)
                sock.sendall(
                    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
                )
            until(lambda: metric(server.url, "in_flight") == 1)
            sock.close()
            until(lambda: metric(server.url, "in_flight") == 0)
            assert server.client.completions.create(**HELLO).choices[0].text, "there is a slot again"


def test_who_reads_slowly_holds_up_nobody():
    with serving(slots=2, context=4096) as server:
        slow = begin(server.url, max_tokens=4000, n=8)
        assert all(post(server.url, HELLO)[0] == 200 for _ in range(20))
        slow.settimeout(20)
        size = 0
        while part := slow.recv(1 << 20):
            size += len(part)
            if part.endswith(b"0\r\n\r\n"):
                break
        assert size > 100_000
        slow.close()


def test_a_dead_engine_is_started_again_and_what_it_had_gets_an_error():
    with serving(slots=2, context=4096, mock={"step_seconds": 0.01, "crash_on": 399}) as server:
        parts = []
        failed = threading.Event()

        def listen():
            try:
                for part in server.client.completions.create(model="toy", prompt="hello", max_tokens=4000, stream=True):
                    parts.append(part)
            except openai.APIError as error:
                assert "started again" in str(error)
                failed.set()

        thread = threading.Thread(target=listen)
        thread.start()
        until(lambda: len(parts) > 3)
        status, _, content = post(server.url, HELLO | {"prompt": [399]})
        assert status == 503 and json.loads(content)["error"]["code"] == "engine_restarting"
        thread.join(20)
        assert failed.is_set()
        until(lambda: post(server.url, HELLO)[0] == 200)
        assert metric(server.url, "engine_restarts_total") >= 1 and metric(server.url, "up") == 1


def test_the_end_waits_for_what_was_begun():
    with serving(slots=2, context=4096, mock={"step_seconds": 0.01}) as server:
        stream = server.client.completions.create(
            model="toy", prompt="hello", max_tokens=300, stream=True, temperature=0
        )
        parts = [next(iter(stream))]
        server.process.send_signal(signal.SIGTERM)
        parts += list(stream)
        assert parts[-1].choices[0].finish_reason in ("length", "stop")
        assert server.process.wait(20) == 0
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{server.url}/health")


def test_keys_let_in_and_give_priority(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# who may ask\nalice sk-alice 5\nbob sk-bob\n")
    with serving(slots=2, context=512, keys=str(keys)) as server:
        for key in ("", "sk-other", "sk-bo", "sk-bobb", "\u00e9"):
            with pytest.raises((openai.AuthenticationError, openai.OpenAIError, UnicodeEncodeError)):
                server.client.with_options(api_key=key).completions.create(**HELLO)
        assert (
            post(server.url, HELLO)[0] == 401 and post(server.url, HELLO, headers={"authorization": "sk-bob"})[0] == 401
        )
        assert server.client.with_options(api_key="sk-bob").completions.create(**HELLO).choices
        assert server.client.with_options(api_key="sk-alice").models.list().data
        assert urllib.request.urlopen(f"{server.url}/health").status == 200


def test_nothing_that_was_asked_is_in_the_logs():
    with serving(slots=2, context=512, mock={"crash_on": 399}) as server:
        secret = "zanzibar"
        post(server.url, HELLO | {"prompt": secret})
        post(server.url, HELLO | {"prompt": secret, secret: 1})
        post(server.url, b'{"model": "toy", "prompt": "' + secret.encode())
        post(server.url, HELLO | {"prompt": [399], "user": secret})
        metrics = urllib.request.urlopen(f"{server.url}/metrics").read().decode()
        server.process.send_signal(signal.SIGTERM)
        out, errors = server.process.communicate(timeout=20)
        assert secret not in out + errors + metrics


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) * 1024


async def _traffic(url, count, seed):
    """`count` requests of all kinds, thirty-two at a time, of which one in twenty goes away and one is malformed."""
    rng, limit, seen = random.Random(seed), asyncio.Semaphore(32), {}

    async def one(client, number):
        kind, text = rng.random(), "".join(rng.choices("abc \n", k=rng.randint(1, 200)))
        body = {
            "model": rng.choice(["toy", "toy:red"]),
            "prompt": text,
            "max_tokens": rng.randint(1, 40),
            "user": str(number % 5),
        }
        async with limit:
            if kind < 0.05:
                try:
                    await client.post("/v1/completions", json=body | {"max_tokens": 900}, timeout=0.02)
                except httpx2.TimeoutException:
                    return
            elif kind < 0.1:
                bad = rng.choice([b"{", b'{"model": 1}', json.dumps(body | {"odd": 1}).encode(), b"\xff"])
                found = await client.post("/v1/completions", content=bad)
                assert found.status_code == 400, found.text
                return
            elif kind < 0.5:
                async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as found:
                    lines = [line async for line in found.aiter_lines() if line]
                    assert found.status_code == 200 and lines[-1] == "data: [DONE]"
                    return
            else:
                found = await client.post("/v1/completions", json=body)
                seen[found.status_code] = seen.get(found.status_code, 0) + 1

    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        await asyncio.gather(*(one(client, number) for number in range(count)))
    return seen


def test_two_thousand_requests_leave_nothing_behind():
    with serving(slots=8, waiting=64, context=1024) as server:
        asyncio.run(_traffic(server.url, 300, 0))
        until(lambda: metric(server.url, "in_flight") == 0)
        files, memory = open_files(server.process.pid), resident(server.process.pid)
        seen = asyncio.run(_traffic(server.url, int(os.environ.get("POMONA_SOAK", 2000)), 1))
        assert set(seen) == {200}, seen
        until(lambda: metric(server.url, "in_flight") == 0 and metric(server.url, "running") == 0)
        until(lambda: open_files(server.process.pid) <= files + 2)
        assert resident(server.process.pid) - memory < 32 << 20
        assert metric(server.url, "engine_restarts_total") == 0 and metric(server.url, "waiting") == 0

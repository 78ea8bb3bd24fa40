"""What dies in the middle of an answer, or does not answer at all: the client hears of it at once, what came is never
taken for the whole, and no failure costs a second token.

The engines are stopped (SIGSTOP) while an answer is open, so that it is always in its middle when something is killed.
"""

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
import time

import httpx2
import openai
import psutil
import pytest
from cloud import ROOT, free_ports

from pomona.private.attestation.bundle import identity_of
from pomona.private.client import asking
from pomona.private.client.asking import ENVELOPE, Asker, Refused
from pomona.private.client.oblivious import BrokenOff
from pomona.private.client.proxy import request_of
from pomona.private.client.reading import Unreachable
from pomona.private.client.trust import Trust, read_log_trust, write_trust
from pomona.private.roles import up
from pomona.private.roles.publishing import Publisher
from pomona.private.roles.release import measured
from pomona.private.sealing.answer import AnswerOpener
from pomona.private.sealing.binary_http import encode
from pomona.private.sealing.envelope import seal_request
from pomona.private.sealing.padding import padded

SOON = 60.0
"""Seconds after which an answer that broke off counts as one that hangs, on a machine that has other things to do."""


class Roles:
    """The roles as `pomona private up` starts them, without TPMs, each of which may be killed and started again."""

    def __init__(self, folder, model, processes):
        self.folder, self.model, self.processes = folder, model, processes
        self.port = free_ports(6)
        self.name = model.stem
        laptop = up.Laptop(folder, model, {}, 2, self.port)
        keys, account = up._keys(folder), up._account(folder)
        self.start("log")
        ours = measured(self.name, model, {})
        self.image = ours.image
        up._publish_release(laptop, ours, Publisher(self.address(0), keys["operator"]))
        for name in ("issuer", "relay", "gateway", "node0", "node1"):
            self.start(name, wait=False)
        processes.wait(lambda: up._listed(laptop) == 2)
        log = read_log_trust(folder / "log/log.json")
        names = {"issuer_name": up.ISSUER, "gateway_name": up.GATEWAY}
        self.trust = Trust(log, self.address(2) + "/", self.address(1), account, **names, profiles=("laptop",))
        self.config = folder / "client.json"
        write_trust(self.trust, self.config)
        self.asked = 0

    def address(self, place):
        return f"http://127.0.0.1:{self.port + place}"

    def start(self, name, wait=True):
        log = ["--log", f"{self.folder}/log/log.json"]
        folder, names = str(self.folder / name), ["--name", up.GATEWAY, "--issuer-name", up.ISSUER]
        nodes = [f"--node={self.address(place)}" for place in (4, 5)]
        node = [str(self.model), folder, *log, "--slots=2", "--image"]
        accounts = ["--name", up.ISSUER, "--accounts", f"{self.folder}/accounts"]
        arguments, place, sign = {
            "log": (["log", folder, "--origin", up.ORIGIN, "--writers", f"{self.folder}/writers"], 0, "/checkpoint"),
            "issuer": (["issuer", folder, *log, *accounts], 1, "/.well-known/private-token-issuer-directory"),
            "relay": (["relay", self.address(3) + "/"], 2, ""),
            "gateway": (["gateway", folder, *log, *names, *nodes], 3, ""),
            "node0": (["node", *node, getattr(self, "image", "")], 4, "/health"),
            "node1": (["node", *node, getattr(self, "image", "")], 5, "/health"),
        }[name]
        self.processes.start(name, *arguments, place=self.port + place)
        if wait:
            self.processes.wait(lambda: answers(self.address(place) + sign, 200 if sign else 405))

    def role(self, name):
        return psutil.Process(next(process.pid for called, process in self.processes.running if called == name))

    def kill(self, name):
        """Kills the process alone, as the kernel does that runs out of memory."""
        process = next(process for called, process in self.processes.running if called == name)
        self.processes.running.remove((name, process))
        process.kill()
        process.wait()

    def engine(self, name):
        return next(each for each in self.role(name).children() if "pomona.serve.process" in each.cmdline())

    @contextlib.contextmanager
    def stopped_engines(self):
        """The engines of both nodes, which compute nothing; they go on, those that live, at the end."""
        engines = {name: self.engine(name) for name in ("node0", "node1")}
        for each in engines.values():
            each.suspend()
        try:
            yield engines
        finally:
            for each in engines.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.resume()

    def healthy(self):
        """Waits until both nodes answer, and the directory in the log is that of their keys."""
        for place in (4, 5):
            self.processes.wait(lambda place=place: answers(self.address(place) + "/health", 200))
        self.processes.wait(lambda: self.listed() == self.identities())

    def identities(self):
        return {identity_of_bundle for place in (4, 5) for identity_of_bundle in identities_at(self.address(place))}

    def listed(self):
        known = up.read_log(self.trust.log, self.folder / "seen", time.time())
        return {identity.hex() for identity in known.nodes}

    def asker(self, clock=time.time, state="client"):
        return Asker(self.trust, self.folder / state, clock)

    def wallet(self, state="client"):
        with contextlib.closing(sqlite3.connect(self.folder / state / "tokens.sqlite")) as connection:
            return connection.execute("SELECT COUNT(*) FROM tokens").fetchone()[0]

    def spent(self):
        """Tokens that the gateway holds for a request under way; that may come again with the same request alone; that
        are spent."""
        with contextlib.closing(sqlite3.connect(self.folder / "gateway/spent.sqlite")) as connection:
            rows = list(connection.execute("SELECT request_digest IS NULL, held_until FROM spent"))
        held = sum(not settled and until > time.time() for settled, until in rows)
        settled = sum(settled for settled, _ in rows)
        return held, len(rows) - held - settled, settled


def answers(address, status):
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(address, timeout=5).status_code == status
    return False


def identities_at(address):
    return [identity_of(base64.b64decode(each)).hex() for each in httpx2.get(address + "/bundles", timeout=5).json()]


@pytest.fixture(scope="module")
def roles(device_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        with up._Processes(folder) as processes:
            roles = Roles(folder, device_file, processes)
            asked(roles)  # and has tokens
            yield roles
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def chat(roles, stream=True, max_tokens=40):
    turns = [{"role": "user", "content": "hello"}]
    body = {"model": roles.name, "messages": turns, "max_tokens": max_tokens, "temperature": 0, "stream": stream}
    return request_of("/v1/chat/completions", json.dumps(body).encode())


async def whole(asker, roles):
    async with asker.ask(chat(roles), roles.name) as answer:
        content = await answer.whole()
    assert answer.status == 200 and content.endswith(b"data: [DONE]\n\n")


def asked(roles, state="client"):
    """One question, answered."""

    async def ask():
        async with roles.asker(state=state) as asker:
            await whole(asker, roles)

    asyncio.run(ask())


async def broken(roles, monkeypatch, kill):
    """Asks, kills in the middle, and returns the node that had the request and the seconds until it was noticed."""
    openers = []

    class Remembered(AnswerOpener):
        def __init__(self, keys):
            super().__init__(keys)
            openers.append(self)
            self.fed = b""

        def feed(self, data):
            self.fed += data
            return super().feed(data)

    monkeypatch.setattr(asking, "AnswerOpener", Remembered)
    async with roles.asker() as asker:
        held = roles.spent()[0]
        with roles.stopped_engines() as engines:
            began, came = 0.0, b""
            with pytest.raises(BrokenOff):
                async with asker.ask(chat(roles), roles.name) as answer:
                    assert answer.status == 200
                    place = node_at(roles, openers[-1].fed[:32])
                    assert roles.spent()[0] == held + 1
                    began = time.monotonic()
                    kill(place, engines)
                    async for piece in answer.pieces:
                        came += piece
            assert b"[DONE]" not in came
            return place, time.monotonic() - began


def node_at(roles, identity):
    places = {"node0": roles.address(4), "node1": roles.address(5)}
    return next(name for name, address in places.items() if identity.hex() in identities_at(address))


def test_an_engine_that_dies_in_mid_answer(roles, monkeypatch):
    wallet, spent = roles.wallet(), roles.spent()
    place, seconds = asyncio.run(broken(roles, monkeypatch, lambda place, engines: engines[place].kill()))
    assert seconds < SOON
    # The gateway takes the token again, for the same request; with another it would say who asked the first.
    assert (roles.wallet(), roles.spent()) == (wallet - 1, (spent[0], spent[1] + 1, spent[2]))
    asked(roles)  # the other node answers at once
    assert (roles.wallet(), roles.spent()) == (wallet - 2, (spent[0], spent[1] + 1, spent[2] + 1))
    roles.healthy()
    assert roles.engine(place).is_running()  # the node has started another by itself


def test_a_node_that_dies_in_mid_answer(roles, monkeypatch):
    wallet, spent = roles.wallet(), roles.spent()
    orphans = []

    def kill(place, engines):
        orphans.extend(roles.role(place).children(recursive=True))
        roles.kill(place)
        engines[place].resume()

    place, seconds = asyncio.run(broken(roles, monkeypatch, kill))
    assert seconds < SOON
    assert (roles.wallet(), roles.spent()) == (wallet - 1, (spent[0], spent[1] + 1, spent[2]))
    asked(roles)  # by the other
    assert (roles.wallet(), roles.spent()) == (wallet - 2, (spent[0], spent[1] + 1, spent[2] + 1))
    assert len(orphans) >= 4  # the engine, the process that forks, and its workers
    assert not psutil.wait_procs(orphans, timeout=SOON)[1]  # none of them outlives its node with what was asked
    roles.start(place)
    roles.healthy()
    asked(roles)


@pytest.mark.parametrize("name", ["relay", "gateway"])
def test_a_relay_or_gateway_that_dies_in_mid_answer(roles, monkeypatch, name):
    wallet, spent = roles.wallet(), roles.spent()
    _, seconds = asyncio.run(broken(roles, monkeypatch, lambda place, engines: roles.kill(name)))
    assert seconds < SOON and roles.wallet() == wallet - 1
    with pytest.raises(Unreachable, match="relay"):
        asked(roles)
    assert roles.wallet() == wallet - 1  # a question that did not get to the gateway cost nothing
    roles.start(name)
    roles.processes.wait(lambda: ready(roles))
    held, released, settled = roles.spent()
    asked(roles)
    assert roles.spent() == (held, released, settled + 1) and roles.wallet() == wallet - 2
    # A relay that dies is a client that goes away: it has had its answer. A gateway that dies says nothing any more.
    assert held == spent[0] + (name == "gateway") and released == spent[1]


def ready(roles):
    """Whether the gateway knows its nodes again, as another client sees it."""
    with contextlib.suppress(Unreachable, Refused):
        asked(roles, "other")
        return True
    return False


@pytest.mark.parametrize("dies", ["engine"])
def test_an_answer_that_had_not_begun_is_tried_again_for_the_same_token(roles, dies):
    """Whole answers begin at their end: until then another node may take the same request."""
    wallet, spent = roles.wallet(), roles.spent()

    async def ask(engines):
        async with roles.asker() as asker:
            asking = asyncio.create_task(one(asker))
            while roles.spent()[0] == spent[0]:
                await asyncio.sleep(0.05)
            place = busy(roles)
            if dies == "node":
                roles.kill(place)
            engines[place].kill()
            engines["node0" if place == "node1" else "node1"].resume()
            return place, await asking

    async def one(asker):
        async with asker.ask(chat(roles, stream=False), roles.name) as answer:
            return json.loads(await answer.whole())

    with roles.stopped_engines() as engines:
        place, told = asyncio.run(ask(engines))
    assert told["usage"]["completion_tokens"] > 0
    assert (roles.wallet(), roles.spent()) == (wallet - 1, (*spent[:2], spent[2] + 1))
    if dies == "node":
        roles.start(place)
    roles.healthy()


def busy(roles):
    """The node that has a worker at work: the only one of its kind that has read a request."""
    written = {}
    for name in ("node0", "node1"):
        written[name] = max(
            sum(each.cpu_times()[:2]) for each in roles.role(name).children(recursive=True) if is_worker(each)
        )
    return max(written, key=written.get)


def is_worker(process):
    return "pomona.private.roles.worker" in process.cmdline() and process.parent().cmdline() == process.cmdline()


def command(roles, *arguments, **options):
    line = [sys.executable, "-m", "pomona.cli.main", "private", *arguments, "--config", str(roles.config)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_the_command_says_once_that_the_answer_broke_off(roles):
    held = roles.spent()[0]
    with roles.stopped_engines() as engines:
        process = command(roles, "ask", "hello")
        roles.processes.wait(lambda: roles.spent()[0] > held)
        time.sleep(0.5)  # the head is on its way to the client
        for each in engines.values():
            each.kill()
        _, told = process.communicate(timeout=SOON)
    assert process.returncode == 2
    assert "Traceback" not in told and len(told.strip().splitlines()) <= 4
    assert "broke off" in told and "pomona private audit" in told
    roles.healthy()


def test_the_official_client_hears_that_the_answer_broke_off(roles):
    port = free_ports(1)
    process = command(roles, "proxy", "--port", str(port))
    turns = {"model": roles.name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 40}
    try:
        assert str(port) in process.stderr.readline()
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=30) as client:
            with roles.stopped_engines() as engines:
                parts = client.chat.completions.create(**turns, stream=True)
                for each in engines.values():
                    each.kill()
                began = time.monotonic()
                with pytest.raises(openai.APIError, match="BrokenOff") as caught:
                    list(parts)
                assert time.monotonic() - began < SOON and caught.value.code == "broken_off"
            roles.healthy()
            assert client.chat.completions.create(**turns).choices[0].message.content
    finally:
        process.terminate()
        assert "Traceback" not in process.communicate(timeout=20)[1]


def test_a_token_buys_one_request_once(roles):
    async def sent():
        async with roles.asker() as asker:
            known = await asker.known()
            recipients = (await asker.draw(known)).recipients
            token = await asker._purse.token(known, asker._client, time.time())
            sealed, other = (seal_request(recipients, padded(encode(chat(roles))))[0] for _ in range(2))
            statuses, held = [], roles.spent()[0]

            async def send(content):
                async with asker._send(known, content, token) as answer:
                    await answer.whole()
                    statuses.append((answer.status, content is sealed))

            with roles.stopped_engines():
                first = asyncio.create_task(send(sealed))
                while roles.spent()[0] == held:
                    await asyncio.sleep(0.05)
                await send(sealed)  # while it is under way
                await send(other)
            await first
            await send(sealed)  # after it was answered
            await send(other)
            direct = seal_request(recipients, padded(encode(chat(roles))))[0]
            address = roles.address(4)
            return statuses, [await straight(asker._client, address, each) for each in (direct, direct, sealed)]

    statuses, direct = asyncio.run(sent())
    assert statuses == [(503, True), (401, False), (200, True), (401, True), (401, False)]
    assert direct[:2] == [200, 409] and direct[2] in (200, 409)  # a node that did not have it knows nothing of it


async def straight(client, address, envelope):
    answer = await client.post(address + "/requests", content=envelope, headers={"content-type": ENVELOPE.decode()})
    return answer.status_code


def test_without_any_node_a_question_is_refused(roles):
    asked(roles)
    wallet, spent = roles.wallet(), roles.spent()
    for name in ("node0", "node1"):
        roles.kill(name)
    began = time.monotonic()
    with pytest.raises(Refused, match="none of these nodes takes a request"):
        asked(roles)
    assert time.monotonic() - began < SOON
    assert roles.wallet() == wallet - 1 and roles.spent() == (spent[0], spent[1] + 1, spent[2])
    for name in ("node0", "node1"):
        roles.start(name, wait=False)
    roles.healthy()
    asked(roles)


class Recorder:
    """Stands where the relay is, and counts who comes."""

    def __init__(self):
        self.connections = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.come, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def come(self, reader, writer):
        self.connections += 1
        writer.close()


def test_without_the_log_nothing_is_sent(roles):
    now = [time.time()]

    async def ask():
        async with roles.asker(clock=lambda: now[0], state="patient") as asker:
            await whole(asker, roles)
            wallet = roles.wallet("patient")
            roles.kill("log")
            now[0] += 30
            await whole(asker, roles)  # what was read half a minute ago is good enough
            async with Recorder() as recorder:
                asker.trust = dataclasses.replace(roles.trust, relay=recorder.address)
                now[0] += 31
                for _ in range(2):
                    with pytest.raises(Unreachable, match="log"):
                        await whole(asker, roles)
                fresh = Asker(asker.trust, roles.folder / "fresh")
                async with fresh:
                    with pytest.raises(Unreachable, match="log"):
                        await whole(fresh, roles)
                assert recorder.connections == 0
                roles.start("log")
                with pytest.raises(Unreachable, match=r"relay|answer"):
                    await whole(asker, roles)
                assert recorder.connections > 0  # it would have been seen
            asker.trust = roles.trust
            await whole(asker, roles)
            assert roles.wallet("patient") >= wallet - 3

    asyncio.run(ask())

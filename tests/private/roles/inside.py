"""The private cloud inside one event loop, over engines that have no model, by a clock that the test sets."""

import asyncio
import base64
import concurrent.futures
import contextlib
import dataclasses
import json
from pathlib import Path

import uvicorn

from pomona.api.keys import read_keys
from pomona.listen.server import address_of, bound
from pomona.private.attestation.bundle import decode_bundle, identity_of
from pomona.private.client.asking import Asker
from pomona.private.client.proxy import request_of
from pomona.private.client.trust import Trust
from pomona.private.roles import gateway, issuer, log, node, relay, up
from pomona.private.roles.between import Prepare
from pomona.private.roles.publishing import Publisher, publish, read_writers
from pomona.private.roles.release import release_of
from pomona.private.sealing.envelope import Recipient
from pomona.serve.messages import Start

DAY = 86400
NOON = 20_000 * DAY + DAY // 2
MEASURED = node.Measured("mock", "ab" * 32, "cd" * 32, {})


class Clock:
    """Says what it was set to."""

    def __init__(self, now=float(NOON)):
        self.now = now

    def __call__(self):
        return self.now


class Served(uvicorn.Server):
    """A server that leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


@contextlib.asynccontextmanager
async def serving(app, port=0):
    """The address of an application, until the block ends."""
    with bound("127.0.0.1", port) as sock:
        server = Served(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
        task = asyncio.create_task(server.serve([sock]))
        while not server.started:
            await asyncio.sleep(0.01)
            assert not task.done(), task
        try:
            yield address_of(sock)
        finally:
            server.should_exit = True
            await task


def quick(monkeypatch):
    """What roles do again and again they do at once."""
    for module, name in (
        (log, "REFRESH_SECONDS"),
        (issuer, "AGAIN_SECONDS"),
        (gateway, "KEYS_SECONDS"),
        (gateway, "NODES_SECONDS"),
        (node, "LOOK_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.2)


class Inside:
    """What runs: `stacks` has each role's, to end it before the others."""

    def __init__(self, folder, clock):
        self.folder, self.clock = folder, clock
        self.dated = clock()
        """The log's time, where it is ahead of the clock."""
        self.stacks, self.addresses = {}, {}
        self.keys, self.account = up._keys(folder), up._account(folder)

    def writer(self, name):
        return Publisher(self.addresses["log"], self.keys[name])

    async def start(self, name, app, port=0):
        self.stacks[name] = contextlib.AsyncExitStack()
        self.addresses[name] = await self.stacks[name].enter_async_context(serving(app, port))

    async def stop(self, name):
        await self.stacks.pop(name).aclose()

    async def publish(self, name, *leaves):
        await asyncio.to_thread(publish, self.writer(name), leaves)

    def release(self, seconds=30 * DAY, version="1"):
        return release_of(MEASURED, version, "laptop", {}, self.clock(), seconds)

    async def start_log(self):
        # All roles share the loop's threads here, and those that read the log wait for one that serves it.
        asyncio.get_running_loop().set_default_executor(concurrent.futures.ThreadPoolExecutor(64))
        self.opened, self.log = log.open_role(self.folder / "log", up.ORIGIN, "")
        await self.start(
            "log",
            log.build_log(self.opened, read_writers(self.folder / "writers"), lambda: max(self.dated, self.clock())),
        )
        self.log = dataclasses.replace(self.log, address=self.addresses["log"])

    async def later(self, now):
        """Sets the clock when the log is dated so: what the others do then at once they do by that."""
        checkpoint = self.folder / "log/public/checkpoint"
        before, self.dated = checkpoint.read_bytes(), now
        while checkpoint.read_bytes() == before:
            await asyncio.sleep(0.02)
        self.clock.now = now

    async def start_node(self, tokenizer, attester=None, clock=None, name="node", **mock):
        start = Start("mock", slots=2, context=512, mock={"tokenizer": str(tokenizer), **mock})
        keys = (b"", b"", b"")
        prepare = Prepare(str(tokenizer), "mock", [], "", [], 512, 2, *keys, mock=True)
        settings = node.NodeSettings(self.folder / name, start, prepare, MEASURED, self.log, None, 2)
        served = node.Node(settings, attester, clock or self.clock)
        await served.engine.start()
        await self.start(name, node.build_node(served))
        self.stacks[name].push_async_callback(served.engine.stop)
        return served

    async def start_gateway(self, *nodes):
        folder = self.folder / "gateway"
        folder.mkdir(exist_ok=True)
        settings = gateway.GatewaySettings(
            folder, up.GATEWAY, up.ISSUER, nodes, self.log, Publisher(self.log.address, self.keys["gateway"])
        )
        await self.start("gateway", gateway.build_gateway(settings, self.clock))

    async def start_issuer(self, per_day=1000):
        folder = self.folder / "issuer"
        folder.mkdir(exist_ok=True)
        accounts = read_keys(self.folder / "accounts")
        settings = issuer.IssuerSettings(folder, up.ISSUER, accounts, per_day, self.log, self.writer("issuer"))
        await self.start("issuer", issuer.build_issuer(settings, self.clock))

    async def start_relay(self):
        await self.start("relay", relay.build_relay(self.addresses["gateway"] + "/"))

    def asker(self, clock=None, state="client"):
        trust = Trust(
            log=self.log,
            relay=self.addresses["relay"] + "/",
            issuer=self.addresses["issuer"],
            account=self.account,
            issuer_name=up.ISSUER,
            gateway_name=up.GATEWAY,
            profiles=("laptop",),
        )
        return Asker(trust, self.folder / state, clock or self.clock)

    async def close(self):
        for name in reversed(list(self.stacks)):
            await self.stop(name)


@contextlib.asynccontextmanager
async def inside(folder: Path, tokenizer, clock, release_seconds=30 * DAY, per_day=1000, **mock):
    """All roles and one node; it is in the directory when the block begins."""
    cloud = Inside(folder, clock)
    try:
        await cloud.start_log()
        await cloud.publish("operator", cloud.release(release_seconds))
        cloud.node = await cloud.start_node(tokenizer, **mock)
        await cloud.start_gateway(cloud.addresses["node"])
        await cloud.start_issuer(per_day)
        await cloud.start_relay()
        async with cloud.asker(state="first") as asker:
            await until_answered(asker)
        yield cloud
    finally:
        await cloud.close()


def recipient(content):
    """Whom a bundle is of, whatever clients think of it."""
    claims = decode_bundle(content).claims
    return Recipient(identity_of(content), claims.point, claims.mlkem)


def question(max_tokens=4):
    body = {"model": "mock", "prompt": "hello", "max_tokens": max_tokens, "temperature": 0}
    return request_of("/v1/completions", json.dumps(body).encode())


async def whole(asker):
    """One question, answered."""
    async with asker.ask(question(), "mock") as answer:
        told = json.loads(await answer.whole())
    assert answer.status == 200, told
    return told["choices"][0]["text"]


async def until(ready, seconds=60.0):
    """Waits for what is to come."""
    async with asyncio.timeout(seconds):
        while not await ready():
            await asyncio.sleep(0.05)


async def until_answered(asker):
    """Asks until all roles have caught up with the clock."""

    async def answered():
        asker._known = None
        try:
            await whole(asker)
        except Exception as error:
            answered.last = error
            return False
        return True

    try:
        await until(answered)
    except TimeoutError:
        raise answered.last from None


async def bundles(client, address):
    return [base64.b64decode(each) for each in (await client.get(address + "/bundles")).json()]

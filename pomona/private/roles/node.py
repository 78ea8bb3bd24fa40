"""A node: opens requests with a key that only its measured state can use, and keeps nothing of them.

It passes sealed bytes between the gateway and a worker, and tokens between the worker and the engine. What it says of
itself to others are its bundles, and numbers over many requests.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pomona.core.errors import UserError
from pomona.private.client.asking import ENVELOPE
from pomona.private.client.reading import read_log
from pomona.private.client.trust import LogTrust
from pomona.private.evidence.errors import AttestationError
from pomona.private.roles.between import Prepare
from pomona.private.roles.enrolment import CREDENTIAL_PATH, MACHINE_PATH, Challenge, introduce, open_challenge
from pomona.private.roles.fleet import BUNDLES_PATH, REQUESTS_PATH, encode_bundles
from pomona.private.roles.http import LARGEST_BODY, Cut, Stream, body, every, plain
from pomona.private.roles.measure import REGISTER, measurement, register_after
from pomona.private.roles.node_keys import Attester, NodeKeys, make_keys, measure_into
from pomona.private.roles.pool import Outcome, Pool
from pomona.private.roles.tallies import Tallies
from pomona.private.sealing.envelope import node_identities, replay_digest
from pomona.private.sealing.errors import SealingError
from pomona.private.transparency.leaves import Release, hash_of
from pomona.serve.messages import Start
from pomona.serve.remote import Remote

LOOK_SECONDS = 60.0
MOST_SEEN = 1_000_000
"""Requests under one key at most: 40 bytes for each are remembered until it expires."""
ANSWER = "application/vnd.pomona.answer"
STATUS = {"unsealed": 400, "unreadable": 400, "key-gone": 503, "lost": 503}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a node runs, by its digests."""

    name: str
    image: str
    model: str
    adapters: dict[str, str]


@dataclasses.dataclass(frozen=True)
class NodeSettings:
    """What a node is started with."""

    folder: Path
    start: Start
    """Of the engine."""
    prepare: Prepare
    """Of the workers; identity and keys come with the keys."""
    measured: Measured
    log: LogTrust
    processor: Path | None
    """The folder of configfs-tsm, where a processor attests."""
    most_waiting: int


@dataclasses.dataclass
class Generation:
    """Keys, their workers, and the requests that came under them."""

    keys: NodeKeys
    pool: Pool
    seen: set[bytes] = dataclasses.field(default_factory=set)


class Node:
    """One node, for one event loop."""

    def __init__(
        self, settings: NodeSettings, attester: Attester | None, clock: Callable[[], float] = time.time
    ) -> None:
        self.settings, self.attester, self.clock = settings, attester, clock
        self.engine = Remote(settings.start)
        self.generations: list[Generation] = []
        self.tallies = Tallies()

    async def look(self) -> bool:
        """Makes keys where there are none, or half of their time is over, or the release that they name is gone;
        ends those that have expired."""
        now = self.clock()
        # Before anything that can fail: what is over is over, whether the log answers or not.
        for old in [each for each in self.generations if now >= each.keys.expires or not each.pool.alive]:
            await self._end(old)
        known = await asyncio.to_thread(read_log, self.settings.log, self.settings.folder / "log", now)
        release = self._release(known.leaves)
        newest = self.generations[-1] if self.generations else None
        in_force = {hash_of(leaf) for leaf in known.leaves if isinstance(leaf, Release)}
        if newest is None or now >= newest.keys.renewal or newest.keys.release not in in_force:
            keys = await asyncio.to_thread(self._make, known, release, now)
            await self._begin(keys)
        return True

    def _release(self, leaves) -> Release:
        ours = self.settings.measured
        for leaf in reversed(leaves):
            if isinstance(leaf, Release) and Measured(leaf.name, leaf.image, leaf.model, dict(leaf.adapters)) == ours:
                return leaf
        raise UserError(
            f"the log has no release of {ours.name} with this model ({ours.model[:16]}) and image ({ours.image[:16]}).",
            "clients use nodes whose release is published and in force.",
            "pomona private release, by whoever may publish",
        )

    def _make(self, known, release: Release, now: float) -> NodeKeys:
        ours = self.settings.measured
        if self.attester is not None:
            digest = measurement(ours.image, ours.model, ours.adapters)
            measure_into(self.attester, REGISTER, digest, register_after(digest))
        return make_keys(self.attester, self.settings.processor, known, release, now)

    async def _begin(self, keys: NodeKeys) -> None:
        own = {"identity": keys.identity, "public_point": keys.point, "mlkem_seed": keys.mlkem_seed}
        fields = {name: getattr(self.settings.prepare, name) for name in self.settings.prepare.__struct_fields__}
        pool = Pool(Prepare(**(fields | own)), keys.diffie_hellman, self.engine)
        await pool.start()
        self.generations.append(Generation(keys, pool))

    async def _end(self, generation: Generation) -> None:
        if generation not in self.generations:  # several requests may have found at once that its key is gone
            return
        self.generations.remove(generation)
        await generation.pool.stop()
        await asyncio.to_thread(generation.keys.close)

    async def bundles(self, request: Request) -> Response:
        """The bundles of the keys that are good."""
        content = encode_bundles([each.keys.content for each in self.generations])
        return Response(content, headers={"cache-control": "no-store"}, media_type="application/json")

    async def request(self, request: Request) -> Response:
        """The sealed answer to a sealed request."""
        if request.headers.get("content-type") != ENVELOPE.decode():
            return plain(415, f"the media type is {ENVELOPE.decode()}")
        envelope = await body(request)
        if envelope is None:
            return plain(413, f"more than {LARGEST_BODY} bytes")
        try:
            identities, digest = node_identities(envelope), replay_digest(envelope)
        except SealingError as error:
            return plain(400, str(error))
        generation = next((each for each in self.generations if each.keys.identity in identities), None)
        if generation is None or self.clock() >= generation.keys.expires:
            return plain(410, "the request is for no key of this node that is good")
        if self.engine.ready is None or self._busy():
            return plain(503, "the node takes no request now")
        if digest in generation.seen or len(generation.seen) >= MOST_SEEN:
            return plain(409, "the request has come before")
        generation.seen.add(digest)
        pieces = generation.pool.answer(envelope)
        try:
            first = await anext(pieces)
        except (Outcome, StopAsyncIteration) as error:
            outcome = error.outcome if isinstance(error, Outcome) else "lost"
            self.tallies.add(outcome)
            if outcome == "key-gone":
                await self._end(generation)
            return plain(STATUS[outcome], outcome)
        return Stream(self._rest(first, pieces), ANSWER)

    def _busy(self) -> bool:
        assert self.engine.ready is not None
        running = sum(each.pool.running for each in self.generations)
        return running >= self.engine.ready.slots + self.settings.most_waiting

    async def _rest(self, first: bytes, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        outcome = "lost"
        try:
            async with contextlib.aclosing(pieces):
                yield first
                async for piece in pieces:
                    yield piece
            outcome = "answered"
        except Outcome as error:
            outcome = error.outcome
            raise Cut from error
        finally:
            self.tallies.add(outcome)

    async def machine(self, request: Request) -> Response:
        """Who enrols the machine asks who it is."""
        if self.attester is None:
            return plain(404, "this node has no TPM")
        told = await asyncio.to_thread(introduce, self.attester)
        return Response(msgspec.json.encode(told), media_type="application/json")

    async def credential(self, request: Request) -> Response:
        """Who enrols the machine has it prove that."""
        if self.attester is None:
            return plain(404, "this node has no TPM")
        try:
            challenge = msgspec.json.decode(await body(request, 1 << 14) or b"", type=Challenge)
            secret = await asyncio.to_thread(open_challenge, self.attester, challenge)
        except (msgspec.MsgspecError, RecursionError, AttestationError):
            return plain(400, "the TPM does not open it")
        return Response(secret, media_type="application/octet-stream")

    async def health(self, request: Request) -> Response:
        """Whether it takes requests."""
        up = self.engine.ready is not None and any(each.pool.alive for each in self.generations)
        return plain(200 if up else 503, "ok" if up else "not ready")

    async def metrics(self, request: Request) -> Response:
        """Numbers over many requests."""
        return Response(self.tallies.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def build_node(node: Node) -> Starlette:
    """The application of a node whose engine runs already."""

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncGenerator[None, None]:
        try:
            async with every(LOOK_SECONDS, node.look):
                yield
        finally:
            for generation in list(node.generations):
                await node._end(generation)

    routes = [
        Route(BUNDLES_PATH, node.bundles, methods=["GET"]),
        Route(REQUESTS_PATH, node.request, methods=["POST"]),
        Route(MACHINE_PATH, node.machine, methods=["GET"]),
        Route(CREDENTIAL_PATH, node.credential, methods=["POST"]),
        Route("/health", node.health, methods=["GET"]),
        Route("/metrics", node.metrics, methods=["GET"]),
    ]
    return Starlette(routes=routes, lifespan=life)

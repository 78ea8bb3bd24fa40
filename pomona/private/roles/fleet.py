"""The nodes as the gateway sees them: which there are, which are busy, and the directory that everybody reads in the
log."""

import asyncio
import base64
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Sequence

import httpx2
import msgspec

from pomona.private.attestation.bundle import identity_of
from pomona.private.attestation.case import Known, open_case
from pomona.private.attestation.clauses import findings, listed
from pomona.private.client.asking import ENVELOPE
from pomona.private.evidence.errors import AttestationError
from pomona.private.roles.http import Cut
from pomona.private.roles.publishing import Publisher, publish
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.leaves import NodeEntry, newest_directory, split_directory

DIRECTORY_SECONDS = 2 * 3600
"""How long a directory counts; it is published again when half of that is over."""
BUNDLES_PATH, REQUESTS_PATH = "/bundles", "/requests"
ASK_SECONDS = 5.0
JUDGED_SECONDS = 60.0
TAKEN_SECONDS = 10.0
"""How long a node may take to open a request before the next one is asked; it computes only afterwards."""


@dataclasses.dataclass
class Node:
    """One node's key, at its address."""

    address: str
    bundle: bytes
    release: bytes
    under_way: int = 0
    up: bool = True
    judged: int = 0
    """How many entries the log had when it was judged last."""
    good_until: float = 0.0


class Serving:
    """A node's answer to a request that it has taken."""

    def __init__(self, node: Node, answer: httpx2.Response) -> None:
        self.node, self.answer = node, answer

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """What comes of it.

        Raises:
            Cut: the node failed in the middle.
        """
        try:
            async for piece in self.answer.aiter_raw():
                yield piece
        except httpx2.HTTPError as error:
            raise Cut from error

    async def close(self) -> None:
        """Lets the node go."""
        self.node.under_way -= 1
        await self.answer.aclose()


class Fleet:
    """The nodes of one gateway."""

    def __init__(self, addresses: Sequence[str], publisher: Publisher, client: httpx2.AsyncClient) -> None:
        self.addresses, self.publisher, self.client = addresses, publisher, client
        self.nodes: dict[bytes, Node] = {}
        """By their identities."""

    @property
    def bundles(self) -> dict[bytes, bytes]:
        """By the nodes' identities."""
        return {identity: node.bundle for identity, node in self.nodes.items()}

    async def serve(self, identities: Sequence[bytes], envelope: bytes) -> Serving | None:
        """The answer of the node among these that has the least to do; where it takes no request, of the next."""
        able = [self.nodes[each] for each in identities if each in self.nodes]
        for node in sorted(able, key=lambda each: (not each.up, each.under_way)):
            headers = {"content-type": ENVELOPE.decode()}
            request = self.client.build_request("POST", node.address + REQUESTS_PATH, content=envelope, headers=headers)
            node.under_way += 1
            try:
                async with asyncio.timeout(TAKEN_SECONDS):
                    answer = await self.client.send(request, stream=True)
            except BaseException as error:
                node.under_way -= 1
                if not isinstance(error, httpx2.HTTPError | TimeoutError):
                    raise
                node.up = False
                continue
            if answer.status_code == 200:
                return Serving(node, answer)
            node.under_way -= 1
            await answer.aclose()
        return None

    async def look(self, known: Known) -> None:
        """Asks every node for its bundles, and publishes the directory where it is another, or half of its time is
        over.

        Raises:
            NotPublished: the log does not take it.
        """
        told = await asyncio.gather(*(self._ask(address) for address in self.addresses))
        found: dict[bytes, Node] = {}
        for address, bundles in zip(self.addresses, told):
            for bundle in bundles or ():
                found |= self._judged(known, address, bundle)
        for identity, node in self.nodes.items():  # who is silent may be busy
            silent = told[self.addresses.index(node.address)] is None
            if identity not in found and silent and self._judged(known, node.address, node.bundle):
                node.up = False
                found[identity] = node
        self.nodes = found
        if leaves := self._directory(known):
            await asyncio.to_thread(publish, self.publisher, leaves)

    async def _ask(self, address: str) -> list[bytes] | None:
        """The bundles of a node; None where it does not answer."""
        with contextlib.suppress(httpx2.HTTPError, msgspec.MsgspecError):
            answer = await self.client.get(address + BUNDLES_PATH, timeout=ASK_SECONDS)
            if answer.status_code == 200:
                return msgspec.json.decode(answer.content, type=list[bytes])
        return None

    def _judged(self, known: Known, address: str, bundle: bytes) -> dict[bytes, Node]:
        """The node, where it meets every clause but the one that it is listed."""
        identity = identity_of(bundle)
        kept = self.nodes.get(identity)
        if kept and kept.judged == len(known.entries) and known.now < kept.good_until:
            kept.up = True
            return {identity: kept}
        try:
            case = open_case(bundle, known)
            if any(each.refusal and each.clause != listed.__name__ for each in findings(case)):
                return {}
        except AttestationError:
            return {}
        claims = case.bundle.claims
        node = kept or Node(address, bundle, claims.release)
        node.judged, node.up = len(known.entries), True
        node.good_until = min(claims.expires, known.now + JUDGED_SECONDS)
        return {identity: node}

    def _directory(self, known: Known) -> list:
        """The leaves of a new directory, where one is needed."""
        now = int(known.now)
        # Without addresses: no client needs them, and nobody else should know them.
        entries = [NodeEntry(identity.hex(), "", node.release.hex()) for identity, node in sorted(self.nodes.items())]
        with contextlib.suppress(TransparencyError):
            later = dataclasses.replace(known, now=now + DIRECTORY_SECONDS / 2)
            if newest_directory(later.leaves, later.now) == tuple(entries):
                return []
        return split_directory(entries, now, now + DIRECTORY_SECONDS)


def encode_bundles(bundles: Sequence[bytes]) -> bytes:
    """What a node answers."""
    return msgspec.json.encode([base64.b64encode(each).decode() for each in bundles])

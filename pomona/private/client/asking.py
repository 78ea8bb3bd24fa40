"""A client of the private cloud: knows the log, draws nodes and checks them, seals a request so that they alone can
read it.

Nobody but the client decides whom it asks: the directory is the same for everybody, and the draw is its own. What it
cannot check, it does not use; where the log does not answer, it asks nobody.
"""

import asyncio
import base64
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path

import httpx2

from pomona.private.attestation.bundle import identity_of
from pomona.private.attestation.case import Known, open_case
from pomona.private.attestation.clauses import judge
from pomona.private.client.buying import Purse
from pomona.private.client.oblivious import Answer, BrokenOff, gateway_key, through
from pomona.private.client.reading import Unreachable, read_log
from pomona.private.client.trust import Trust
from pomona.private.evidence.errors import AttestationError
from pomona.private.sealing.answer import AnswerKeys, AnswerOpener
from pomona.private.sealing.binary_http import Request, Response, encode
from pomona.private.sealing.binary_http_reader import ResponseReader
from pomona.private.sealing.envelope import MOST_NODES, Recipient, seal_request
from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.padding import padded
from pomona.private.tokens.auth_scheme import encode_authorization
from pomona.private.tokens.privacy_pass import Token
from pomona.private.transparency.leaves import Release, hash_of

READ_AGAIN_SECONDS = 60.0
"""How old what is known of the log may be."""
ANSWER_SECONDS = 120.0
"""How long the next byte may take."""
MOST_BUNDLES = 32
"""Bundles that are asked for at a time: of more nodes, some are drawn first."""
ENVELOPE = b"application/vnd.pomona.envelope"
BUNDLES, REQUESTS = b"/bundles", b"/requests"
TRIES = 3


class Refused(Exception):
    """The gateway has taken no request: its status, and its reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"the gateway refuses: {reason} ({status})")
        self.status = status


class NoSuchModel(Exception):
    """No release that is in force and accepted serves a model of this name."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Nodes that were judged, and those that were refused with the clause that did."""

    recipients: tuple[Recipient, ...]
    refused: tuple[str, ...]


class Asker:
    """One client, for one event loop. To be closed, or used in an `async with` statement."""

    def __init__(self, trust: Trust, state: Path, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            state: a folder for what was seen of the log and for tokens; it is made where it is absent.
        """
        self.trust, self.state, self.clock = trust, state, clock
        self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(ANSWER_SECONDS, connect=10.0), follow_redirects=False)
        self._purse = Purse(trust, state)
        self._known: Known | None = None
        self._bundles: dict[bytes, bytes] = {}
        self._judged: dict[bytes, Recipient | str] = {}
        """What came of each bundle, until the log is read again."""
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> "Asker":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes connections and files."""
        await self._client.aclose()
        self._purse.close()

    async def known(self) -> Known:
        """The log, read again where it was read a minute ago.

        Raises:
            Unreachable: it does not answer.
            TransparencyError: it is not to be believed.
        """
        async with self._lock:
            now = self.clock()
            if self._known is None or not 0 <= now - self._known.now < READ_AGAIN_SECONDS:
                found = await asyncio.to_thread(read_log, self.trust.log, self.state, now)
                profiles, models = frozenset(self.trust.profiles), frozenset(self.trust.models)
                self._known = dataclasses.replace(found, profiles=profiles, models=models)
                self._judged.clear()
            return self._known

    async def draw(self, known: Known, model: str = "") -> Drawn:
        """At most 8 nodes, drawn by this client among all of the directory that serve a model, each judged by every
        clause.

        Raises:
            NoSuchModel: no release has this name.
            Unreachable: the directory has no node that passes, or the gateway withholds more than half of the bundles:
                by those that it gives out it would choose who is asked, and nobody else would see it.
            TransparencyError: there is no directory.
        """
        accepted = releases(known)
        wanted = {hash_of(release) for release in accepted if model in ("", release.name)}
        if not wanted:
            names = ", ".join(sorted({release.name for release in accepted})) or "none"
            raise NoSuchModel(f"The model {model!r} does not exist; there are: {names}.")
        left = [identity for identity, release in known.nodes.items() if release in wanted]
        secrets.SystemRandom().shuffle(left)
        recipients: list[Recipient] = []
        refused: list[str] = []
        while left and len(recipients) < MOST_NODES:
            some, left = left[:MOST_BUNDLES], left[MOST_BUNDLES:]
            await self.bundles(known, some)
            withheld = sum(identity not in self._bundles for identity in some)
            if 2 * withheld > len(some):
                raise Unreachable(f"the gateway withholds the bundles of {withheld} of {len(some)} nodes")
            for identity in some:
                if len(recipients) == MOST_NODES:
                    break
                found = self._judge(identity, known)
                if isinstance(found, str):
                    refused.append(f"{identity.hex()[:16]}: {found}")
                else:
                    recipients.append(found)
        if not recipients:
            raise Unreachable("no node passes: " + ("; ".join(refused) or "the directory has none"))
        return Drawn(tuple(recipients), tuple(refused))

    @contextlib.asynccontextmanager
    async def ask(self, request: Request, model: str = "") -> AsyncGenerator[Answer, None]:
        """The answer of one node of a model to a request, which nobody else has read.

        Where no node has taken the request it is sent again, with the same token; where that was spent meanwhile, with
        another.

        Raises:
            Unreachable: somebody that is needed does not answer, or no node passes.
            NoSuchModel: no release has this name.
            Refused: the gateway takes no request.
            BrokenOff: the answer ended before its head; later, while it is read, the same.
            TransparencyError: the log is not to be believed.
            TokenError, OutOfTokens: there are no tokens.
        """
        known = await self.known()
        try:
            drawn = await self.draw(known, model)
        except (Unreachable, NoSuchModel):
            if self.clock() - known.now < 1:
                raise
            self._known = None  # it may have changed within the minute
            known = await self.known()
            drawn = await self.draw(known, model)
        sealed, keys = seal_request(drawn.recipients, padded(encode(request)))
        token = await self._purse.token(known, self._client, self.clock())
        began = False
        for left in reversed(range(TRIES)):
            try:
                async with contextlib.AsyncExitStack() as stack:
                    answer = await stack.enter_async_context(self._send(known, sealed, token))
                    if answer.status == 200:
                        parts = _opened(answer, keys)
                        head = await anext(parts, None)
                        if not isinstance(head, Response):
                            raise BrokenOff("the node's answer has no head")
                        began = True
                        yield Answer(head, _content(parts))
                        return
                    reason = (await answer.whole()).decode("utf-8", "replace").strip()[:200]
                    if answer.status not in (401, 503) or not left:
                        raise Refused(answer.status, reason)
                    if answer.status == 401:  # spent by a try whose answer was lost; or the key has expired since
                        token = await self._purse.token(known, self._client, self.clock())
            except (Unreachable, BrokenOff):
                if began or not left:
                    raise
            await asyncio.sleep(0.2 * (TRIES - left))

    def _send(self, known: Known, sealed: bytes, token: Token):
        headers = ((b"authorization", encode_authorization(token).encode()), (b"content-type", ENVELOPE))
        request = Request(b"POST", b"https", self.trust.gateway_name.encode(), REQUESTS, headers, sealed)
        return through(self._client, self.trust.relay, gateway_key(known, self.trust.gateway_name), request)

    def _judge(self, identity: bytes, known: Known) -> Recipient | str:
        """The node as somebody to ask, or why it is not."""
        content = self._bundles.get(identity)
        if content is None:
            return "the gateway has no bundle of it"
        if identity not in self._judged:
            try:
                case = open_case(content, known)
                judge(case)
                claims = case.bundle.claims
                self._judged[identity] = Recipient(identity, claims.point, claims.mlkem)
            except AttestationError as error:
                self._judged[identity] = str(error)
        return self._judged[identity]

    async def bundles(self, known: Known, identities: list[bytes]) -> Mapping[bytes, bytes]:
        """The bundles of these nodes, as far as they can be had; asked for where they are not there yet.

        Raises:
            Unreachable: nobody answers.
        """
        self._bundles = {identity: content for identity, content in self._bundles.items() if identity in known.nodes}
        missing = [identity.hex() for identity in identities if identity not in self._bundles]
        if not missing:
            return self._bundles
        content = json.dumps(missing).encode()
        request = Request(b"POST", b"https", self.trust.gateway_name.encode(), BUNDLES, (), content)
        key = gateway_key(known, self.trust.gateway_name)
        try:
            async with through(self._client, self.trust.relay, key, request) as answer:
                found = json.loads(await answer.whole()) if answer.status == 200 else []
                given = [base64.b64decode(each) for each in found]
        except (ValueError, TypeError, RecursionError, BrokenOff) as error:
            raise Unreachable("the gateway does not give out bundles") from error
        self._bundles |= {identity_of(bundle): bundle for bundle in given if identity_of(bundle) in known.nodes}
        return self._bundles


def releases(known: Known) -> list[Release]:
    """The releases that are in force, and that this client would use."""
    found = [leaf for leaf in known.leaves if isinstance(leaf, Release) and leaf.profile in known.profiles]
    return [leaf for leaf in found if not known.models or leaf.model in known.models]


async def _opened(answer: Answer, keys: AnswerKeys) -> AsyncGenerator[object, None]:
    """What the node's response is made of.

    Raises:
        BrokenOff: it is truncated, or not what a node that was asked sealed.
    """
    opener, reader = AnswerOpener(keys), ResponseReader()
    try:
        async for sealed in answer.pieces:
            for plain in opener.feed(sealed):
                for part in reader.feed(plain):
                    yield part
        opener.close()
        for part in reader.close():
            yield part
    except SealingError as error:
        raise BrokenOff(f"the node's answer broke off: {error}") from error


async def _content(parts: AsyncGenerator[object, None]) -> AsyncGenerator[bytes, None]:
    async for part in parts:
        if isinstance(part, bytes):
            yield part

"""Tokens for the gateway: bought of the issuer in batches, for an account; spent where nobody knows the account."""

import asyncio
import base64
import contextlib
import secrets
from pathlib import Path

import httpx2

from pomona.private.attestation.case import Known
from pomona.private.client.reading import Unreachable
from pomona.private.client.trust import Trust
from pomona.private.tokens.batches import BATCH_REQUEST_MEDIA_TYPE, BATCH_RESPONSE_MEDIA_TYPE
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.issuance import finish_batch, prepare_batch
from pomona.private.tokens.privacy_pass import IssuerKey, Token, TokenChallenge, challenge_digest, decode_token_key
from pomona.private.tokens.quota import DAY_SECONDS
from pomona.private.tokens.wallet import Wallet
from pomona.private.transparency import leaves

BATCH = 32
"""Tokens that are bought at a time."""
FEW, SOON_SECONDS = 8, 30.0
"""With so few left more are bought, some time within so long: when they are bought says little of when they are spent.
Only who has none buys at once."""
LARGEST_ANSWER = 1 << 18
ISSUE_PATH = "/token-request"


class OutOfTokens(Exception):
    """The issuer gives none: its own words."""


class Purse:
    """The tokens of one account."""

    def __init__(self, trust: Trust, state: Path) -> None:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.trust = trust
        self.challenge = challenge_of(trust.issuer_name, trust.gateway_name)
        self._wallet = Wallet(state / "tokens.sqlite")
        self._lock = asyncio.Lock()
        self._ahead: asyncio.Task[None] | None = None

    async def token(self, known: Known, client: httpx2.AsyncClient, now: float) -> Token:
        """One token, taken off the disk before it is used.

        Raises:
            Unreachable: the issuer does not answer, or the log has no key of it that signs today.
            OutOfTokens: the account has none left today, or there is no such account.
            TokenError: what it answers are no tokens.
        """
        digest = challenge_digest(self.challenge)
        async with self._lock:
            found = self._wallet.take(digest, now)
            if found is None:
                await self._buy(known, client, now)
                found = self._wallet.take(digest, now)
            elif self._ahead is None and self._wallet.count(digest, now) < FEW:
                self._ahead = asyncio.create_task(self._buy_ahead(known, client, now))
        if found is None:
            raise TokenError("The issuer answered without a token.")
        return found

    async def _buy_ahead(self, known: Known, client: httpx2.AsyncClient, now: float) -> None:
        try:
            await asyncio.sleep(secrets.SystemRandom().uniform(0, SOON_SECONDS))
            async with self._lock:
                with contextlib.suppress(Unreachable, OutOfTokens, TokenError):  # who needs one will hear of it
                    await self._buy(known, client, now)
        finally:
            self._ahead = None

    async def _buy(self, known: Known, client: httpx2.AsyncClient, now: float) -> None:
        key = signing_key(known, self.trust.issuer_name, now)
        body, batch = await asyncio.to_thread(prepare_batch, BATCH, self.challenge, key)
        headers = {"content-type": BATCH_REQUEST_MEDIA_TYPE, "authorization": f"Bearer {self.trust.account}"}
        try:
            address = self.trust.issuer.rstrip("/") + ISSUE_PATH
            async with client.stream("POST", address, content=body, headers=headers) as answer:
                content = bytearray()
                async for piece in answer.aiter_raw():
                    content += piece[: LARGEST_ANSWER - len(content)]
        except httpx2.HTTPError as error:
            raise Unreachable(f"the issuer at {self.trust.issuer} does not answer: {type(error).__name__}") from error
        if answer.status_code in (401, 429):
            raise OutOfTokens(content[:200].decode("utf-8", "replace").strip())
        if answer.status_code != 200 or answer.headers.get("content-type") != BATCH_RESPONSE_MEDIA_TYPE:
            raise Unreachable(f"the issuer answers {answer.status_code}")
        self._wallet.put(await asyncio.to_thread(finish_batch, batch, bytes(content)), key)

    def close(self) -> None:
        """Closes the wallet."""
        if self._ahead is not None:
            self._ahead.cancel()
        self._wallet.close()


def challenge_of(issuer_name: str, gateway_name: str) -> TokenChallenge:
    """What tokens for a gateway are good for: the same for everybody, so that a token says nothing of who asked for
    it."""
    return TokenChallenge(issuer_name, b"", (gateway_name,))


def signing_key(known: Known, issuer_name: str, now: float) -> IssuerKey:
    """The issuer's key that signs today, as the log has it: a key for one client alone would mark it.

    Raises:
        Unreachable: there is none.
    """
    found = [leaf for leaf in known.leaves if isinstance(leaf, leaves.IssuerKey) and leaf.issuer == issuer_name]
    today = [leaf for leaf in found if leaf.not_before <= now < leaf.not_before + DAY_SECONDS]
    if not today:
        raise Unreachable(f"the log has no key of the issuer {issuer_name} that signs today")
    return key_of(today[-1])


def key_of(leaf: leaves.IssuerKey) -> IssuerKey:
    """The key that a leaf publishes."""
    return IssuerKey(decode_token_key(base64.b64decode(leaf.token_key)), leaf.not_before, leaf.expires)

"""How the other roles write into the log: leaves, under a key that says which kinds its owner may write."""

import dataclasses
import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

import httpx2
import msgspec

from pomona.core.errors import UserError
from pomona.private.transparency.leaves import KINDS, Leaf, encode

ENTRIES_PATH = "/entries"
FORM = "a line a writer: a name, a key, and the kinds of leaves that it may write: `issuer 4f0c... issuer-key`"


@dataclasses.dataclass(frozen=True)
class Writer:
    """Somebody who may write leaves of some kinds."""

    name: str
    key_digest: bytes
    kinds: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Publisher:
    """The writing end of a log."""

    address: str
    key: str = dataclasses.field(repr=False)


class NotPublished(Exception):
    """The log has not taken leaves; its reason."""


class Entries(msgspec.Struct):
    """What is posted."""

    entries: list[str]


def publish(publisher: Publisher, leaves: Sequence[Leaf]) -> None:
    """Writes leaves at the end of the log, all or none; it returns when they are published.

    Raises:
        NotPublished: the log does not answer, or does not let this writer write these.
    """
    body = msgspec.json.encode(Entries([encode(leaf).decode() for leaf in leaves]))
    headers = {"authorization": f"Bearer {publisher.key}", "content-type": "application/json"}
    try:
        answer = httpx2.post(publisher.address.rstrip("/") + ENTRIES_PATH, content=body, headers=headers, timeout=30)
    except httpx2.HTTPError as error:
        raise NotPublished(f"the log at {publisher.address} does not answer: {type(error).__name__}") from error
    if answer.status_code != 200:
        raise NotPublished(f"the log refuses: {answer.text.strip()[:200]} ({answer.status_code})")


def read_writers(path: Path) -> tuple[Writer, ...]:
    """The writers of a file.

    Raises:
        UserError: it cannot be read, or a line is not of the form.
    """
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip() and line[0] != "#"]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the writers {path} cannot be read: {error}.", FORM + ".", "--writers FILE") from error
    writers = []
    for words in lines:
        if len(words) < 3 or not set(words[2:]) <= set(KINDS):
            raise UserError(f"{path} has a line that is no writer.", f"{FORM}; kinds: {', '.join(KINDS)}.", "that form")
        writers.append(Writer(words[0], hashlib.sha256(words[1].encode()).digest(), frozenset(words[2:])))
    return tuple(writers)


def writer_of(writers: Sequence[Writer], authorization: str) -> Writer | None:
    """Who an `Authorization` header is of; every key is compared, each in constant time."""
    scheme, _, key = authorization.partition(" ")
    digest = hashlib.sha256(key.strip().encode("utf-8", "replace")).digest()
    found = [each for each in writers if hmac.compare_digest(each.key_digest, digest)]
    return found[0] if found and scheme.lower() == "bearer" else None

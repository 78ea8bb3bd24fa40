"""What somebody who reads a log holds of it: the newest checkpoint seen, so that the log can never take anything back.

A view goes forward only: to a checkpoint that the log signed, that is consistent with the one held, and that cosigners
said to be the newest not long ago. It starts with nothing seen and believes the first such checkpoint. It is as good as
the file that it is kept in: whoever can put an older file there can make it forget.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from pomona.core.files import write_text
from pomona.private.transparency.checkpoint import (
    Checkpoint,
    Signed,
    open_checkpoint,
    verified_time,
)
from pomona.private.transparency.errors import Forked, TransparencyError
from pomona.private.transparency.merkle import (
    EMPTY_ROOT,
    consistency_path,
    inclusion_proof,
    leaf_hash,
    roots_of_path,
    verify_inclusion,
)
from pomona.private.transparency.note import (
    COSIGNATURE,
    Verifier,
    decode_vkey,
    encode_note,
    encode_vkey,
)
from pomona.private.transparency.tiles import CHECKPOINT_PATH, Fetch, VerifiedTree

MAX_AGE_SECONDS, MAX_AHEAD_SECONDS = 24 * 3600, 300


@dataclass(frozen=True)
class View:
    """A log as it is known: what it is called, who signs it, who says with a time what is newest, and how many of those
    have to (`quorum`). `signed` is the newest checkpoint seen, or None.
    """

    origin: str
    log: Verifier
    cosigners: tuple[Verifier, ...]
    quorum: int = 1
    signed: Signed | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The newest checkpoint seen; before the first, that of no entries."""
        return self.signed.checkpoint if self.signed else Checkpoint(self.origin, 0, EMPTY_ROOT)

    @property
    def time(self) -> int:
        """The second at which enough cosigners said that it was the newest; 0 before the first checkpoint."""
        return verified_time(self.signed, self.quorum) if self.signed else 0

    @property
    def note(self) -> bytes:
        """The newest checkpoint as it was published; nothing before the first."""
        return encode_note(self.signed.note) if self.signed else b""


@dataclass(frozen=True)
class Comparison:
    """What two checkpoints of one log say of each other; where they fork, `error` has the evidence."""

    verdict: Literal["consistent", "forked", "needs a proof"]
    error: Forked | None = None


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    origin: str
    vkey: str
    cosigners: list[str]
    quorum: int
    note: str


def new_view(origin: str, vkey: str, cosigners: Sequence[str] = (), quorum: int = 1) -> View:
    """A view of a log that was not seen yet. `cosigners` are verifier keys of type 4, of witnesses; without any, the
    log itself says what is newest, under its own key.

    Raises:
        TransparencyError: a key is malformed or of the wrong type, or `quorum` is not 1 to the number of cosigners.
    """
    log = decode_vkey(vkey)
    known = tuple(decode_vkey(each) for each in cosigners) or (replace(log, signature_type=COSIGNATURE),)
    if log.signature_type == COSIGNATURE or any(each.signature_type != COSIGNATURE for each in known):
        raise TransparencyError("a log's key is of signature type 1, a cosigner's of type 4.")
    if len({each.public_key for each in known}) != len(known) or not 1 <= quorum <= len(known):
        raise TransparencyError("cosigners have different keys, and the quorum is 1 to their number.")
    return View(origin, log, known, quorum)


def advance(view: View, fetch: Fetch, now: float, max_age_seconds: float = MAX_AGE_SECONDS) -> View:
    """The view after the log's newest checkpoint was fetched and checked.

    Raises:
        Forked: the log contradicts the checkpoint held: another root, or fewer entries. A smaller tree can also be an
            old copy that somebody keeps; either way it is not gone back to.
        TransparencyError: the checkpoint is not signed, too old, from the future, or its tiles are missing or wrong.
    """
    held = view.checkpoint
    data = fetch(CHECKPOINT_PATH)
    signed = open_checkpoint(data, view.origin, view.log, view.cosigners)
    offered = signed.checkpoint
    forward = replace(view, signed=signed)
    if offered.size < held.size:
        raise Forked(
            f"the log offers {offered.size} entries after {held.size} were seen; a log only grows.", view.note, data
        )
    path: Sequence[bytes] = ()
    if held.size < offered.size:
        tree = VerifiedTree(fetch, offered.size, offered.root)
        path = consistency_path(held.size, offered.size, tree.node) if held.size else ()
    if view.signed:
        comparison = compare(view.signed, signed, path)
        if comparison.error:
            raise comparison.error
    newest = forward if offered.size > held.size or forward.time >= view.time else view
    check_fresh(newest, now, max_age_seconds)
    return newest


def check_fresh(view: View, now: float, max_age_seconds: float = MAX_AGE_SECONDS) -> None:
    """Checks that cosigners said of the view's checkpoint, at most `max_age_seconds` ago, that it is the newest.

    Raises:
        TransparencyError: they said so before that, or more than 5 minutes after `now`, or too few did.
    """
    if view.signed is None:
        raise TransparencyError("no checkpoint of the log was seen yet.")
    if now - view.time > max_age_seconds:
        raise TransparencyError(
            f"the checkpoint was the newest {now - view.time:.0f} seconds ago; it may be {max_age_seconds:.0f}."
        )
    if view.time - now > MAX_AHEAD_SECONDS:
        raise TransparencyError(f"the checkpoint is dated {view.time - now:.0f} seconds after now.")


def compare(one: Signed, other: Signed, path: Sequence[bytes] = ()) -> Comparison:
    """What two checkpoints of one log, whose signatures were checked, say of each other: as two clients do who saw one
    each. `path` is `merkle.consistency_path` from the smaller to the larger, where there is one.

    Raises:
        TransparencyError: they are of different logs, or the path does not lead to the larger one's root.
    """
    if one.checkpoint.origin != other.checkpoint.origin:
        raise TransparencyError("the checkpoints are of different logs.")
    notes = encode_note(one.note), encode_note(other.note)
    old, new = sorted((one.checkpoint, other.checkpoint), key=lambda each: each.size)
    if old.size == new.size:
        if old.root == new.root:
            return Comparison("consistent")
        return Comparison("forked", Forked(f"the log signed two trees of {old.size} entries.", *notes))
    if old.size == 0:
        return Comparison("consistent")
    if not path:
        return Comparison("needs a proof")
    old_root, new_root = roots_of_path(old.size, new.size, path)
    if new_root != new.root:
        raise TransparencyError("the consistency path does not lead to the larger tree's root.")
    if old_root == old.root:
        return Comparison("consistent")
    message = f"the log's tree of {new.size} entries does not begin with its tree of {old.size}."
    return Comparison("forked", Forked(message, *notes, tuple(path)))


def entries(view: View, fetch: Fetch, begin: int = 0) -> Iterator[tuple[int, bytes]]:
    """(index, entry) of all entries from `begin` on, each checked against the view's checkpoint. What they say is read
    by `leaves.decode`, which refuses an entry of a kind that it does not know.

    Raises:
        TransparencyError: a file is missing or wrong.
    """
    return VerifiedTree(fetch, view.checkpoint.size, view.checkpoint.root).entries(begin)


def prove(view: View, fetch: Fetch, index: int) -> list[bytes]:
    """An inclusion proof of entry `index` in the view's tree: at most 63 hashes of 32 bytes.

    Raises:
        TransparencyError: there is no such entry, or a tile is missing or wrong.
    """
    checkpoint = view.checkpoint
    tree = VerifiedTree(fetch, checkpoint.size, checkpoint.root)
    return inclusion_proof(index, checkpoint.size, tree.node)


def check(leaf: bytes, index: int, proof: Sequence[bytes], checkpoint: Checkpoint) -> None:
    """Checks that the entry `leaf` is number `index` of the checkpoint's tree.

    Raises:
        TransparencyError: the proof does not show it.
    """
    verify_inclusion(index, checkpoint.size, leaf_hash(leaf), proof, checkpoint.root)


def save_view(view: View, path: Path) -> None:
    """Writes the view as JSON, whole or not at all.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    stored = {
        "origin": view.origin,
        "vkey": encode_vkey(view.log),
        "cosigners": [encode_vkey(each) for each in view.cosigners],
        "quorum": view.quorum,
        "note": view.note.decode(),
    }
    write_text(path, json.dumps(stored, indent=2) + "\n")


def load_view(path: Path) -> View:
    """The view that `save_view` wrote; its signatures are checked again.

    Raises:
        TransparencyError: the file is damaged.
        OSError: it cannot be read.
    """
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
        note = stored.note.encode()
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise TransparencyError(f"{path} is not a log's view as it was saved.") from error
    view = new_view(stored.origin, stored.vkey, stored.cosigners, stored.quorum)
    if not note:
        return view
    return replace(view, signed=open_checkpoint(note, view.origin, view.log, view.cosigners))

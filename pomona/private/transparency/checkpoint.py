"""Checkpoints: what a log says of itself, signed (C2SP tlog-checkpoint), and when somebody saw that it was the newest
(C2SP tlog-cosignature, `cosignature/v1`).

A checkpoint's text is an origin, the number of entries, the root, and possibly lines of extensions. A cosigner says
with a time that this was the largest consistent tree that it had seen by then: a witness says so, or the log itself,
which dates a checkpoint without a witness.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.merkle import EMPTY_ROOT, HASH_BYTES
from pomona.private.transparency.note import (
    COSIGNATURE,
    COSIGNED_HEADER,
    SIGNATURE_BYTES,
    Note,
    Signer,
    Verifier,
    is_signature,
    known_signatures,
    note_text_bytes,
    parse_note,
    sign_bytes,
    sign_note,
    verifier_of,
    verify_note,
    with_signature,
)
from pomona.private.transparency.text import decode_base64, decode_decimal, encode_base64

TIME_BYTES = 8
MOST_TIME_SECONDS = (1 << 63) - 1


@dataclass(frozen=True)
class Checkpoint:
    """The tree of the first `size` entries of the log `origin`; the root has 32 bytes."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signed:
    """A checkpoint whose signatures were checked.

    `times` is when each known cosigner last said that it was the newest, in seconds since the epoch, newest first.
    """

    checkpoint: Checkpoint
    note: Note
    times: tuple[int, ...]


def format_checkpoint(checkpoint: Checkpoint) -> str:
    """The text that is signed (C2SP tlog-checkpoint, "Note text").

    Raises:
        TransparencyError: it is not what `parse_checkpoint` reads.
    """
    lines = [checkpoint.origin, str(checkpoint.size), encode_base64(checkpoint.root), *checkpoint.extensions]
    text = "".join(line + "\n" for line in lines)
    if parse_checkpoint(text) != checkpoint:
        raise TransparencyError("an origin and extensions are lines: not empty, and without newlines.")
    return text


def parse_checkpoint(text: str) -> Checkpoint:
    """A checkpoint from a note's text (C2SP tlog-checkpoint, "Note text").

    Raises:
        TransparencyError: it has fewer than three lines, an empty line, or a size or a root that is none.
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
        raise TransparencyError("a checkpoint is at least three lines, none of them empty.")
    size = decode_decimal(lines[1], "a checkpoint's size")
    root = decode_base64(lines[2], "a checkpoint's root")
    if len(root) != HASH_BYTES:
        raise TransparencyError(f"a checkpoint's root has {HASH_BYTES} bytes.")
    if size == 0 and root != EMPTY_ROOT:
        raise TransparencyError("the root of no entries is the hash of nothing.")
    return Checkpoint(lines[0], size, root, tuple(lines[3:-1]))


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer) -> Note:
    """The checkpoint with the log's signature, of type 1.

    Raises:
        TransparencyError: it cannot be written as one.
    """
    return sign_note(Note(format_checkpoint(checkpoint)), signer)


def cosign(note: Note, cosigner: Signer, now: float) -> Note:
    """`note` with a cosignature, made at `now`, that its checkpoint is the newest (C2SP tlog-cosignature, "Format").

    Whoever cosigns has to have seen that it is consistent with all that it cosigned before.

    Raises:
        TransparencyError: the note is no checkpoint, or `now` is before 1970 or beyond 2^63 - 1 seconds.
    """
    parse_checkpoint(note.text)
    if not 0 <= now <= MOST_TIME_SECONDS:
        raise TransparencyError("a cosignature's time is 0 to 2^63 - 1 seconds.")
    seconds = int(now)
    data = seconds.to_bytes(TIME_BYTES, "big") + sign_bytes(cosigner, _cosigned(note, seconds))
    return with_signature(note, verifier_of(cosigner, COSIGNATURE), data)


def open_checkpoint(data: bytes, origin: str, log: Verifier, cosigners: Sequence[Verifier] = ()) -> Signed:
    """A checkpoint of the log `origin` from its note: signed by `log`, with the times that `cosigners` said.

    Raises:
        TransparencyError: it is malformed or another log's, the log did not sign it, or a known key's signature is
            wrong. Signatures of unknown keys are ignored.
    """
    note = parse_note(data)
    verify_note(note, [log])
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != origin:
        raise TransparencyError("the checkpoint is of another log: its origin is not the expected one.")
    return Signed(checkpoint, note, tuple(sorted(cosigned_times(note, cosigners).values(), reverse=True)))


def cosigned_times(note: Note, cosigners: Sequence[Verifier]) -> dict[Verifier, int]:
    """When each of `cosigners`, keys of type 4, last cosigned; those that did not are left out.

    Raises:
        TransparencyError: a known key's cosignature is wrong, or two cosigners share a key and would count twice.
    """
    if len({cosigner.public_key for cosigner in cosigners}) != len(cosigners):
        raise TransparencyError("two cosigners have the same key.")
    times: dict[Verifier, int] = {}
    for cosigner, signature in known_signatures(note, cosigners, COSIGNATURE):
        seconds = int.from_bytes(signature.data[:TIME_BYTES], "big")
        signed = signature.data[TIME_BYTES:]
        if len(signed) != SIGNATURE_BYTES or seconds > MOST_TIME_SECONDS:
            raise TransparencyError(f"the cosignature of {cosigner.name} is not a time and an Ed25519 signature.")
        if not is_signature(cosigner, signed, _cosigned(note, seconds)):
            raise TransparencyError(f"the cosignature of {cosigner.name} is wrong.")
        times[cosigner] = max(seconds, times.get(cosigner, 0))
    return times


def verified_time(signed: Signed, quorum: int = 1) -> int:
    """The last second that `quorum` cosigners, each at that second or later, said that this checkpoint was the newest.

    Raises:
        TransparencyError: fewer cosigned it.
    """
    if len(signed.times) < quorum:
        raise TransparencyError(f"{len(signed.times)} known cosigners dated the checkpoint; {quorum} have to.")
    return signed.times[quorum - 1]


def _cosigned(note: Note, seconds: int) -> bytes:
    """What an Ed25519 cosigner signs (C2SP tlog-cosignature, "Ed25519 signed message")."""
    return f"{COSIGNED_HEADER}time {seconds}\n".encode() + note_text_bytes(note.text)

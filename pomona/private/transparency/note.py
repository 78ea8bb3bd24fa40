"""Signed notes (C2SP signed-note): a text, then a line for each signature, by keys that are lines of text themselves.

    verifier key   NAME+KEYID+BASE64(type, 32-byte public key)
    signer key     PRIVATE+KEY+NAME+KEYID+BASE64(1, 32-byte seed)

A key of type 1 signs notes. The same seed, as a key of type 4, cosigns checkpoints with a time
(`pomona.private.transparency.checkpoint`): another key id, and another message, which never is a note's.
"""

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.text import decode_base64, decode_hex, encode_base64

ED25519, COSIGNATURE = 0x01, 0x04  # C2SP signed-note, "Signature types"
KEY_BYTES, SIGNATURE_BYTES, KEY_ID_BYTES = 32, 64, 4
MOST_NOTE_BYTES, MOST_SIGNATURES = 1 << 20, 100
LINE_START = "— "
COSIGNED_HEADER = "cosignature/v1\n"  # C2SP tlog-cosignature: no note's signature is a cosignature


@dataclass(frozen=True)
class Verifier:
    """Whose signatures are believed: a name, a signature type (1 or 4) and an Ed25519 public key of 32 bytes."""

    name: str
    signature_type: int
    public_key: bytes


@dataclass(frozen=True)
class Signer:
    """Who signs: a name and the 32-byte seed of an Ed25519 key (RFC 8032), which is not shown."""

    name: str
    seed: bytes = field(repr=False)


@dataclass(frozen=True)
class Signature:
    """A line of a note: the key's name, its id of 4 bytes, and what it signed with, 64 or more bytes, or another's."""

    name: str
    key_id: bytes
    data: bytes


@dataclass(frozen=True)
class Note:
    """A text, which ends with a newline, and its signatures, of which nothing is known yet."""

    text: str
    signatures: tuple[Signature, ...] = ()


def generate_signer(name: str) -> Signer:
    """A new key.

    Raises:
        TransparencyError: the name is empty or holds spaces, control characters or a plus.
    """
    _check_name(name)
    return Signer(name, secrets.token_bytes(KEY_BYTES))


def verifier_of(signer: Signer, signature_type: int = ED25519) -> Verifier:
    """What others need to check `signer`: its notes (type 1) or its cosignatures (type 4)."""
    public_key = Ed25519PrivateKey.from_private_bytes(signer.seed).public_key().public_bytes_raw()
    return Verifier(signer.name, signature_type, public_key)


def key_id(verifier: Verifier) -> bytes:
    """The 4 bytes that name a key in a signature line (C2SP signed-note, "Signatures")."""
    material = verifier.name.encode() + b"\n" + bytes([verifier.signature_type]) + verifier.public_key
    return hashlib.sha256(material).digest()[:KEY_ID_BYTES]


def encode_vkey(verifier: Verifier) -> str:
    """The verifier key as text (C2SP signed-note, "Verifier keys")."""
    material = bytes([verifier.signature_type]) + verifier.public_key
    return f"{verifier.name}+{key_id(verifier).hex()}+{encode_base64(material)}"


def decode_vkey(text: str) -> Verifier:
    """A verifier key from its text (C2SP signed-note, "Verifier keys").

    Raises:
        TransparencyError: it is no such text, of another signature type, or its key id is another key's.
    """
    parts = text.split("+", 2)
    if len(parts) != 3:
        raise TransparencyError("a verifier key is NAME+KEYID+BASE64.")
    name, named_id, encoded = parts
    _check_name(name)
    material = decode_base64(encoded, "a verifier key")
    if len(material) != 1 + KEY_BYTES or material[0] not in (ED25519, COSIGNATURE):
        raise TransparencyError("a verifier key is of type 1 or 4 and holds an Ed25519 key of 32 bytes.")
    verifier = Verifier(name, material[0], material[1:])
    if decode_hex(named_id, "a verifier key's id", (KEY_ID_BYTES,)) != key_id(verifier):
        raise TransparencyError("a verifier key's id is not the hash of its name and key.")
    return verifier


def encode_skey(signer: Signer) -> str:
    """The signer key as text, to be kept secret, as Go's sumdb/note writes it."""
    named_id = key_id(verifier_of(signer)).hex()
    return f"PRIVATE+KEY+{signer.name}+{named_id}+{encode_base64(bytes([ED25519]) + signer.seed)}"


def decode_skey(text: str) -> Signer:
    """A signer key from its text, as Go's sumdb/note writes it.

    Raises:
        TransparencyError: it is no such text, or its key id is another key's. The text is not quoted.
    """
    parts = text.split("+", 4)
    if len(parts) != 5 or parts[:2] != ["PRIVATE", "KEY"]:
        raise TransparencyError("a signer key is PRIVATE+KEY+NAME+KEYID+BASE64.")
    name, named_id, encoded = parts[2:]
    _check_name(name)
    material = decode_base64(encoded, "a signer key")
    if len(material) != 1 + KEY_BYTES or material[0] != ED25519:
        raise TransparencyError("a signer key is of type 1 and holds an Ed25519 seed of 32 bytes.")
    signer = Signer(name, material[1:])
    if decode_hex(named_id, "a signer key's id", (KEY_ID_BYTES,)) != key_id(verifier_of(signer)):
        raise TransparencyError("a signer key's id is not the hash of its name and public key.")
    return signer


def encode_note(note: Note) -> bytes:
    """The note as it is published, in UTF-8.

    Raises:
        TransparencyError: it is not what `parse_note` reads.
    """
    lines = [f"{LINE_START}{each.name} {encode_base64(each.key_id + each.data)}\n" for each in note.signatures]
    for signature in note.signatures:
        _check_name(signature.name)
    data = note_text_bytes(note.text) + b"\n" + "".join(lines).encode()
    if parse_note(data) != note:
        raise TransparencyError("a note's signatures have key ids of 4 bytes, and there are 1 to 100.")
    return data


def parse_note(data: bytes) -> Note:
    """The text and the signatures of a note of at most 1 MiB and 100 signatures; none of them is checked.

    Raises:
        TransparencyError: it is not of that form (C2SP signed-note, "Format").
    """
    if len(data) > MOST_NOTE_BYTES:
        raise TransparencyError(f"a note has at most {MOST_NOTE_BYTES} bytes.")
    try:
        whole = data.decode()
    except UnicodeDecodeError as error:
        raise TransparencyError("a note is UTF-8.") from error
    note_text_bytes(whole)
    text, blank, lines = whole.rpartition("\n\n")
    if not blank or not lines:
        raise TransparencyError("a note is a text, an empty line, and signature lines.")
    rows = lines[:-1].split("\n")
    if len(rows) > MOST_SIGNATURES:
        raise TransparencyError(f"a note has at most {MOST_SIGNATURES} signatures.")
    return Note(text + "\n", tuple(_parse_line(row) for row in rows))


def _parse_line(row: str) -> Signature:
    name, space, encoded = row.removeprefix(LINE_START).partition(" ")
    if not row.startswith(LINE_START) or not space:
        raise TransparencyError("a signature line is a long dash, a name and a signature, with spaces between them.")
    _check_name(name)
    data = decode_base64(encoded, "a signature")
    if len(data) <= KEY_ID_BYTES:
        raise TransparencyError("a signature begins with a key id of 4 bytes and goes on.")
    return Signature(name, data[:KEY_ID_BYTES], data[KEY_ID_BYTES:])


def sign_note(note: Note, signer: Signer) -> Note:
    """`note` with a signature of `signer` after the others; an older one of the same key is dropped.

    Raises:
        TransparencyError: the text is none that a note can have, or begins as what a cosigner signs does, which a key
            that does both must not sign as a note.
    """
    if note.text.startswith(COSIGNED_HEADER):
        raise TransparencyError(f"a note does not begin with {COSIGNED_HEADER}.")
    return with_signature(note, verifier_of(signer), sign_bytes(signer, note_text_bytes(note.text)))


def verify_note(note: Note, known: Sequence[Verifier]) -> list[Verifier]:
    """Who of the known keys, all of type 1, signed the note: at least one. Signatures of others are ignored.

    Raises:
        TransparencyError: no known key signed it, or a known key's signature is wrong.
    """
    message = note_text_bytes(note.text)
    signed = []
    for verifier, signature in known_signatures(note, known, ED25519):
        if not is_signature(verifier, signature.data, message):
            raise TransparencyError(f"the signature of {verifier.name} is wrong.")
        signed.append(verifier)
    if not signed:
        raise TransparencyError("no known key signed the note.")
    return list(dict.fromkeys(signed))


def known_signatures(
    note: Note, known: Sequence[Verifier], signature_type: int
) -> Iterator[tuple[Verifier, Signature]]:
    """The signatures of `known` keys, by name and key id, not checked yet.

    Raises:
        TransparencyError: a key is of another type than `signature_type`, or two have one name and id.
    """
    if any(verifier.signature_type != signature_type for verifier in known):
        raise TransparencyError(f"a key of signature type {signature_type} is needed here.")
    by_id = {(verifier.name, key_id(verifier)): verifier for verifier in known}
    if len(by_id) != len(known):
        raise TransparencyError("two of the known keys have the same name and key id.")
    for signature in note.signatures:
        verifier = by_id.get((signature.name, signature.key_id))
        if verifier is not None:
            yield verifier, signature


def with_signature(note: Note, verifier: Verifier, data: bytes) -> Note:
    """`note` with one signature more, by the key that `verifier` checks; an older one of that key is dropped."""
    own = key_id(verifier)
    others = [each for each in note.signatures if (each.name, each.key_id) != (verifier.name, own)]
    return Note(note.text, (*others, Signature(verifier.name, own, data)))


def sign_bytes(signer: Signer, message: bytes) -> bytes:
    """An Ed25519 signature, 64 bytes (RFC 8032)."""
    return Ed25519PrivateKey.from_private_bytes(signer.seed).sign(message)


def is_signature(verifier: Verifier, data: bytes, message: bytes) -> bool:
    """Whether `data` is the key's Ed25519 signature of `message` (RFC 8032)."""
    try:
        Ed25519PublicKey.from_public_bytes(verifier.public_key).verify(data, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def note_text_bytes(text: str) -> bytes:
    """What is signed of a note: its text in UTF-8.

    Raises:
        TransparencyError: it does not end with a newline, or holds control characters or halves of characters.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise TransparencyError("a note is Unicode text.") from error
    if any(character < " " and character != "\n" for character in text) or not text.endswith("\n"):
        raise TransparencyError("a note's text ends with a newline and holds no control characters but newlines.")
    return data


def _check_name(name: str) -> None:
    """C2SP signed-note, "Format"; halves of characters have no UTF-8."""
    if not name or any(each in "+" or each.isspace() or each < " " or "\ud800" <= each <= "\udfff" for each in name):
        raise TransparencyError("a key's name is not empty and holds no spaces, control characters or pluses.")

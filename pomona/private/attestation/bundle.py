"""What a node hands out of itself: its keys, how long they are good, and what proves that.

The claims name both keys, the release that the node runs, and their validity. Whatever signs for the node, a TPM or a
processor, signs their digest along: none of them can be exchanged. A bundle is JSON in one form, so that its SHA-256,
the node's identity, stands for all of it.
"""

import base64
import dataclasses
import hashlib
import json
from typing import Any

import msgspec

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.evidence import TpmEvidence

LONGEST_SECONDS = 24 * 3600
MOST_BYTES = 1 << 18
POINT_BYTES, MLKEM_BYTES, DIGEST_BYTES = 65, 1184, 32
_LABEL = b"pomona private cloud claims v1\0"


@dataclasses.dataclass(frozen=True)
class Claims:
    """What a node says of itself."""

    point: bytes
    """Its P-256 key, uncompressed: 65 bytes."""
    mlkem: bytes = dataclasses.field(repr=False)
    """Its ML-KEM-768 key: 1184 bytes."""
    release: bytes
    """The log's leaf hash of what it runs: 32 bytes."""
    not_before: int
    expires: int
    """Seconds since the epoch."""


@dataclasses.dataclass(frozen=True)
class ProcessorEvidence:
    """What a processor that encrypts its memory says, by its kind: `tdx` or `sev-snp`."""

    kind: str
    report: bytes = dataclasses.field(repr=False)
    certificates: tuple[bytes, ...] = dataclasses.field(default=(), repr=False)
    """Of SEV-SNP: VCEK or VLEK, ASK, ARK, in DER. A TDX quote has its own."""


@dataclasses.dataclass(frozen=True)
class ReleaseProof:
    """That the release is in the log: the leaf itself, where it is, the path up, and the root as the log signed it."""

    leaf: bytes
    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes


@dataclasses.dataclass(frozen=True)
class Bundle:
    """All of it. A node without a TPM has the claims and the proof alone."""

    claims: Claims
    proof: ReleaseProof
    tpm: TpmEvidence | None = None
    processor: ProcessorEvidence | None = None


def claims_digest(claims: Claims) -> bytes:
    """What TPM and processor sign along: 32 bytes over the claims."""
    return hashlib.sha256(_LABEL + _text(_fields(claims))).digest()


def identity_of(content: bytes) -> bytes:
    """A node's identity: SHA-256 of its bundle's bytes."""
    return hashlib.sha256(content).digest()


def encode_bundle(bundle: Bundle) -> bytes:
    """The bundle's one form."""
    return _text(_fields(bundle))


def decode_bundle(content: bytes) -> Bundle:
    """Reads a bundle; nothing of it is judged yet.

    Raises:
        AttestationError: it is larger than 256 KiB, not of the form, or not in its one form.
    """
    if len(content) > MOST_BYTES:
        raise AttestationError(f"a bundle has {len(content)} bytes; {MOST_BYTES} at most.")
    try:
        bundle = msgspec.json.decode(content, type=Bundle, strict=True)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise AttestationError("a bundle is not JSON of a bundle's form.") from error
    if encode_bundle(bundle) != content:
        raise AttestationError("a bundle is not in its one form: keys sorted, no spaces, nothing besides.")
    claims = bundle.claims
    sizes = (len(claims.point), len(claims.mlkem), len(claims.release))
    if sizes != (POINT_BYTES, MLKEM_BYTES, DIGEST_BYTES):
        raise AttestationError(f"a bundle's keys and release have {sizes} bytes; {POINT_BYTES}, {MLKEM_BYTES}, 32.")
    return bundle


def _fields(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {field.name: _fields(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {name: content for name, content in found.items() if content is not None}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return [_fields(each) for each in value] if isinstance(value, tuple) else value


def _text(fields: Any) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

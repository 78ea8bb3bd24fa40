"""A request that any one of up to 8 nodes can open, and its answer, which only the node that opened it can write.

    Request
      version (1) = 1
      suite (8) = KEM 0x0010, KDF 0x0001, AEAD 0x0001, then 0x0041 for ML-KEM-768
      number of nodes (1) = 1 to 8
      for each node, 1233 bytes:
        its identity (32)   its enc (65)   its ML-KEM ciphertext (1088)   the content key, wrapped (48)
      chunks of the plaintext (chunks.py, delimited), AES-128-GCM

    Answer
      identity of the node (32)   nonce (32)
      chunks of the answer (chunks.py, delimited), AES-128-GCM; each holds
        length of the data (variable-length integer)   data   zeros up to a multiple of a bucket

The header is all before the chunks; its first 10 bytes are the preamble.

Wrapping. The content key, 32 random bytes, is sealed to each node by HPKE (RFC 9180) in mode PSK, DHKEM over P-256,
HKDF-SHA256 and AES-128-GCM. The pre-shared key is the secret of ML-KEM-768 (FIPS 203) against the node's ML-KEM key,
and its name the SHA-256 of the ciphertext; info is "pomona envelope request", a zero byte, the preamble and the
identity of the node; the associated data are the identities of all nodes, in their order. To open it takes both
secrets.

Chunks of the request. Key and base nonce are HKDF-Expand(prk, "key", 16) and HKDF-Expand(prk, "nonce", 12), where prk
= HKDF-Extract(SHA-256(header), content key): if any byte of the header is changed, no chunk opens.

Chunks of the answer. The same, where prk = HKDF-Extract(enc || nonce, secret) as in RFC 9458, section 4.4, and secret
is 32 bytes exported from the node's HPKE context for "pomona envelope answer", a zero byte and SHA-256(request), all
of its bytes. So an answer opens only if it is to what the client sent. (Each of the nodes gets the content key, so it
could seal other chunks, or another header with the same entry, for another of them: that one would open it, but the
client could not open its answer.)

What is visible: how many nodes and which, the length of the plaintext (padding.py hides it), and when each piece of the
answer was sent, in buckets. Replay is not prevented here: nodes remember `replay_digest`.
"""

import dataclasses
import hashlib
import secrets
from collections.abc import Sequence

from pomona.private.sealing import hkdf, hpke, mlkem
from pomona.private.sealing.aead import AES_128_GCM, NONCE_BYTES, TAG_BYTES, Opener, Sealer
from pomona.private.sealing.answer import BUCKET_BYTES, IDENTITY_BYTES, AnswerKey, AnswerKeys, AnswerSealer
from pomona.private.sealing.chunks import ChunkOpener, ChunkSealer
from pomona.private.sealing.cursor import Cursor
from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.kem import P256, PrivateKey
from pomona.private.sealing.mlkem import Decapsulator

MOST_NODES = 8
_SUITE = hpke.Suite(P256, AES_128_GCM)
_VERSION = b"\1"
_ML_KEM_768 = b"\0\x41"
_PREAMBLE = _VERSION + hpke.suite_ids(_SUITE) + _ML_KEM_768
_CONTENT_KEY_BYTES = 32
_LABEL = b"pomona envelope request\0"
_ANSWER_LABEL = b"pomona envelope answer\0"
_ANSWER_SECRET_BYTES = 32


@dataclasses.dataclass(frozen=True)
class Recipient:
    """A node that a client asks."""

    identity: bytes
    """32 bytes."""
    public_key: bytes
    """Of P-256: 65 bytes."""
    mlkem_public_key: bytes = dataclasses.field(repr=False)
    """1184 bytes."""


@dataclasses.dataclass(frozen=True)
class NodeKey:
    """A node's own keys. The first may be in a TPM."""

    identity: bytes
    private: PrivateKey = dataclasses.field(repr=False)
    mlkem: Decapsulator = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """What a header has for one node."""

    identity: bytes
    enc: bytes
    ciphertext: bytes
    wrapped: bytes


def seal_request(recipients: Sequence[Recipient], plaintext: bytes) -> tuple[bytes, AnswerKeys]:
    """A request that each of 1 to 8 nodes can open, and what opens its answer (answer.AnswerOpener).

    The caller pads the plaintext (padding.padded). The request is 10 bytes longer, 1233 for each node, and 16 and the
    bytes of a length for each chunk of 16384.

    Raises:
        SealingError: no node, more than 8, one twice, or a key or an identity that is none.
    """
    identities = [recipient.identity for recipient in recipients]
    _check_identities(identities)
    preamble = _PREAMBLE + bytes([len(identities)])
    content_key = secrets.token_bytes(_CONTENT_KEY_BYTES)
    contexts: list[tuple[bytes, bytes, hpke.SenderContext]] = []
    header = preamble
    for recipient in recipients:
        secret, ciphertext = mlkem.encapsulate(recipient.mlkem_public_key)
        info = _info(preamble, recipient.identity)
        enc, context = hpke.setup_sender(_SUITE, recipient.public_key, info, secret, _psk_id(ciphertext))
        header += recipient.identity + enc + ciphertext + context.seal(b"".join(identities), content_key)
        contexts.append((recipient.identity, enc, context))
    sealer = Sealer(AES_128_GCM, *_content_keys(header, content_key))
    request = header + ChunkSealer(sealer.seal, delimited=True).chunk(plaintext, final=True)
    digest = hashlib.sha256(request).digest()
    return request, {identity: _answer_key(context, enc, digest) for identity, enc, context in contexts}


def open_request(node: NodeKey, data: bytes, bucket_bytes: int = BUCKET_BYTES) -> tuple[bytes, AnswerSealer]:
    """The plaintext of a request, with its padding, and what seals the answer in pieces of `bucket_bytes`.

    What the node's key objects raise comes through.

    Raises:
        SealingError: it is none, or truncated, or not for this node, or a byte of it was changed.
    """
    cursor = Cursor(data)
    preamble, entries = _read_header(cursor)
    header = data[: cursor.position]
    entry = next((entry for entry in entries if entry.identity == node.identity), None)
    if entry is None:
        raise SealingError("The request is not for this node: its identity is not in the header.")
    secret = node.mlkem.decapsulate(entry.ciphertext)
    info = _info(preamble, node.identity)
    context = hpke.setup_recipient(_SUITE, entry.enc, node.private, info, secret, _psk_id(entry.ciphertext))
    content_key = context.open(b"".join(entry.identity for entry in entries), entry.wrapped)
    opener = ChunkOpener(Opener(AES_128_GCM, *_content_keys(header, content_key)).open, delimited=True)
    plaintext = b"".join(opener.feed(cursor.take(cursor.left, "the chunks")))
    opener.close()
    key = _answer_key(context, entry.enc, hashlib.sha256(data).digest())
    return plaintext, AnswerSealer(node.identity, key, bucket_bytes)


def node_identities(data: bytes) -> tuple[bytes, ...]:
    """The nodes that a request is for, by its header alone: nothing of it is authentic yet.

    Raises:
        SealingError: the header is none, or truncated.
    """
    return tuple(entry.identity for entry in _read_header(Cursor(data))[1])


def replay_digest(data: bytes) -> bytes:
    """SHA-256 of a request's header, 32 bytes: a node serves no two requests with the same.

    Behind another header the same chunks do not open.

    Raises:
        SealingError: the header is none, or truncated.
    """
    cursor = Cursor(data)
    _read_header(cursor)
    return hashlib.sha256(data[: cursor.position]).digest()


def _read_header(cursor: Cursor) -> tuple[bytes, tuple[_Entry, ...]]:
    """The preamble and what there is for each node."""
    preamble = cursor.take(len(_PREAMBLE) + 1, "the header")
    if preamble[:-1] != _PREAMBLE:
        raise SealingError("The request is of another version or suite: 1, with P-256, AES-128-GCM and ML-KEM-768.")
    if not 1 <= preamble[-1] <= MOST_NODES:
        raise SealingError(f"The request is for {preamble[-1]} nodes: 1 to {MOST_NODES}.")
    sizes = (IDENTITY_BYTES, P256.public_key_bytes, mlkem.CIPHERTEXT_BYTES, _CONTENT_KEY_BYTES + TAG_BYTES)
    entries = tuple(_Entry(*(cursor.take(size, "the header") for size in sizes)) for _ in range(preamble[-1]))
    _check_identities([entry.identity for entry in entries])
    return preamble, entries


def _check_identities(identities: Sequence[bytes]) -> None:
    if not 1 <= len(identities) <= MOST_NODES or len(set(identities)) != len(identities):
        raise SealingError(f"A request is for {len(identities)} nodes: 1 to {MOST_NODES}, each once.")
    if any(len(identity) != IDENTITY_BYTES for identity in identities):
        raise SealingError(f"A node's identity has another length: {IDENTITY_BYTES} bytes.")


def _info(preamble: bytes, identity: bytes) -> bytes:
    return _LABEL + preamble + identity


def _psk_id(ciphertext: bytes) -> bytes:
    return hashlib.sha256(ciphertext).digest()


def _content_keys(header: bytes, content_key: bytes) -> tuple[bytes, bytes]:
    prk = hkdf.extract(hashlib.sha256(header).digest(), content_key)
    return hkdf.expand(prk, b"key", AES_128_GCM.key_bytes), hkdf.expand(prk, b"nonce", NONCE_BYTES)


def _answer_key(context: hpke.SenderContext | hpke.RecipientContext, enc: bytes, digest: bytes) -> AnswerKey:
    return AnswerKey(enc, context.export(_ANSWER_LABEL + digest, _ANSWER_SECRET_BYTES))

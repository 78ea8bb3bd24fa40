"""The answer to an envelope (envelope.py has its layout), sealed piece by piece by the node that opened the request."""

import dataclasses
import secrets
from collections.abc import Mapping

from pomona.private.sealing import hkdf, varint
from pomona.private.sealing.aead import AES_128_GCM, NONCE_BYTES, Opener, Sealer
from pomona.private.sealing.chunks import CHUNK_BYTES, ChunkOpener, ChunkSealer, HeadedOpener
from pomona.private.sealing.cursor import Cursor
from pomona.private.sealing.errors import SealingError

IDENTITY_BYTES, RANDOM_BYTES = 32, 32
HEAD_BYTES = IDENTITY_BYTES + RANDOM_BYTES
BUCKET_BYTES = 256
_MOST_LENGTH_BYTES = 2  # of a length below CHUNK_BYTES


@dataclasses.dataclass(frozen=True)
class AnswerKey:
    """What client and one node have in common, once the request is sealed or opened. A secret."""

    enc: bytes
    secret: bytes = dataclasses.field(repr=False)
    """32 bytes."""


AnswerKeys = Mapping[bytes, AnswerKey]
"""By the identities of the nodes that were asked."""


class AnswerSealer:
    """Seals one answer at a node."""

    def __init__(self, identity: bytes, key: AnswerKey, bucket_bytes: int = BUCKET_BYTES) -> None:
        """Every chunk's plaintext takes a multiple of `bucket_bytes`, 1 to 16384; `identity` has 32 bytes.

        Raises:
            SealingError: it is another number.
        """
        if not 1 <= bucket_bytes <= CHUNK_BYTES:
            raise SealingError(f"A bucket has {bucket_bytes} bytes: 1 to {CHUNK_BYTES}.")
        self._bucket = bucket_bytes
        self._piece_bytes = CHUNK_BYTES // bucket_bytes * bucket_bytes - _MOST_LENGTH_BYTES
        self._head = identity + secrets.token_bytes(RANDOM_BYTES)
        self._chunks = ChunkSealer(Sealer(AES_128_GCM, *_keys(key, self._head)).seal, delimited=True)

    def head(self) -> bytes:
        """The first 64 bytes of the answer."""
        return self._head

    def chunk(self, data: bytes, final: bool = False) -> bytes:
        """Some of the answer, sealed: a chunk for up to about 16 KiB of data; the last one may be without data.

        Raises:
            SealingError: the last chunk was sealed before.
        """
        if self._chunks.finished:
            raise SealingError("A chunk comes after the last one: an answer ends once.")
        starts = range(0, len(data), self._piece_bytes) or ([0] if final else [])
        pieces = [data[start : start + self._piece_bytes] for start in starts]
        ends = [final and number == len(pieces) for number in range(1, len(pieces) + 1)]
        return b"".join(self._chunks.chunk(self._framed(piece), end) for piece, end in zip(pieces, ends))

    def _framed(self, piece: bytes) -> bytes:
        framed = varint.encode(len(piece)) + piece
        return framed.ljust(-(-len(framed) // self._bucket) * self._bucket, b"\0")


class AnswerOpener:
    """Opens one answer at the client, from bytes cut in any way. After an error nothing more is opened."""

    def __init__(self, keys: AnswerKeys) -> None:
        """`keys` are those that `envelope.seal_request` gave with the request."""
        self._keys = keys
        self._opener = HeadedOpener(self._read_head)
        self.identity: bytes | None = None
        """Of the node that answers, once the head has come."""

    @property
    def finished(self) -> bool:
        """Whether the last chunk was opened: only then is the answer whole."""
        return self._opener.finished

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of the answer that these bytes complete, in order, none of them empty.

        Raises:
            SealingError: the node was not asked; or a chunk is not the next one of an answer to this request; or bytes
                come after the last; or the answer was refused before.
        """
        return self._opener.feed(data)

    def close(self) -> None:
        """Says that no more bytes come.

        Raises:
            SealingError: the answer is truncated, or was refused before.
        """
        self._opener.close()

    def _read_head(self, cursor: Cursor) -> ChunkOpener:
        head = cursor.take(HEAD_BYTES, "the head of the answer")
        key = self._keys.get(head[:IDENTITY_BYTES])
        if key is None:
            raise SealingError("The answer is of a node that was not asked: its identity is not in the request.")
        self.identity = head[:IDENTITY_BYTES]
        opener = Opener(AES_128_GCM, *_keys(key, head))
        return ChunkOpener(lambda aad, sealed: _unframed(opener.open(aad, sealed)), delimited=True)


def _keys(key: AnswerKey, head: bytes) -> tuple[bytes, bytes]:
    """Key and base nonce of an answer (RFC 9458, section 4.4)."""
    prk = hkdf.extract(key.enc + head[IDENTITY_BYTES:], key.secret)
    return hkdf.expand(prk, b"key", AES_128_GCM.key_bytes), hkdf.expand(prk, b"nonce", NONCE_BYTES)


def _unframed(chunk: bytes) -> bytes:
    cursor = Cursor(chunk)
    piece = cursor.take(cursor.varint("the length of a piece"), "a piece of the answer")
    cursor.skip_zeros()
    return piece

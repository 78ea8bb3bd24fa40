"""A message in sealed chunks, written and read as it comes.

    Chunk (length 1..., variable-length integer)(sealed chunk) ...
    0, the mark of the last
    Last chunk (sealed, with the associated data "final")

This is chunked oblivious HTTP (draft-ietf-ohai-chunked-ohttp-08, sections 4 to 6), whose last chunk ends where the
stream does. Pomona's envelopes have the length of the last chunk too, between the mark and the chunk (`delimited`):
so it can be opened before the stream ends, and bytes behind it are seen at once.

The numbering of aead.py refuses chunks that are left out, repeated or moved; the associated data tell the last one.
"""

from collections.abc import Callable

from pomona.private.sealing import varint
from pomona.private.sealing.aead import TAG_BYTES
from pomona.private.sealing.cursor import Cursor, MoreNeeded
from pomona.private.sealing.errors import SealingError

FINAL = b"final"
CHUNK_BYTES = 1 << 14
"""Plaintext of a chunk at most: every receiver takes that many, and a sender should not send more (section 3)."""
_MARK = varint.encode(0)


class ChunkSealer:
    """Seals the chunks of one message."""

    def __init__(self, seal_next: Callable[[bytes, bytes], bytes], delimited: bool) -> None:
        """`seal_next` is `seal` of an HPKE sender or of a `Sealer`: it takes associated data and a plaintext."""
        self._seal_next, self._delimited = seal_next, delimited
        self.finished = False

    def chunk(self, data: bytes, final: bool = False) -> bytes:
        """Some of the message, sealed: chunks of 16384 bytes, and one with the rest.

        Without data there is no chunk, except the last one, which may be empty.

        Raises:
            SealingError: the last chunk was sealed before.
        """
        if self.finished:
            raise SealingError("A chunk comes after the last one: a message ends once.")
        starts = range(0, len(data), CHUNK_BYTES) or ([0] if final else [])
        pieces = [data[start : start + CHUNK_BYTES] for start in starts]
        last = pieces.pop() if final else b""
        sealed = b"".join(_prefixed(self._seal_next(b"", piece)) for piece in pieces)
        if not final:
            return sealed
        self.finished = True
        end = self._seal_next(FINAL, last)
        return sealed + _MARK + (_prefixed(end) if self._delimited else end)


class ChunkOpener:
    """Opens the chunks of one message, from bytes cut in any way. After an error nothing more is opened."""

    def __init__(
        self, open_next: Callable[[bytes, bytes], bytes], delimited: bool, most_bytes: int = CHUNK_BYTES
    ) -> None:
        """`open_next` is `open` of an HPKE recipient or of an `Opener`: it takes associated data and a sealed chunk.

        `most_bytes` is the plaintext of a chunk at most; a longer one is refused before it is kept.
        """
        self._open_next, self._delimited, self._most_bytes = open_next, delimited, most_bytes + TAG_BYTES
        self._cursor = Cursor()
        self._in_last = self._broken = False
        self.finished = False
        """Whether the last chunk was opened: only then is the message whole."""

    def feed(self, data: bytes) -> list[bytes]:
        """The plaintexts of the chunks that these bytes complete, in order, none of them empty.

        Raises:
            SealingError: a chunk is too long, empty without being the last, or not the next one of this message; or
                bytes come after the last; or it was refused before.
        """
        self._check()
        self._broken = True  # until this call returns
        if self.finished and data:
            raise SealingError("Bytes come after the last chunk: a message ends with it.")
        self._cursor.feed(data)
        opened = []
        while (chunk := self._next()) is not None:
            opened.append(chunk)
        self._broken = False
        return [chunk for chunk in opened if chunk]

    def close(self) -> bytes:
        """Ends the stream: the plaintext of the last chunk where the end of the stream is its own, else nothing.

        Raises:
            SealingError: the message is truncated, the last chunk does not open, or the message was refused before.
        """
        self._check()
        self._broken = not self.finished
        if self.finished:
            return b""
        if not self._in_last or self._delimited:
            raise SealingError("The message is truncated: its last chunk is missing.")
        last = self._open_next(FINAL, self._cursor.take(self._cursor.left, "the last chunk"))
        self._broken, self.finished = False, True
        return last

    def _check(self) -> None:
        if self._broken:
            raise SealingError("The message was refused before: nothing more of it is opened.")

    def _next(self) -> bytes | None:
        """The next chunk, opened; None where its bytes are not all there."""
        if self.finished:
            if self._cursor.left:
                raise SealingError("Bytes come after the last chunk: a message ends with it.")
            return None
        start = self._cursor.position
        try:
            return self._chunk()
        except MoreNeeded:
            self._cursor.position = start
            return None

    def _chunk(self) -> bytes:
        if not self._in_last:
            length = self._cursor.varint("the length of a chunk")
            if length:
                return self._open_next(b"", self._sealed(length, TAG_BYTES + 1))
            self._in_last = True
            return b""  # the mark itself is read, whatever of the chunk is there
        if self._delimited:
            last = self._open_next(FINAL, self._sealed(self._cursor.varint("the length of a chunk"), TAG_BYTES))
            self.finished = True
            return last
        if self._cursor.left > self._most_bytes:
            raise self._too_long()
        raise MoreNeeded

    def _sealed(self, length: int, least_bytes: int) -> bytes:
        if length < least_bytes:
            raise SealingError("A chunk holds no data: only the last one may (draft-ietf-ohai-chunked-ohttp-08, 6).")
        if length > self._most_bytes:
            raise self._too_long()
        return self._cursor.take(length, "a chunk")

    def _too_long(self) -> SealingError:
        return SealingError(f"A chunk is too long: {self._most_bytes} bytes at most with its tag.")


class HeadedOpener:
    """Opens a message whose chunks follow a head. After an error nothing more is opened."""

    def __init__(self, read_head: Callable[[Cursor], ChunkOpener]) -> None:
        """`read_head` reads the head, or raises MoreNeeded, and gives what opens the chunks behind it."""
        self._read_head = read_head
        self._cursor = Cursor()
        self._chunks: ChunkOpener | None = None
        self._broken = False

    @property
    def finished(self) -> bool:
        """Whether the last chunk was opened: only then is the message whole."""
        return self._chunks is not None and self._chunks.finished

    def feed(self, data: bytes) -> list[bytes]:
        """The plaintexts of the chunks that these bytes complete, in order, none of them empty.

        Raises:
            SealingError: the head is refused, or a chunk is; see `ChunkOpener.feed`.
        """
        if self._chunks is not None:
            return self._chunks.feed(data)
        self._check()
        self._broken = True  # until the head is read, or known to be incomplete
        self._cursor.feed(data)
        try:
            self._chunks = self._read_head(self._cursor)
        except MoreNeeded:
            self._cursor.position, self._broken = 0, False
            return []
        return self._chunks.feed(self._cursor.take(self._cursor.left, "the chunks"))

    def close(self) -> bytes:
        """Ends the stream: the plaintext of the last chunk where the end of the stream is its own, else nothing.

        Raises:
            SealingError: the message is truncated, the last chunk does not open, or the message was refused before.
        """
        if self._chunks is not None:
            return self._chunks.close()
        self._check()
        self._broken = True
        raise SealingError("The message is truncated: it ends within its head.")

    def _check(self) -> None:
        if self._broken:
            raise SealingError("The message was refused before: nothing more of it is opened.")


def _prefixed(sealed: bytes) -> bytes:
    return varint.encode(len(sealed)) + sealed

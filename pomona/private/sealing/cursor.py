"""A place in bytes, which may all be there or still be coming: the parsers of this room read through it."""

from typing import NoReturn

from pomona.private.sealing import varint
from pomona.private.sealing.errors import SealingError


class MoreNeeded(Exception):
    """The bytes that are there end before what was to be read, and more may come. It never leaves this room."""


class Cursor:
    """Reads from the front of bytes.

    `Cursor(data)` reads a whole message: where bytes lack, it is truncated. `Cursor()` is fed; until `end` is called,
    a read beyond what is there raises `MoreNeeded` and leaves the position where it was.
    """

    def __init__(self, data: bytes | None = None) -> None:
        self._data: bytes | bytearray = bytearray() if data is None else data
        self._ended = data is not None
        self.position = 0

    def feed(self, data: bytes) -> None:
        """Adds bytes behind those that are there, and forgets those that were read."""
        assert isinstance(self._data, bytearray) and not self._ended
        del self._data[: self.position]
        self.position = 0
        self._data += data

    def end(self) -> None:
        """Says that no more bytes come."""
        self._ended = True

    @property
    def left(self) -> int:
        """How many bytes are there and were not read."""
        return len(self._data) - self.position

    def at_end(self) -> bool:
        """Whether everything was read.

        Raises:
            MoreNeeded: all that is there was read, and more may come.
        """
        if self.left:
            return False
        if not self._ended:
            raise MoreNeeded
        return True

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes. Nothing is allocated before they are known to be there.

        Raises:
            SealingError: the message ends before.
            MoreNeeded: they may still come.
        """
        if count > self.left:
            self._lacks(what)
        taken = bytes(self._data[self.position : self.position + count])
        self.position += count
        return taken

    def varint(self, what: str) -> int:
        """The next variable-length integer (RFC 9000, section 16).

        Raises:
            SealingError: the message ends before.
            MoreNeeded: its bytes may still come.
        """
        if not self.left:
            self._lacks(what)
        return varint.decode(self.take(varint.encoded_bytes(self._data[self.position]), what))

    def skip_zeros(self) -> None:
        """Reads all that is there, which has to be zeros.

        Raises:
            SealingError: a byte of it is not zero.
        """
        if self._data.count(0, self.position) != self.left:
            raise SealingError("The padding has a byte that is not zero: padding is zeros alone (RFC 9292, 3.8).")
        self.position = len(self._data)

    def _lacks(self, what: str) -> NoReturn:
        if not self._ended:
            raise MoreNeeded
        raise SealingError(f"The message is truncated: it ends within {what}.")

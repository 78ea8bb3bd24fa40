"""The TLS presentation language (RFC 8446, section 3): what the structures of Privacy Pass are written in.

A `Reader` goes through bytes from the front; every step says whether so many bytes are there before it takes them.
"""

import dataclasses

from pomona.private.tokens.errors import TokenError


@dataclasses.dataclass
class Reader:
    """Bytes of one structure, and how far they were read."""

    structure: str
    """Its name, for messages."""
    content: bytes = dataclasses.field(repr=False)
    position: int = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            TokenError: fewer are left.
        """
        if count > len(self.content) - self.position:
            raise TokenError(f"{self.structure} is cut short: {count} bytes have to follow byte {self.position}.")
        self.position += count
        return self.content[self.position - count : self.position]

    def integer(self, count: int) -> int:
        """The next `count` bytes as a big-endian number.

        Raises:
            TokenError: fewer are left.
        """
        return int.from_bytes(self.take(count))

    def opaque(self, length_bytes: int) -> bytes:
        """A vector of bytes behind its length, which takes `length_bytes` bytes (section 3.4).

        Raises:
            TokenError: fewer are left.
        """
        return self.take(self.integer(length_bytes))

    def end(self) -> None:
        """Nothing may follow.

        Raises:
            TokenError: bytes are left.
        """
        if self.position != len(self.content):
            raise TokenError(f"{self.structure} ends at byte {self.position}, and more bytes follow.")


def opaque(content: bytes, length_bytes: int) -> bytes:
    """The inverse of `Reader.opaque`; the caller has checked that the length fits."""
    return len(content).to_bytes(length_bytes) + content


def read_variable_length(reader: Reader) -> int:
    """A length of 1, 2, 4 or 8 bytes, in as few of them as it needs (RFC 9000, section 16, and the batches' draft).

    Raises:
        TokenError: it is cut short, or takes more bytes than it needs.
    """
    first = reader.integer(1)
    count = 1 << (first >> 6)
    value = (first & 0x3F) << (8 * (count - 1)) | reader.integer(count - 1)
    if len(variable_length(value)) != count:
        raise TokenError(f"{reader.structure} has a length in {count} bytes that needs fewer.")
    return value


def variable_length(value: int) -> bytes:
    """The inverse of `read_variable_length`, for values below 2**62."""
    exponent = next(each for each in range(4) if value < 1 << (8 * (1 << each) - 2))
    count = 1 << exponent
    return (exponent << (8 * count - 2) | value).to_bytes(count)

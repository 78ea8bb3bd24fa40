"""Variable-length integers of QUIC (RFC 9000, section 16): 1, 2, 4 or 8 bytes for 6, 14, 30 or 62 bits."""

from pomona.private.sealing.errors import SealingError

LARGEST = (1 << 62) - 1


def encode(value: int) -> bytes:
    """The shortest form of an integer: 1, 2, 4 or 8 bytes (RFC 9000, section 16).

    Raises:
        SealingError: it is negative, or more than 2^62 - 1.
    """
    if not 0 <= value <= LARGEST:
        raise SealingError("An integer cannot be written: a variable-length integer is between 0 and 2^62 - 1.")
    size = next(size for size in (1, 2, 4, 8) if value < 1 << (8 * size - 2))
    return (value | (size.bit_length() - 1) << (8 * size - 2)).to_bytes(size, "big")


def encoded_bytes(first_byte: int) -> int:
    """How many bytes an integer takes that begins with this byte (0 to 255): 1, 2, 4 or 8."""
    return 1 << (first_byte >> 6)


def decode(data: bytes) -> int:
    """The integer that these bytes are, in any of its forms: RFC 9292 and RFC 9000 do not ask for the shortest.

    Raises:
        SealingError: there are more bytes than its first byte tells, or fewer.
    """
    if not data or len(data) != encoded_bytes(data[0]):
        raise SealingError("A variable-length integer has another length than its first two bits tell.")
    return int.from_bytes(data, "big") & ((1 << (8 * len(data) - 2)) - 1)

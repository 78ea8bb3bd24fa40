"""How many bytes a message takes on the wire, so that its length tells little of its content.

Lengths go up to the next of 1, 1.25, 1.5 and 1.75 times a power of two, from 1 KiB. Above 1 KiB this adds less than a
quarter: the worst case is one byte more than a power of two. From 1 KiB to 16 MiB there are 57 lengths.
"""

from pomona.private.sealing.errors import SealingError

FLOOR_BYTES = 1024


def padded_length(length: int) -> int:
    """The length in bytes that a message of `length` bytes is padded to; it is its own padded length.

    Raises:
        SealingError: the length is negative.
    """
    if length < 0:
        raise SealingError("A length is negative: a message has no bytes at least.")
    if length <= FLOOR_BYTES:
        return FLOOR_BYTES
    step = 1 << ((length - 1).bit_length() - 3)  # a quarter of the power of two below
    return -(-length // step) * step


def padded(message: bytes) -> bytes:
    """A message, and zeros behind it up to its padded length: the padding of Binary HTTP (RFC 9292, section 3.8)."""
    return message.ljust(padded_length(len(message)), b"\0")

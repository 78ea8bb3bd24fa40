"""Bytes and numbers as text, of which each has one form only: what would encode to another text is refused."""

import base64
import re

from pomona.private.transparency.errors import TransparencyError

DECIMAL = re.compile("0|[1-9][0-9]{0,18}")


def encode_base64(data: bytes) -> str:
    """Standard base64 with padding (RFC 4648, Section 4)."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of standard base64 with padding and without spare bits (RFC 4648, Sections 3.5 and 4).

    Raises:
        TransparencyError: `text` is not what `encode_base64` gives; `what` names it in the message.
    """
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError as error:
        raise TransparencyError(f"{what} is not base64.") from error
    if encode_base64(data) != text:
        raise TransparencyError(f"{what} is base64 with spare bits set; they have to be zero.")
    return data


def decode_hex(text: str, what: str, sizes: tuple[int, ...] = (32,)) -> bytes:
    """The bytes of lowercase hexadecimal, as many as one of `sizes`.

    Raises:
        TransparencyError: `text` is something else; `what` names it in the message.
    """
    if len(text) not in [2 * size for size in sizes] or not re.fullmatch("[0-9a-f]*", text):
        wanted = " or ".join(str(2 * size) for size in sizes)
        raise TransparencyError(f"{what} has to be {wanted} lowercase hexadecimal digits.")
    return bytes.fromhex(text)


def decode_decimal(text: str, what: str) -> int:
    """A number of 0 to 2^63 - 1, without leading zeros.

    Raises:
        TransparencyError: `text` is something else; `what` names it in the message.
    """
    if not DECIMAL.fullmatch(text) or int(text) >= 1 << 63:
        raise TransparencyError(f"{what} has to be a decimal number below 2^63 without leading zeros.")
    return int(text)

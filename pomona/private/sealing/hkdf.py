"""HKDF-SHA256 (RFC 5869), plain and with the labels of HPKE (RFC 9180, section 4)."""

import hmac

from pomona.private.sealing.errors import SealingError

HASH_BYTES = 32
MOST_BYTES = 255 * HASH_BYTES


def extract(salt: bytes, key_material: bytes) -> bytes:
    """A pseudorandom key of 32 bytes (RFC 5869, section 2.2)."""
    return hmac.digest(salt, key_material, "sha256")


def expand(key: bytes, info: bytes, length: int) -> bytes:
    """`length` bytes from a pseudorandom key (RFC 5869, section 2.3).

    Raises:
        SealingError: more than 8160 bytes, or fewer than none, are asked for.
    """
    _check_length(length)
    block, blocks = b"", b""
    for number in range(1, -(-length // HASH_BYTES) + 1):
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        blocks += block
    return blocks[:length]


def labeled_extract(suite_id: bytes, salt: bytes, label: bytes, key_material: bytes) -> bytes:
    """LabeledExtract of RFC 9180, section 4: 32 bytes."""
    return extract(salt, b"HPKE-v1" + suite_id + label + key_material)


def labeled_expand(suite_id: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """LabeledExpand of RFC 9180, section 4: `length` bytes.

    Raises:
        SealingError: more than 8160 bytes, or fewer than none, are asked for.
    """
    _check_length(length)
    return expand(key, length.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + info, length)


def _check_length(length: int) -> None:
    if not 0 <= length <= MOST_BYTES:
        raise SealingError(f"HKDF-SHA256 gives 0 to {MOST_BYTES} bytes, and {length} were asked for.")

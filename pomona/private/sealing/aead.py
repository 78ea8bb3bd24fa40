"""Authenticated encryption of a sequence of messages under one key: the nonce is a base XOR a counter.

HPKE (RFC 9180, section 5.2), the answers of chunked oblivious HTTP and Pomona's envelopes all number messages this way:
one that is left out, repeated or moved does not open.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from pomona.private.sealing.errors import SealingError

NONCE_BYTES, TAG_BYTES = 12, 16  # of each of the three
MOST_MESSAGES = (1 << 8 * NONCE_BYTES) - 1
"""Messages under one key at most (RFC 9180, section 5.2)."""
MOST_BYTES = (1 << 31) - 1
"""Bytes of one message, sealed, and of its associated data: what the library below takes."""


class Cipher(Protocol):
    """One key of an authenticated encryption."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        """The ciphertext, and behind it the tag of 16 bytes."""
        ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        """The plaintext; raises InvalidTag."""
        ...


@dataclasses.dataclass(frozen=True)
class Aead:
    """An authenticated encryption: its identifier (RFC 9180, section 7.3), the bytes of its key, and its cipher."""

    id: int
    key_bytes: int
    cipher: Callable[[bytes], Cipher]


AES_128_GCM = Aead(0x0001, 16, AESGCM)
AES_256_GCM = Aead(0x0002, 32, AESGCM)
CHACHA20_POLY1305 = Aead(0x0003, 32, ChaCha20Poly1305)
AEADS = {aead.id: aead for aead in (AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305)}


class _Numbered:
    """A key, and which message is next."""

    def __init__(self, aead: Aead, key: bytes, base_nonce: bytes) -> None:
        assert len(key) == aead.key_bytes and len(base_nonce) == NONCE_BYTES
        self.cipher = aead.cipher(key)
        self.base_nonce = int.from_bytes(base_nonce, "big")
        self.sequence = 0

    def nonce(self) -> bytes:
        """The nonce of the next message: 12 bytes."""
        if self.sequence >= MOST_MESSAGES:
            raise SealingError("The key is used up: 2^96 - 1 messages were numbered under it (RFC 9180, 5.2).")
        return (self.base_nonce ^ self.sequence).to_bytes(NONCE_BYTES, "big")


class Sealer:
    """Seals one message after another (ContextS.Seal of RFC 9180, section 5.2). For one thread."""

    def __init__(self, aead: Aead, key: bytes, base_nonce: bytes) -> None:
        self._numbered = _Numbered(aead, key, base_nonce)

    def seal(self, aad: bytes, plaintext: bytes) -> bytes:
        """The next message: 16 bytes longer than its plaintext.

        Raises:
            SealingError: 2^96 - 1 messages were sealed, or this one is too long for the library (2^31 - 1 bytes).
        """
        nonce = self._numbered.nonce()
        if max(len(plaintext) + TAG_BYTES, len(aad)) > MOST_BYTES:
            raise SealingError("A message is too long to be sealed at once: 2^31 - 1 bytes with its tag at most.")
        sealed = self._numbered.cipher.encrypt(nonce, plaintext, aad)
        self._numbered.sequence += 1
        return sealed


class Opener:
    """Opens one message after another (ContextR.Open of RFC 9180, section 5.2). For one thread."""

    def __init__(self, aead: Aead, key: bytes, base_nonce: bytes) -> None:
        self._numbered = _Numbered(aead, key, base_nonce)

    def open(self, aad: bytes, sealed: bytes) -> bytes:
        """The plaintext of the next message: 16 bytes shorter. One that does not open is not counted.

        Raises:
            SealingError: it is not what was sealed as this message of the sequence, under this key and these
                associated data; or 2^96 - 1 messages were opened; or it is longer than 2^31 - 1 bytes.
        """
        nonce = self._numbered.nonce()
        if max(len(sealed), len(aad)) > MOST_BYTES:
            raise SealingError("A message is too long to be opened at once: 2^31 - 1 bytes with its tag at most.")
        try:
            plaintext = self._numbered.cipher.decrypt(nonce, sealed, aad)
        except InvalidTag:
            raise SealingError(
                "A message does not open: the key, its place, its associated data or its bytes differ."
            ) from None
        self._numbered.sequence += 1
        return plaintext

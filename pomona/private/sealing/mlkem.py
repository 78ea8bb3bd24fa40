"""ML-KEM-768 (FIPS 203): the half of an envelope that a quantum computer does not break."""

import dataclasses
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

from pomona.private.sealing.errors import SealingError

PUBLIC_KEY_BYTES, CIPHERTEXT_BYTES, SECRET_BYTES, SEED_BYTES = 1184, 1088, 32, 64


class Decapsulator(Protocol):
    """A private key, wherever it is kept."""

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The shared secret, 32 bytes, of a ciphertext of 1088; of a forged one, 32 bytes that nobody else knows."""
        ...


@dataclasses.dataclass(frozen=True)
class MlKemKey:
    """A private key in memory."""

    private: MLKEM768PrivateKey = dataclasses.field(repr=False)
    public_bytes: bytes = dataclasses.field(repr=False)
    """1184 bytes."""

    @classmethod
    def generate(cls) -> "MlKemKey":
        """A new key."""
        return cls._of(MLKEM768PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> "MlKemKey":
        """The key of a seed of 64 bytes (FIPS 203, section 7.1: d and z).

        Raises:
            SealingError: it has another length.
        """
        if len(seed) != SEED_BYTES:
            raise SealingError(f"A seed of ML-KEM has {len(seed)} bytes: it has {SEED_BYTES} (FIPS 203, 7.1).")
        return cls._of(MLKEM768PrivateKey.from_seed_bytes(seed))

    @classmethod
    def _of(cls, private: MLKEM768PrivateKey) -> "MlKemKey":
        return cls(private, private.public_key().public_bytes_raw())

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The shared secret: 32 bytes (FIPS 203, section 7.3).

        Raises:
            SealingError: the ciphertext does not have 1088 bytes.
        """
        if len(ciphertext) != CIPHERTEXT_BYTES:
            raise SealingError(f"A ciphertext of ML-KEM-768 has {len(ciphertext)} bytes: it has {CIPHERTEXT_BYTES}.")
        return self.private.decapsulate(ciphertext)


def encapsulate(public_key: bytes) -> tuple[bytes, bytes]:
    """A fresh shared secret, 32 bytes, and the ciphertext to send, 1088 bytes (FIPS 203, section 7.2).

    Raises:
        SealingError: the public key is not one.
    """
    try:
        return MLKEM768PublicKey.from_public_bytes(public_key).encapsulate()
    except ValueError:
        raise SealingError(f"A public key is none of ML-KEM-768: {PUBLIC_KEY_BYTES} bytes (FIPS 203, 7.2).") from None

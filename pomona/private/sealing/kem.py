"""The key encapsulation of HPKE (RFC 9180, section 4.1): DHKEM over X25519 and over P-256, with HKDF-SHA256.

A private key is anything that tells its public key and takes the Diffie-Hellman step, so that it can stay in a TPM.
"""

import dataclasses
import hmac
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.hkdf import labeled_expand, labeled_extract

SECRET_BYTES = 32
"""Of a shared secret, of a Diffie-Hellman result and of a private key, for both curves."""


@dataclasses.dataclass(frozen=True)
class Kem:
    """A key encapsulation: its identifier (RFC 9180, section 7.1), its curve, and the bytes of a public key."""

    id: int
    curve: str
    public_key_bytes: int
    """Also of an encapsulated key."""


P256 = Kem(0x0010, "P-256", 65)
X25519 = Kem(0x0020, "X25519", 32)
KEMS = {kem.id: kem for kem in (P256, X25519)}


class PrivateKey(Protocol):
    """A private key of either curve, wherever it is kept."""

    @property
    def public_bytes(self) -> bytes:
        """The public key: 32 bytes of X25519, or 65 of P-256, uncompressed (RFC 9180, section 7.1.1)."""
        ...

    def diffie_hellman(self, peer_public_bytes: bytes) -> bytes:
        """The shared secret with a peer, whose key was checked: 32 bytes; of P-256 the x coordinate."""
        ...


@dataclasses.dataclass(frozen=True)
class X25519Key:
    """A private key in memory (RFC 7748)."""

    private: x25519.X25519PrivateKey = dataclasses.field(repr=False)
    public_bytes: bytes

    def diffie_hellman(self, peer_public_bytes: bytes) -> bytes:
        """32 bytes (RFC 7748, section 6.1).

        Raises:
            SealingError: the peer's key is not 32 bytes, or the result is zero.
        """
        check_public_key(X25519, peer_public_bytes)
        try:
            return self.private.exchange(x25519.X25519PublicKey.from_public_bytes(peer_public_bytes))
        except ValueError:
            raise _zero() from None


@dataclasses.dataclass(frozen=True)
class P256Key:
    """A private key in memory (SEC 1)."""

    private: ec.EllipticCurvePrivateKey = dataclasses.field(repr=False)
    public_bytes: bytes

    def diffie_hellman(self, peer_public_bytes: bytes) -> bytes:
        """The x coordinate: 32 bytes (RFC 9180, section 4.1).

        Raises:
            SealingError: the peer's key is not an uncompressed point of the curve.
        """
        return self.private.exchange(ec.ECDH(), _point(peer_public_bytes))


def generate_key(kem: Kem) -> X25519Key | P256Key:
    """A new private key, kept in memory."""
    if kem == X25519:
        return _x25519_key(x25519.X25519PrivateKey.generate())
    return _p256_key(ec.generate_private_key(ec.SECP256R1()))


def private_key(kem: Kem, private_bytes: bytes) -> X25519Key | P256Key:
    """The private key of 32 bytes (RFC 9180, section 7.1.2), kept in memory.

    Raises:
        SealingError: they are not 32, or of P-256 not a number between 1 and the order of the curve.
    """
    try:
        if len(private_bytes) != SECRET_BYTES:
            raise ValueError
        if kem == X25519:
            return _x25519_key(x25519.X25519PrivateKey.from_private_bytes(private_bytes))
        return _p256_key(ec.derive_private_key(int.from_bytes(private_bytes, "big"), ec.SECP256R1()))
    except ValueError:
        raise SealingError(f"A private key is not one of {kem.curve}: it is 32 bytes, within its range.") from None


def check_public_key(kem: Kem, public_key: bytes) -> None:
    """Checks a public key, or an encapsulated one, before anything is computed with it (RFC 9180, section 7.1.4).

    Raises:
        SealingError: it has another length; or of P-256, it is no uncompressed point of the curve.
    """
    if len(public_key) != kem.public_key_bytes:
        raise SealingError(
            f"A public key has {len(public_key)} bytes: one of {kem.curve} has {kem.public_key_bytes} (RFC 9180, 7.1)."
        )
    if kem == P256:
        _point(public_key)


def encapsulate(kem: Kem, public_key: bytes) -> tuple[bytes, bytes]:
    """A fresh shared secret, 32 bytes, and the encapsulated key to send: Encap (RFC 9180, section 4.1).

    Raises:
        SealingError: the public key is not one.
    """
    check_public_key(kem, public_key)
    ephemeral = generate_key(kem)
    enc = ephemeral.public_bytes
    return _shared_secret(kem, ephemeral.diffie_hellman(public_key), enc + public_key), enc


def decapsulate(kem: Kem, enc: bytes, key: PrivateKey) -> bytes:
    """The shared secret of an encapsulated key, 32 bytes: Decap (RFC 9180, section 4.1).

    What the key's own `diffie_hellman` raises comes through.

    Raises:
        SealingError: the encapsulated key is none, or leads to zero; or the private key is of another curve, or gives
            another length.
    """
    check_public_key(kem, enc)
    public_key = key.public_bytes
    if len(public_key) != kem.public_key_bytes:
        raise SealingError(f"The private key is of another curve: the sender used {kem.curve}.")
    secret = key.diffie_hellman(enc)
    if len(secret) != SECRET_BYTES:
        raise SealingError(f"A Diffie-Hellman result has {len(secret)} bytes: it has 32 (RFC 9180, 7.1).")
    if kem == X25519 and hmac.compare_digest(secret, bytes(SECRET_BYTES)):
        raise _zero()
    return _shared_secret(kem, secret, enc + public_key)


def _shared_secret(kem: Kem, secret: bytes, context: bytes) -> bytes:
    """ExtractAndExpand (RFC 9180, section 4.1)."""
    suite_id = b"KEM" + kem.id.to_bytes(2, "big")
    key = labeled_extract(suite_id, b"", b"eae_prk", secret)
    return labeled_expand(suite_id, key, b"shared_secret", context, SECRET_BYTES)


def _x25519_key(private: x25519.X25519PrivateKey) -> X25519Key:
    return X25519Key(private, private.public_key().public_bytes_raw())


def _p256_key(private: ec.EllipticCurvePrivateKey) -> P256Key:
    return P256Key(private, private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))


def _point(public_key: bytes) -> ec.EllipticCurvePublicKey:
    """The point of 65 bytes; compressed forms are refused here, and points off the curve by the library."""
    try:
        if len(public_key) != P256.public_key_bytes or public_key[0] != 4:
            raise ValueError
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public_key)
    except ValueError:
        raise SealingError("A public key is no uncompressed point of P-256 (RFC 9180, 7.1.4).") from None


def _zero() -> SealingError:
    return SealingError("An X25519 result is zero: the peer's key has a small order (RFC 9180, 7.1.4).")

"""What tests of the TPM's client and of its keys share."""

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pomona.private.evidence.tpm.client import pcr_read
from pomona.private.evidence.tpm.keys import create_register_key, load_register_key

REGISTERS = (0, 4, 7, 11)


def sec1(private):
    """The public key, 65 bytes."""
    return private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def in_software(private, public_bytes):
    """The shared secret, as software computes it."""
    return private.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public_bytes))


def register_key_of(tpm, registers=REGISTERS):
    """A new key for registers with what they hold, and the same loaded."""
    values = pcr_read(tpm, registers)
    created = create_register_key(tpm, values)
    return created, load_register_key(tpm, created, registers)

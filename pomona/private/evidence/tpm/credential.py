"""The verifier's side of enrolment: a secret that only one attestation key on one TPM can bring back.

Source: TPM 2.0 Library specification, Part 1, "Credential Protection", KDFa and KDFe, and for the encrypted seed
"Secret Sharing" in the annexes on RSA and ECC.
"""

import dataclasses
import hashlib
import hmac

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.structures import (
    COORDINATE_BYTES,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    RSA_BYTES,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    EccPublic,
    Public,
    RsaPublic,
    point_bytes,
)
from pomona.private.evidence.tpm.wire import SHA256_BYTES, number, sized

RSA_EXPONENT = 65537
NAME_BYTES = 2 + SHA256_BYTES


@dataclasses.dataclass(frozen=True)
class Credential:
    """The contents of TPM2B_ID_OBJECT (Part 2, section 12.4.3) and TPM2B_ENCRYPTED_SECRET (11.4.33)."""

    blob: bytes
    encrypted_seed: bytes


def make_credential(endorsement: Public, name: bytes, secret: bytes, seed: bytes) -> Credential:
    """Encrypts `secret`, 1 to 32 bytes, so that only the TPM with this endorsement key decrypts it, and only while it
    has loaded the key with this name of 34 bytes. `seed` are 32 fresh random bytes; with an elliptic endorsement key
    they are the private key of a Diffie-Hellman exchange out of which the seed comes.

    Who calls it has to know from a certificate that the endorsement key is a TPM's, and to require of the key whose
    name this is what `check_attestation_key_attributes` requires: a name stands for the key's attributes too.

    Raises:
        AttestationError: not an endorsement key, or a size is wrong.
    """
    needed = RESTRICTED | DECRYPT | FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN
    if endorsement.attributes & (needed | SIGN) != needed or not endorsement.aes_bits:
        raise AttestationError("the endorsement key must be a restricted decryption key that a TPM made and keeps.")
    if len(name) != NAME_BYTES or not 1 <= len(secret) <= SHA256_BYTES or len(seed) != SHA256_BYTES:
        raise AttestationError(
            f"name, secret and seed have {len(name)}, {len(secret)} and {len(seed)} bytes; they must have "
            f"{NAME_BYTES}, 1 to {SHA256_BYTES} and {SHA256_BYTES}."
        )
    if isinstance(endorsement, EccPublic):
        seed, encrypted_seed = _exchanged(endorsement, seed)
    else:
        encrypted_seed = _encrypted(endorsement, seed)
    key = kdf_a(seed, b"STORAGE", name, endorsement.aes_bits)
    # CFB is what the TPM does. The initial value may be zero because the key serves once.
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(sized(secret)) + encryptor.finalize()
    integrity = hmac.digest(kdf_a(seed, b"INTEGRITY", b"", 8 * SHA256_BYTES), identity + name, "sha256")
    return Credential(sized(integrity) + identity, encrypted_seed)


def _exchanged(endorsement: EccPublic, seed: bytes) -> tuple[bytes, bytes]:
    """The seed by Diffie-Hellman with a key of our own, and TPMS_ECC_POINT of that key."""
    try:
        peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point_bytes(endorsement))
        own = ec.derive_private_key(int.from_bytes(seed, "big"), ec.SECP256R1())
    except ValueError as error:
        raise AttestationError("the endorsement key or the seed is no key of P-256.") from error
    numbers = own.public_key().public_numbers()
    x, y = number(numbers.x, COORDINATE_BYTES), number(numbers.y, COORDINATE_BYTES)
    shared = own.exchange(ec.ECDH(), peer)
    party = point_bytes(endorsement)[1 : 1 + COORDINATE_BYTES]
    return kdf_e(shared, b"IDENTITY", x, party), sized(x) + sized(y)


def _encrypted(endorsement: RsaPublic, seed: bytes) -> bytes:
    if len(endorsement.modulus) != RSA_BYTES:
        raise AttestationError(f"the modulus has {len(endorsement.modulus)} bytes; it must have {RSA_BYTES}.")
    try:
        public = rsa.RSAPublicNumbers(RSA_EXPONENT, int.from_bytes(endorsement.modulus, "big")).public_key()
    except ValueError as error:
        raise AttestationError("the endorsement key's modulus is none of an RSA key.") from error
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
    return public.encrypt(seed, oaep)


def kdf_a(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa with SHA-256: NIST SP 800-108 in counter mode, for one block: 256 bits at most."""
    message = number(1, 4) + label + b"\0" + context + number(bits, 4)
    return hmac.digest(key, message, "sha256")[: bits // 8]


def kdf_e(shared: bytes, label: bytes, party_u: bytes, party_v: bytes) -> bytes:
    """KDFe with SHA-256: NIST SP 800-56A's concatenation, for 32 bytes; the parties are x coordinates."""
    return hashlib.sha256(number(1, 4) + shared + label + b"\0" + party_u + party_v).digest()

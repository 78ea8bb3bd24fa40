"""Which keys a node's TPM makes: the public areas that the node asks for and that a verifier requires.

Sources: TCG EK Credential Profile for TPM Family 2.0, templates L-1 and L-2; TCG TPM v2.0 Provisioning Guidance, the
storage root key; TPM 2.0 Library specification, Part 2, section 8.3.
"""

import hashlib
from collections.abc import Mapping

from pomona.private.evidence.tpm.registers import policy_pcr_digest
from pomona.private.evidence.tpm.structures import (
    ADMIN_WITH_POLICY,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    NO_DA,
    RESTRICTED,
    RSA_BYTES,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    USER_WITH_AUTH,
    EccPublic,
    RsaPublic,
)
from pomona.private.evidence.tpm.wire import ALG_ECDH, ALG_ECDSA, ALG_NULL, CC, RH_ENDORSEMENT, SHA256_BYTES, number

_BORN_HERE = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN
"""The TPM made it out of its own randomness, and it can never leave."""
_ZEROS = bytes(32)

STORAGE_KEY = EccPublic(_BORN_HERE | USER_WITH_AUTH | NO_DA | RESTRICTED | DECRYPT, b"", 128, ALG_NULL, _ZEROS, _ZEROS)
"""The parent of other keys, with the empty password."""

ATTESTATION_KEY = EccPublic(_BORN_HERE | USER_WITH_AUTH | NO_DA | RESTRICTED | SIGN, b"", 0, ALG_ECDSA)
"""Signs only what the TPM itself has written."""

ENDORSEMENT_ATTRIBUTES = _BORN_HERE | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT
_SECRET_OF_ENDORSEMENT = number(CC["PolicySecret"], 4) + number(RH_ENDORSEMENT, 4)
ENDORSEMENT_POLICY = hashlib.sha256(
    hashlib.sha256(bytes(SHA256_BYTES) + _SECRET_OF_ENDORSEMENT).digest()  # then the policy's reference, empty
).digest()
"""To know the password of the endorsement hierarchy (Part 3, section 23.4)."""

ENDORSEMENT_KEY_ECC = EccPublic(ENDORSEMENT_ATTRIBUTES, ENDORSEMENT_POLICY, 128, ALG_NULL, _ZEROS, _ZEROS)
"""Template L-2. With a certificate's coordinates for the zeros it is the public area that the certificate is for."""
ENDORSEMENT_KEY_RSA = RsaPublic(ENDORSEMENT_ATTRIBUTES, ENDORSEMENT_POLICY, 128, bytes(RSA_BYTES))
"""Template L-1. With a certificate's modulus for the zeros it is the public area that the certificate is for."""

ENDORSEMENT_CERTIFICATE_RSA, ENDORSEMENT_CERTIFICATE_ECC = 0x01C00002, 0x01C0000A
"""The non-volatile indices where the maker of a TPM may have put the certificates of these two."""

REGISTER_KEY_ATTRIBUTES = _BORN_HERE | ADMIN_WITH_POLICY | NO_DA | DECRYPT
"""No password opens it: neither for its use (userWithAuth is clear), nor for changes to it (adminWithPolicy is set, and
a policy over registers alone never fulfils what changes need)."""


def register_key(values: Mapping[int, bytes]) -> EccPublic:
    """A Diffie-Hellman key that may be used only while these registers hold these values, 32 bytes each.

    Raises:
        AttestationError: a value has another size, or the registers are none that can be measured.
    """
    return EccPublic(REGISTER_KEY_ATTRIBUTES, policy_pcr_digest(values), 0, ALG_ECDH)

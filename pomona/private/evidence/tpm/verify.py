"""Judges a TPM's evidence without a TPM: is this key inside the TPM we know, and was it measured as we expect?

Each check is a function of its own, so that a policy can list them and say which one refused. Source: TPM 2.0 Library
specification, revision 1.59, Part 3, sections 18.3, 18.4 and 23.7.
"""

import hashlib
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.evidence import (
    Moment,
    TpmEvidence,
    TpmExpected,
    TpmFacts,
    TpmParts,
    read_evidence,
)
from pomona.private.evidence.tpm.registers import policy_pcr_digest, registers_digest, selection_of
from pomona.private.evidence.tpm.structures import (
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    GENERATED,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    Attest,
    CreationInfo,
    EccPublic,
    EcdsaSignature,
    QuoteInfo,
    name_of,
    point_bytes,
    qualified_name,
)
from pomona.private.evidence.tpm.templates import REGISTER_KEY_ATTRIBUTES
from pomona.private.evidence.tpm.wire import ALG_ECDH, ALG_ECDSA, RH_ENDORSEMENT, RH_OWNER

# --- the attestation key -------------------------------------------------------------------------------------------


def check_attestation_key_name(parts: TpmParts, expected: TpmExpected) -> None:
    """The attestation key is the enrolled one."""
    _require(
        name_of(parts.attestation_key) == expected.attestation_key_name,
        "the attestation key is not the enrolled one: its name must be the enrolled name",
    )


def check_attestation_key_attributes(parts: TpmParts, expected: TpmExpected) -> None:
    """The attestation key signs only what its TPM wrote (restricted, sign), was made there and stays there."""
    needed = RESTRICTED | SIGN | FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN
    _require(
        parts.attestation_key.attributes & (needed | DECRYPT) == needed,
        f"the attestation key has the attributes 0x{parts.attestation_key.attributes:08x}; it must be restricted, for "
        "signing alone, fixed to its TPM and parent, and made by the TPM",
    )


def check_attestation_key_algorithm(parts: TpmParts, expected: TpmExpected) -> None:
    """The attestation key is for ECDSA with SHA-256, and a point of P-256."""
    key = parts.attestation_key
    _require(key.scheme == ALG_ECDSA and not key.aes_bits, "the attestation key must be for ECDSA with SHA-256 alone")
    _public_key(key, "the attestation key")


# --- the quote -----------------------------------------------------------------------------------------------------


def check_quote_signature(parts: TpmParts, expected: TpmExpected) -> None:
    """The attestation key signed the quote."""
    _check_signature(parts, parts.evidence.quote, parts.quote_signature, "the quote")


def check_quote_magic(parts: TpmParts, expected: TpmExpected) -> None:
    """The quote begins as only a TPM's own structures do."""
    _check_magic(parts.quote, "the quote")


def check_quote_type(parts: TpmParts, expected: TpmExpected) -> None:
    """The quote is a quote."""
    _quoted(parts)


def check_quote_data(parts: TpmParts, expected: TpmExpected) -> None:
    """What was signed along with the quote is what was to be."""
    _require(
        parts.quote.extra_data == expected.quote_data,
        "the quote was not made for this: its qualifying data must be ours",
    )


def check_quote_signer(parts: TpmParts, expected: TpmExpected) -> None:
    """The quote names the attestation key, as a primary key of the endorsement or the owner's hierarchy."""
    _hierarchy(parts, parts.quote, "the quote")


def check_quote_selection(parts: TpmParts, expected: TpmExpected) -> None:
    """The quote is over the expected registers of the SHA-256 bank, all and no others."""
    _require(
        _quoted(parts).selection == selection_of(expected.registers),
        f"the quote must be over the registers {sorted(expected.registers)} of the SHA-256 bank, exactly",
    )


def check_quote_registers(parts: TpmParts, expected: TpmExpected) -> None:
    """The registers held the expected values."""
    _require(
        _quoted(parts).digest == registers_digest(expected.registers),
        "the quoted registers must hold the expected values: something else was measured",
    )


# --- the certification of the node's key ---------------------------------------------------------------------------


def check_certification_signature(parts: TpmParts, expected: TpmExpected) -> None:
    """The attestation key signed the certification."""
    _check_signature(parts, parts.evidence.certification, parts.certification_signature, "the certification")


def check_certification_magic(parts: TpmParts, expected: TpmExpected) -> None:
    """The certification begins as only a TPM's own structures do."""
    _check_magic(parts.certification, "the certification")


def check_certification_type(parts: TpmParts, expected: TpmExpected) -> None:
    """The certification is one of a key's creation: the TPM made the key."""
    _created(parts)


def check_certification_data(parts: TpmParts, expected: TpmExpected) -> None:
    """What was signed along with the certification is what was to be."""
    _require(
        parts.certification.extra_data == expected.certification_data,
        "the certification was not made for this: its qualifying data must be ours",
    )


def check_certification_signer(parts: TpmParts, expected: TpmExpected) -> None:
    """The certification names the attestation key, as a primary key of the endorsement or the owner's hierarchy."""
    _hierarchy(parts, parts.certification, "the certification")


def check_key_name(parts: TpmParts, expected: TpmExpected) -> None:
    """The certified name is that of the node's key: the hash of its whole public area."""
    _require(
        _created(parts).name == name_of(parts.key), "another key was certified: its name must be that of the node's key"
    )


def check_creation_hash(parts: TpmParts, expected: TpmExpected) -> None:
    """The certified creation data are those handed out."""
    _require(
        _created(parts).creation_hash == hashlib.sha256(parts.evidence.creation_data).digest(),
        "other creation data were certified: their hash must be that of the creation data handed out",
    )


def check_creation_registers(parts: TpmParts, expected: TpmExpected) -> None:
    """The node's key was made while the registers held the expected values."""
    data = parts.creation_data
    _require(
        data.selection == selection_of(expected.registers)
        and data.registers_digest == registers_digest(expected.registers),
        f"the key must have been made while the registers {sorted(expected.registers)} held the expected values",
    )


# --- the node's key ------------------------------------------------------------------------------------------------


def check_key_attributes(parts: TpmParts, expected: TpmExpected) -> None:
    """The node's key was made in the TPM, stays there, and no password opens it."""
    _require(
        parts.key.attributes == REGISTER_KEY_ATTRIBUTES,
        f"the node's key has the attributes 0x{parts.key.attributes:08x}; they must be 0x{REGISTER_KEY_ATTRIBUTES:08x}",
    )


def check_key_algorithm(parts: TpmParts, expected: TpmExpected) -> None:
    """The node's key is for Diffie-Hellman alone, and a point of P-256."""
    _require(parts.key.scheme == ALG_ECDH and not parts.key.aes_bits, "the node's key must be for ECDH alone")
    _public_key(parts.key, "the node's key")


def check_key_policy(parts: TpmParts, expected: TpmExpected) -> None:
    """The node's key may be used only while the registers hold the expected values."""
    _require(
        parts.key.auth_policy == policy_pcr_digest(expected.registers),
        "the node's key must be bound to the expected values of the registers, and to nothing else",
    )


CHECKS: tuple[Callable[[TpmParts, TpmExpected], None], ...] = (
    check_attestation_key_name,
    check_attestation_key_attributes,
    check_attestation_key_algorithm,
    check_quote_signature,
    check_quote_magic,
    check_quote_type,
    check_quote_data,
    check_quote_signer,
    check_quote_selection,
    check_quote_registers,
    check_certification_signature,
    check_certification_magic,
    check_certification_type,
    check_certification_data,
    check_certification_signer,
    check_key_name,
    check_creation_hash,
    check_creation_registers,
    check_key_attributes,
    check_key_algorithm,
    check_key_policy,
)
"""All of them; each raises AttestationError where it refuses, and stands alone."""


def verify(evidence: TpmEvidence, expected: TpmExpected) -> TpmFacts:
    """Reads the evidence, runs every check, and says what is known then.

    Raises:
        AttestationError: a part does not read, or a check refuses.
    """
    parts = read_evidence(evidence)
    for check in CHECKS:
        check(parts, expected)
    return facts_of(parts)


def facts_of(parts: TpmParts) -> TpmFacts:
    """What the evidence says; it is known only once every check has passed.

    Raises:
        AttestationError: the quote does not name the attestation key.
    """
    quote, certification = parts.quote, parts.certification
    return TpmFacts(
        point_bytes(parts.key),
        _hierarchy(parts, quote, "the quote"),
        Moment(quote.clock, quote.firmware_version),
        Moment(certification.clock, certification.firmware_version),
    )


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise AttestationError(f"{reason}.")


def _quoted(parts: TpmParts) -> QuoteInfo:
    found = parts.quote.attested
    if not isinstance(found, QuoteInfo):
        raise AttestationError("the quote is an attestation of another type; it must be of registers.")
    return found


def _created(parts: TpmParts) -> CreationInfo:
    found = parts.certification.attested
    if not isinstance(found, CreationInfo):
        raise AttestationError("the certification is an attestation of another type; it must be of a key's creation.")
    return found


def _hierarchy(parts: TpmParts, attest: Attest, what: str) -> int:
    name = name_of(parts.attestation_key)
    for hierarchy in (RH_ENDORSEMENT, RH_OWNER):
        if attest.qualified_signer == qualified_name(hierarchy, name):
            return hierarchy
    raise AttestationError(f"{what} names another signer than the attestation key as a primary key of its TPM.")


def _check_magic(attest: Attest, what: str) -> None:
    _require(attest.magic == GENERATED, f"{what} begins with 0x{attest.magic:08x}; a TPM begins with 0x{GENERATED:08x}")


def _check_signature(parts: TpmParts, signed: bytes, signature: EcdsaSignature, what: str) -> None:
    numbers = int.from_bytes(signature.r, "big"), int.from_bytes(signature.s, "big")
    key = _public_key(parts.attestation_key, "the attestation key")
    try:
        key.verify(encode_dss_signature(*numbers), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise AttestationError(f"{what} must be signed by the attestation key; its signature is not.") from error


def _public_key(key: EccPublic, what: str) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point_bytes(key))
    except ValueError as error:
        raise AttestationError(f"{what} must be a point of P-256.") from error

"""A TPM's evidence in its seven parts, what it must say, and what is known once it was verified."""

import dataclasses
from collections.abc import Mapping

from pomona.private.evidence.tpm.structures import (
    Attest,
    ClockInfo,
    CreationData,
    EccPublic,
    EcdsaSignature,
    read_attest,
    read_creation_data,
    read_ecc_public,
    read_signature,
)
from pomona.private.evidence.tpm.wire import whole


@dataclasses.dataclass(frozen=True)
class TpmEvidence:
    """What a node hands out, each as the TPM packed it: TPMT_PUBLIC of the attestation key; TPMS_ATTEST and
    TPMT_SIGNATURE of the quote; TPMT_PUBLIC and TPMS_CREATION_DATA of the node's key; TPMS_ATTEST and TPMT_SIGNATURE of
    its creation."""

    attestation_key: bytes
    quote: bytes
    quote_signature: bytes
    key: bytes
    creation_data: bytes
    certification: bytes
    certification_signature: bytes


@dataclasses.dataclass(frozen=True)
class TpmExpected:
    """What the evidence must say: the enrolled attestation key's name, 34 bytes; the measured registers and their
    values, 32 bytes each; what the TPM had to sign along with the quote and the certification, 64 bytes at most."""

    attestation_key_name: bytes
    registers: Mapping[int, bytes]
    quote_data: bytes
    certification_data: bytes


@dataclasses.dataclass(frozen=True)
class TpmParts:
    """The evidence, read; not judged yet."""

    attestation_key: EccPublic
    quote: Attest
    quote_signature: EcdsaSignature
    key: EccPublic
    creation_data: CreationData
    certification: Attest
    certification_signature: EcdsaSignature
    evidence: TpmEvidence


@dataclasses.dataclass(frozen=True)
class Moment:
    """When in the TPM's life it signed: its clock and counters, and its firmware's version."""

    clock: ClockInfo
    firmware_version: int


@dataclasses.dataclass(frozen=True)
class TpmFacts:
    """What verified evidence says: the node's public key, uncompressed, 65 bytes; when the registers were quoted and
    when the key was certified. Where `hierarchy` is `RH_OWNER`, counters and firmware version are disguised: they only
    tell whether something changed."""

    key_public_bytes: bytes
    hierarchy: int
    quoted: Moment
    certified: Moment


def read_evidence(evidence: TpmEvidence) -> TpmParts:
    """Reads the seven parts.

    Raises:
        AttestationError: one does not read.
    """
    return TpmParts(
        whole(evidence.attestation_key, read_ecc_public, "the attestation key"),
        whole(evidence.quote, read_attest, "the quote"),
        whole(evidence.quote_signature, read_signature, "the quote's signature"),
        whole(evidence.key, read_ecc_public, "the node's key"),
        whole(evidence.creation_data, read_creation_data, "the creation data"),
        whole(evidence.certification, read_attest, "the certification"),
        whole(evidence.certification_signature, read_signature, "the certification's signature"),
        evidence,
    )

"""AMD SEV-SNP attestation reports as bytes, and the certificates of the keys that sign them.

Layouts: AMD, "SEV Secure Nested Paging Firmware ABI Specification", 56860 (ATTESTATION_REPORT, TCB_VERSION, guest
policy), and "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification", 57230; read beside
two implementations, google/go-sev-guest and virtee/sev. Numbers are little-endian. Nothing here is authentic yet:
`snp_verify` checks it.
"""

import dataclasses
import struct
from typing import Any, Literal

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors import der
from pomona.private.evidence.processors.certificates import Certificate, common_name, read_certificate

REPORT_BYTES, SIGNED_BYTES = 0x4A0, 0x2A0
VERSIONS = (2, 3, 4, 5)
"""3 added the processor's family, model and stepping, 5 the mitigation vectors; 4 is laid out like 3."""
ECDSA_P384_SHA384 = 1
FIELDS = struct.Struct("<IIQ16s16sII8sQII64s48s32s48s48s32s32s8s24s64s8s4s4s8s16s")
NAMES = (
    *("version", "guest_svn", "policy", "family_id", "image_id", "vmpl", "algorithm", "current_tcb", "platform_info"),
    *("key_flags", "reserved", "report_data", "measurement", "host_data", "id_key_digest", "author_key_digest"),
    *("report_id", "report_id_ma", "reported_tcb", "model", "chip_id", "committed_tcb", "current", "committed"),
    *("launch_tcb", "vectors"),
)
COMPONENT_BYTES = 72

# The guest's policy: bits 0 to 15 are the firmware's ABI, 26 to 63 have to be 0 and bit 17 has to be 1.
POLICY_SMT, POLICY_ALWAYS, POLICY_MIGRATE_MA, POLICY_DEBUG, POLICY_SINGLE_SOCKET = (1 << bit for bit in range(16, 21))
POLICY_BITS = 26

# Extensions of the keys' certificates; those of the security versions are by the name of `Tcb`.
AMD = "1.3.6.1.4.1.3704.1"
PRODUCT_NAME, HARDWARE_ID, PROVIDER_ID = f"{AMD}.2", f"{AMD}.4", f"{AMD}.5"
SPL = {"bootloader": f"{AMD}.3.1", "tee": f"{AMD}.3.2", "snp": f"{AMD}.3.3", "microcode": f"{AMD}.3.8"}
FMC = f"{AMD}.3.9"

Product = Literal["Milan", "Genoa", "Turin"]


@dataclasses.dataclass(frozen=True)
class Tcb:
    """Security versions of a processor's firmware, 0 to 255 each; `fmc` from Turin on, 0 before."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int = 0


@dataclasses.dataclass(frozen=True)
class SnpReport:
    """What the processor's firmware says of a guest. Versions of the firmware are 8 bytes that `read_tcb` reads."""

    version: int
    guest_svn: int
    """The security version that the guest's owner gave it."""
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    """The privilege level that asked for the report; 0 is the highest."""
    current_tcb: bytes
    platform_info: int
    signing_key: int
    """0 for a VCEK, 1 for a VLEK, 7 for none."""
    chip_key_masked: bool
    report_data: bytes
    """[64] what the guest asked to have signed."""
    measurement: bytes
    """[48] the guest's memory at launch, SHA-384."""
    host_data: bytes
    """[32] what the host gave at launch."""
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    """[32] of the guest's migration agent."""
    reported_tcb: bytes
    """The versions that the signing key stands for."""
    family_model_stepping: tuple[int, int, int] | None
    """Of the processor; from version 3 on."""
    chip_id: bytes
    """[64]; Turin uses the first 8."""
    committed_tcb: bytes
    current_version: tuple[int, int, int]
    """The firmware's major, minor and build number, like `committed_version`."""
    committed_version: tuple[int, int, int]
    launch_tcb: bytes
    mitigations: tuple[int, int] | None
    """The vectors of mitigations at launch and now; in version 5."""
    signed: bytes
    """The first 0x2A0 bytes."""
    signature: tuple[int, int]
    """r and s."""


@dataclasses.dataclass(frozen=True)
class EndorsementKey:
    """The key that signs a processor's reports: a VCEK, of one chip, or a VLEK, of a cloud provider's chips."""

    kind: Literal["VCEK", "VLEK"]
    certificate: Certificate
    product_name: str
    """As the certificate says; which product it is, the issuer's name says."""
    tcb: Tcb
    chip_id: bytes | None
    """[64], or [8] from Turin on; a VCEK's alone."""
    provider: str | None
    """A VLEK's alone."""


def read_report(data: bytes) -> SnpReport:
    """A report from its 1184 bytes; `AttestationError` where it is not one of version 2 to 5, or has reserved bits."""
    if len(data) != REPORT_BYTES:
        raise AttestationError(f"An SEV-SNP report has {REPORT_BYTES} bytes, not {len(data)}.")
    values: dict[str, Any] = dict(zip(NAMES, FIELDS.unpack_from(data)))
    version, flags = values["version"], values.pop("key_flags")
    if version not in VERSIONS:
        raise AttestationError(f"An SEV-SNP report is of version {version}; known are 2 to 5.")
    if values.pop("algorithm") != ECDSA_P384_SHA384:
        raise AttestationError("An SEV-SNP report has to be signed by ECDSA with P-384.")
    if values["policy"] >> POLICY_BITS or not values["policy"] & POLICY_ALWAYS or flags >> 5:
        raise AttestationError("An SEV-SNP report's policy or key field has reserved bits.")
    model, vectors, current, committed = (values.pop(name) for name in ("model", "vectors", "current", "committed"))
    has_model, has_vectors = version >= 3, version >= 5
    reserved = [current[3:], committed[3:], data[FIELDS.size : SIGNED_BYTES], model[3 if has_model else 0 :]]
    if not has_vectors:
        reserved.append(vectors)
    if values.pop("reserved") or any(any(each) for each in reserved):
        raise AttestationError("An SEV-SNP report's reserved bytes have to be zero.")
    return SnpReport(
        **values,
        signing_key=flags >> 2 & 7,
        chip_key_masked=bool(flags & 2),
        family_model_stepping=(model[0], model[1], model[2]) if has_model else None,
        current_version=(current[2], current[1], current[0]),
        committed_version=(committed[2], committed[1], committed[0]),
        mitigations=struct.unpack("<QQ", vectors) if has_vectors else None,
        signed=data[:SIGNED_BYTES],
        signature=_read_signature(data[SIGNED_BYTES:]),
    )


def _read_signature(data: bytes) -> tuple[int, int]:
    """r and s, each little-endian in 72 bytes; zeros to the end, which nobody signs."""
    r, s = (data[start : start + COMPONENT_BYTES] for start in (0, COMPONENT_BYTES))
    if any(r[48:]) or any(s[48:]) or any(data[2 * COMPONENT_BYTES :]):
        raise AttestationError("An SEV-SNP report's signature has to be two numbers of 48 bytes, then zeros.")
    return int.from_bytes(r, "little"), int.from_bytes(s, "little")


def read_tcb(data: bytes, product: Product) -> Tcb:
    """The security versions in 8 bytes of a report (TCB_VERSION), which Turin orders in another way."""
    if product == "Turin":
        return Tcb(fmc=data[0], bootloader=data[1], tee=data[2], snp=data[3], microcode=data[7])
    return Tcb(bootloader=data[0], tee=data[1], snp=data[6], microcode=data[7])


def read_endorsement_key(data: bytes) -> EndorsementKey:
    """A VCEK or VLEK from its certificate in DER; `AttestationError` where it is none, or lacks an extension."""
    certificate = read_certificate(data, "VCEK or VLEK")
    kinds: dict[str, Literal["VCEK", "VLEK"]] = {"SEV-VCEK": "VCEK", "SEV-VLEK": "VLEK"}
    kind = kinds.get(common_name(certificate.subject))
    if kind is None:
        raise AttestationError("A certificate's subject is neither SEV-VCEK nor SEV-VLEK.")
    chip_id, provider = certificate.extensions.get(HARDWARE_ID), certificate.extensions.get(PROVIDER_ID)
    if (chip_id is None) == (kind == "VCEK") or (provider is None) == (kind == "VLEK"):
        raise AttestationError("A VCEK names its chip and a VLEK its provider, and neither names the other.")
    versions = {name: der.integer_of(_extension(certificate, oid, der.INTEGER), 255) for name, oid in SPL.items()}
    if FMC in certificate.extensions:
        versions["fmc"] = der.integer_of(_extension(certificate, FMC, der.INTEGER), 255)
    return EndorsementKey(
        kind=kind,
        certificate=certificate,
        product_name=der.ia5_of(_extension(certificate, PRODUCT_NAME, der.IA5_STRING)),
        tcb=Tcb(**versions),
        chip_id=None if chip_id is None else _chip_id(chip_id),
        provider=None if provider is None else der.ia5_of(der.read_only(provider, der.IA5_STRING)),
    )


def _extension(certificate: Certificate, oid: str, tag: int) -> bytes:
    if oid not in certificate.extensions:
        raise AttestationError(f"The {certificate.what} certificate lacks the extension {oid}.")
    return der.read_only(certificate.extensions[oid], tag)


def _chip_id(value: bytes) -> bytes:
    """AMD's service writes the bytes as they are, not in an OCTET STRING of their own; both are read."""
    chip_id = value if len(value) in (8, 64) else der.read_only(value, der.OCTET_STRING)
    if len(chip_id) not in (8, 64):
        raise AttestationError(f"A VCEK's chip is named by 8 or 64 bytes, not {len(chip_id)}.")
    return chip_id

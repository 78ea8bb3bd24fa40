"""Whether an AMD SEV-SNP report is authentic and its guest as required: one function for each question.

Everything works offline on bytes. Rules: AMD, "SEV Secure Nested Paging Firmware ABI Specification", 56860, and
"VCEK Certificate and KDS Interface Specification", 57230, read beside google/go-sev-guest and virtee/sev.
"""

import dataclasses
import hmac
from collections.abc import Collection, Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors import certificates
from pomona.private.evidence.processors.certificates import common_name
from pomona.private.evidence.processors.roots import AMD_ROOTS
from pomona.private.evidence.processors.snp import (
    POLICY_DEBUG,
    POLICY_MIGRATE_MA,
    EndorsementKey,
    Product,
    SnpReport,
    Tcb,
    read_endorsement_key,
    read_report,
    read_tcb,
)

SIGNING_KEYS = {0: "VCEK", 1: "VLEK"}
SIGNERS: dict[str, dict[str, Product]] = {
    "VCEK": {"SEV-Milan": "Milan", "SEV-Genoa": "Genoa", "SEV-Turin": "Turin"},
    "VLEK": {"SEV-VLEK-Milan": "Milan", "SEV-VLEK-Genoa": "Genoa", "SEV-VLEK-Turin": "Turin"},
}
"""Which product a signer of AMD's (ASK, ASVK) signs keys for, by its common name."""
MODELS: tuple[tuple[Product, int, range], ...] = (
    ("Milan", 0x19, range(0x00, 0x10)),
    ("Genoa", 0x19, range(0x10, 0x20)),
    ("Genoa", 0x19, range(0xA0, 0xB0)),
    ("Turin", 0x1A, range(0x00, 0x12)),
)
"""Families and models of the processors in a product line, as virtee/sev has them."""

REGISTERS = ("measurement", "host_data", "family_id", "image_id", "id_key_digest", "author_key_digest")


@dataclasses.dataclass(frozen=True)
class VerifiedGuest:
    """A report that `verify_report` found authentic, and the processor that it comes from."""

    report: SnpReport
    key: EndorsementKey
    product: Product


def verify_report(
    data: bytes,
    key_certificate: bytes,
    signer_certificate: bytes,
    now: float,
    roots: Mapping[str, bytes] = AMD_ROOTS,
    allow_debug: bool = False,
    allow_migration_agent: bool = False,
) -> VerifiedGuest:
    """A report from a genuine processor, for a guest that its host cannot look into; `AttestationError` otherwise.

    `key_certificate`: of the VCEK or VLEK, `signer_certificate`: of the ASK or ASVK that signed it, both in DER.
    `now`: seconds since the epoch. `roots`: public keys by product, SubjectPublicKeyInfo in DER. What the guest is is
    for `check_register`, `check_report_data`, `check_guest_svn` and `check_tcb`.
    """
    report, key = read_report(data), read_endorsement_key(key_certificate)
    product = check_key_chain(key, signer_certificate, now, roots)
    check_signing_key(report, key)
    check_signature(report, key)
    check_product(report, product)
    check_chip(report, key)
    check_reported_tcb(report, key, product)
    check_privilege_level(report)
    check_not_under_debug(report, allow_debug)
    check_no_migration_agent(report, allow_migration_agent)
    return VerifiedGuest(report, key, product)


def check_key_chain(
    key: EndorsementKey, signer_certificate: bytes, now: float, roots: Mapping[str, bytes] = AMD_ROOTS
) -> Product:
    """The product whose root signed the signer of the key's certificate, valid at `now`; else `AttestationError`."""
    signer = certificates.read_certificate(signer_certificate, "ASK or ASVK")
    product = SIGNERS[key.kind].get(common_name(signer.subject))
    if product is None or product not in roots:
        raise AttestationError(f"A {key.kind}'s certificate is not signed by a signer of a product with a pinned root.")
    if common_name(signer.issuer) != f"ARK-{product}":
        raise AttestationError("An ASK or ASVK certificate does not name its product's root as its issuer.")
    root = certificates.read_key(roots[product])
    for certificate, above in ((signer, root), (key.certificate, signer.key)):
        certificates.check_validity(certificate, now)
        certificates.check_critical_extensions(certificate)
        certificates.check_signed_by(certificate, above)
    certificates.check_authority(signer)
    certificates.check_issuer(key.certificate, signer.subject)
    if key.certificate.is_authority:
        raise AttestationError(f"A {key.kind}'s certificate must not be allowed to sign certificates.")
    return product


def check_signing_key(report: SnpReport, key: EndorsementKey) -> None:
    """`AttestationError` unless the report says that a key of this kind signed it, and is not without signature."""
    if report.chip_key_masked or SIGNING_KEYS.get(report.signing_key) != key.kind:
        raise AttestationError(f"An SEV-SNP report says that it is not signed by a {key.kind}.")


def check_signature(report: SnpReport, key: EndorsementKey) -> None:
    """`AttestationError` unless the key signed the report, by ECDSA with P-384 and SHA-384."""
    public = key.certificate.key
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP384R1):
        raise AttestationError(f"A {key.kind}'s key is not on P-384.")
    try:
        public.verify(encode_dss_signature(*report.signature), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise AttestationError(f"An SEV-SNP report is not signed by the {key.kind}.") from error


def check_product(report: SnpReport, product: Product) -> None:
    """`AttestationError` where the report names its processor, from version 3 on, and it is not of the product."""
    if report.family_model_stepping is None:
        return
    family, model, _ = report.family_model_stepping
    if not any(name == product and family == of and model in models for name, of, models in MODELS):
        raise AttestationError(f"An SEV-SNP report's processor, {family:#x}/{model:#x}, is not a {product}.")


def check_chip(report: SnpReport, key: EndorsementKey) -> None:
    """`AttestationError` unless a VCEK is the one of the report's chip; a VLEK is of no one chip, so any passes."""
    if key.chip_id is not None and report.chip_id != key.chip_id.ljust(64, b"\x00"):
        raise AttestationError("An SEV-SNP report's chip is not the one that the VCEK's certificate names, or masked.")


def check_reported_tcb(report: SnpReport, key: EndorsementKey, product: Product) -> None:
    """`AttestationError` unless the report's versions are those that the key's certificate was issued for."""
    if read_tcb(report.reported_tcb, product) != key.tcb:
        raise AttestationError("An SEV-SNP report's TCB is not the one that the key's certificate was issued for.")


def check_privilege_level(report: SnpReport, lowest: int = 0) -> None:
    """`AttestationError` unless software at VMPL 0 to `lowest` asked for the report, so at 0 that level alone."""
    if report.vmpl > lowest:
        raise AttestationError(
            f"An SEV-SNP report was asked for at VMPL {report.vmpl}; {lowest} is the lowest allowed."
        )


def check_not_under_debug(report: SnpReport, allow_debug: bool = False) -> None:
    """`AttestationError` where the guest's policy lets the host decrypt its memory, unless `allow_debug`."""
    if report.policy & POLICY_DEBUG and not allow_debug:
        raise AttestationError("An SEV-SNP guest's policy allows debugging: its host can read its memory.")


def check_no_migration_agent(report: SnpReport, allow_migration_agent: bool = False) -> None:
    """`AttestationError` where the guest's policy lets an agent move it to other machines, unless it is allowed."""
    if report.policy & POLICY_MIGRATE_MA and not allow_migration_agent:
        raise AttestationError("An SEV-SNP guest's policy allows a migration agent.")


def check_guest_svn(report: SnpReport, minimum: int) -> None:
    """`AttestationError` unless the security version that the owner gave the guest is at least `minimum`."""
    if report.guest_svn < minimum:
        raise AttestationError(f"An SEV-SNP guest's security version is {report.guest_svn}; the minimum is {minimum}.")


def check_tcb(report: SnpReport, product: Product, minimum: Tcb) -> None:
    """`AttestationError` unless each version of the firmware is at least the one in `minimum`.

    That holds for the versions that the key stands for, those that run, those that the firmware cannot go back behind,
    and those at the guest's launch.
    """
    for name in ("reported", "current", "committed", "launch"):
        tcb = dataclasses.asdict(read_tcb(getattr(report, f"{name}_tcb"), product))
        for part, least in dataclasses.asdict(minimum).items():
            if tcb[part] < least:
                raise AttestationError(f"An SEV-SNP report's {name} {part} version is {tcb[part]}, below {least}.")


def check_register(report: SnpReport, register: str, allowed: Collection[bytes]) -> None:
    """`AttestationError` unless a field, one of `REGISTERS`, has one of the allowed values."""
    if register not in REGISTERS:
        raise AttestationError(f"An SEV-SNP report has no field {register!r} to check: {', '.join(REGISTERS)}.")
    if getattr(report, register) not in allowed:
        raise AttestationError(f"An SEV-SNP report's {register} has none of the {len(allowed)} allowed values.")


def check_report_data(report: SnpReport, expected: bytes) -> None:
    """`AttestationError` unless the guest asked for exactly these 64 bytes to be signed."""
    if not hmac.compare_digest(report.report_data, expected):
        raise AttestationError("An SEV-SNP report's report data is not what was expected.")

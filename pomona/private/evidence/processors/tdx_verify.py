"""Whether an Intel TDX quote is authentic and its trust domain (TD) as required: one function for each question.

Everything works offline on bytes. What only Intel's collateral can tell, whether the platform's versions are up to date
and its certificate not revoked, is in `tdx_collateral`. The rules are those of google/go-tdx-guest and of the dcap-qvl
package, which tests compare with.
"""

import dataclasses
import hashlib
import hmac
from collections.abc import Collection

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors import certificates
from pomona.private.evidence.processors.certificates import Certificate
from pomona.private.evidence.processors.roots import INTEL_SGX_ROOT, INTEL_TD_QE_PRODUCT, INTEL_TD_QE_SIGNER
from pomona.private.evidence.processors.tdx import PckIdentity, TdQuote, read_pck_identity, read_quote

CHAIN = ("PCK", "PCK authority", "Intel root")

# TD attributes: Intel, "TDX Module ABI Specification", 348551 (ATTRIBUTES).
UNDER_DEBUG = 0xFF
"""The group TUD: with any bit of it set, the host can look into the TD; bit 0 is DEBUG."""
SERVTD_EXT, SEPT_VE_DISABLE, MIGRATABLE = 1 << 17, 1 << 28, 1 << 29

# Of Intel's "TD_QE" identity: ATTRIBUTES and MISCSELECT, under masks that leave MODE64BIT and XFRM open.
QE_ATTRIBUTES = bytes.fromhex("11000000000000000000000000000000")
QE_ATTRIBUTES_MASK = bytes.fromhex("fbffffffffffffff0000000000000000")

REGISTERS = (
    "mrseam",
    "mrtd",
    "mrconfigid",
    "mrowner",
    "mrownerconfig",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "rtmr3",
)


@dataclasses.dataclass(frozen=True)
class VerifiedTd:
    """A quote that `verify_quote` found authentic, and the platform that it comes from."""

    quote: TdQuote
    platform: PckIdentity


def verify_quote(data: bytes, now: float, root: bytes = INTEL_SGX_ROOT, allow_debug: bool = False) -> VerifiedTd:
    """A quote from a genuine platform, for a TD that its host cannot look into; `AttestationError` otherwise.

    `now`: seconds since the epoch. `root`: the public key that the chain has to end in, SubjectPublicKeyInfo in DER.
    What the TD is, its registers and report data, is for `check_register` and `check_report_data`.
    """
    quote = read_quote(data)
    pck = check_pck_chain(quote, now, root)
    check_qe_report_signature(quote, pck)
    check_quoting_enclave(quote)
    check_attestation_key(quote)
    check_quote_signature(quote)
    check_tdx_module(quote)
    check_not_under_debug(quote, allow_debug)
    check_not_migratable(quote)
    check_no_service_td(quote)
    check_pages_protected(quote)
    return VerifiedTd(quote, read_pck_identity(pck))


def check_pck_chain(quote: TdQuote, now: float, root: bytes = INTEL_SGX_ROOT) -> Certificate:
    """The PCK certificate, where its chain is valid at `now` and ends in `root`'s key; else `AttestationError`."""
    chain = certificates.read_pem_chain(quote.pck_chain, CHAIN)
    pck, authority, top = chain
    pinned = certificates.read_key(root)
    if certificates.key_bytes(top.key) != certificates.key_bytes(pinned):
        raise AttestationError("A PCK certificate's chain does not end in the pinned root's key.")
    for certificate, issuer, key in ((top, top, pinned), (authority, top, pinned), (pck, authority, authority.key)):
        certificates.check_validity(certificate, now)
        certificates.check_critical_extensions(certificate)
        certificates.check_authority(issuer)
        certificates.check_issuer(certificate, issuer.subject)
        certificates.check_signed_by(certificate, key)
    if pck.is_authority:
        raise AttestationError("A PCK certificate must not be allowed to sign certificates.")
    read_pck_identity(pck)  # Refuses whatever is not a platform's certificate.
    return pck


def check_qe_report_signature(quote: TdQuote, pck: Certificate) -> None:
    """`AttestationError` unless the platform's key signed the quoting enclave's report."""
    if not isinstance(pck.key, ec.EllipticCurvePublicKey) or not isinstance(pck.key.curve, ec.SECP256R1):
        raise AttestationError("A PCK certificate's key is not on P-256.")
    _check_signature(pck.key, quote.qe_report_signature, quote.qe_report.signed, "quoting enclave's report")


def check_quoting_enclave(
    quote: TdQuote, signer: bytes = INTEL_TD_QE_SIGNER, product: int = INTEL_TD_QE_PRODUCT
) -> None:
    """`AttestationError` unless the quoting enclave is Intel's for TDs, and not in debug mode.

    Without this anyone who may load enclaves on a genuine platform could write one that signs made-up quotes.
    """
    report = quote.qe_report
    masked = bytes(value & mask for value, mask in zip(report.attributes, QE_ATTRIBUTES_MASK))
    if report.mrsigner != signer or report.isv_prod_id != product:
        raise AttestationError("A quote does not come from Intel's quoting enclave for TDs.")
    if masked != QE_ATTRIBUTES or report.misc_select != 0:
        raise AttestationError("A quoting enclave's attributes are not those of Intel's, which has no debug mode.")


def check_attestation_key(quote: TdQuote) -> None:
    """`AttestationError` unless the quoting enclave's report data is SHA-256 over its key and data, then 32 zeros."""
    digest = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest()
    if not hmac.compare_digest(quote.qe_report.report_data, digest + bytes(32)):
        raise AttestationError("A quote's attestation key is not the one that the quoting enclave's report names.")


def check_quote_signature(quote: TdQuote) -> None:
    """`AttestationError` unless the attestation key signed the header and the TD report."""
    x, y = (int.from_bytes(quote.attestation_key[start : start + 32], "big") for start in (0, 32))
    try:
        key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError as error:
        raise AttestationError("A quote's attestation key is not a point on P-256.") from error
    _check_signature(key, quote.signature, quote.signed, "quote")


def _check_signature(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes, what: str) -> None:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise AttestationError(f"The {what} is not signed by the key that it has to be signed by.") from error


def check_tdx_module(quote: TdQuote) -> None:
    """`AttestationError` unless the TDX module is one that Intel signed for production: both fields are zero then."""
    if any(quote.report.mrsignerseam) or quote.report.seam_attributes != 0:
        raise AttestationError("A TD runs on a TDX module that is not Intel's for production.")


def check_not_under_debug(quote: TdQuote, allow_debug: bool = False) -> None:
    """`AttestationError` where the host may look into the TD; `allow_debug` lets bit 0, DEBUG, pass and no other."""
    if quote.report.td_attributes & UNDER_DEBUG & ~int(allow_debug):
        raise AttestationError("A TD is under debug: its host can read its memory.")


def check_not_migratable(quote: TdQuote) -> None:
    """`AttestationError` where the TD may be moved to another machine, which the quote says nothing about."""
    if quote.report.td_attributes & MIGRATABLE:
        raise AttestationError("A TD may be migrated to another machine.")


def check_no_service_td(quote: TdQuote) -> None:
    """`AttestationError` where other TDs are bound to this one, which the quote's registers do not describe."""
    if quote.report.td_attributes & SERVTD_EXT or any(quote.report.mrservicetd or b""):
        raise AttestationError("A TD is bound to service TDs.")


def check_pages_protected(quote: TdQuote) -> None:
    """`AttestationError` unless the host cannot make the TD take exceptions by removing pages (SEPT_VE_DISABLE)."""
    if not quote.report.td_attributes & SEPT_VE_DISABLE:
        raise AttestationError("A TD's attributes lack SEPT_VE_DISABLE: its host can raise exceptions in it.")


def check_register(quote: TdQuote, register: str, allowed: Collection[bytes]) -> None:
    """`AttestationError` unless a register, one of `REGISTERS`, has one of the allowed values, 48 bytes each."""
    if register not in REGISTERS:
        raise AttestationError(f"A TD has no register {register!r}; it has {', '.join(REGISTERS)}.")
    if getattr(quote.report, register) not in allowed:
        raise AttestationError(f"A TD's register {register} has none of the {len(allowed)} allowed values.")


def check_report_data(quote: TdQuote, expected: bytes) -> None:
    """`AttestationError` unless the TD asked for exactly these 64 bytes to be signed."""
    if not hmac.compare_digest(quote.report.report_data, expected):
        raise AttestationError("A quote's report data is not what was expected.")

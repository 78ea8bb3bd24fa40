"""What Intel publishes about TDX platforms: how up to date one is, and whether its certificate is revoked.

Intel's Provisioning Certification Service, version 4, hands the parts out, each signed and valid for a time; nothing is
fetched here, all is given as bytes. The rules by which a quote's security versions get a status are long and change, so
the `dcap-qvl` package applies them; it is optional, and imported where it is used.
"""

import binascii
import dataclasses
from collections.abc import Collection

import msgspec

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors.tdx import read_quote

MOST_DOCUMENT_BYTES = 1 << 20
UP_TO_DATE = frozenset({"UpToDate"})


@dataclasses.dataclass(frozen=True)
class Collateral:
    """The parts that a quote is judged by. Chains are certificates in PEM, signatures r and s in 64 bytes."""

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    """Revocation list in DER, like `pck_crl`."""
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    """JSON exactly as Intel signed it, like `qe_identity`."""
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes


@dataclasses.dataclass(frozen=True)
class TcbStatus:
    """Intel's word on a platform: a status as in the `tcbStatus` of its TCB information, and the advisories open."""

    status: str
    advisories: tuple[str, ...]


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str


def read_collateral(document: bytes) -> Collateral:
    """Collateral from one JSON object with the names of `Collateral`, its bytes in hexadecimal, of 1 MiB at most.

    `AttestationError` where it is anything else. Nothing in it is checked yet.
    """
    if len(document) > MOST_DOCUMENT_BYTES:
        raise AttestationError(f"Collateral has {len(document)} bytes; {MOST_DOCUMENT_BYTES} are allowed.")
    try:
        parts = msgspec.structs.asdict(msgspec.json.decode(document, type=_Document))
        for name in ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"):
            parts[name] = binascii.unhexlify(parts[name])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise AttestationError("Collateral has to be a JSON object of its nine parts, bytes in hexadecimal.") from error
    return Collateral(**parts)


def check_tcb_status(
    quote: bytes,
    collateral: Collateral,
    now: float,
    accepted: Collection[str] = UP_TO_DATE,
    root_certificate: bytes | None = None,
) -> TcbStatus:
    """The status of the platform and its quoting enclave, where it is an accepted one; else `AttestationError`.

    Refuses, too, a platform whose certificate is revoked, and collateral that is not Intel's or not valid at `now`
    (seconds since the epoch). `root_certificate`: in DER, that collateral and quote have to lead to; None for Intel's,
    as the package has it.
    """
    try:
        import dcap_qvl
    except ImportError as error:
        raise AttestationError("Intel's collateral needs the dcap-qvl package, which is not installed.") from error
    read_quote(quote)
    try:
        parts = dcap_qvl.QuoteCollateralV3(**dataclasses.asdict(collateral))
        if root_certificate is None:
            verdict = dcap_qvl.verify(quote, parts, int(now))
        else:
            verdict = dcap_qvl.verify_with_root_ca(quote, parts, root_certificate, int(now))
    except (ValueError, OverflowError) as error:
        raise AttestationError("A quote and its collateral do not pass Intel's rules, or not at this time.") from error
    status = TcbStatus(verdict.status, tuple(verdict.advisory_ids))
    if status.status not in accepted:
        raise AttestationError(f"A platform's TCB status is {status.status}; accepted: {', '.join(sorted(accepted))}.")
    return status

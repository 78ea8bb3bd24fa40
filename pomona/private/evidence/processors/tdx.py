"""Intel TDX quotes as bytes: DCAP versions 4 and 5, signed by ECDSA with P-256, and Intel's platform certificates.

Layouts: Intel, "Trust Domain Extensions Data Center Attestation Primitives: Quote Generation Library and Quote
Verification Library", appendices, as two implementations read them, google/go-tdx-guest and dcap-qvl; body type 4 is
known from the second alone. SGX extensions: Intel, "SGX PCK Certificate and Certificate Revocation List Profile
Specification", 1.5. All numbers are little-endian. Nothing here is authentic yet: `tdx_verify` checks it.
"""

import dataclasses
import struct
from typing import Any

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors import der
from pomona.private.evidence.processors.certificates import Certificate

MOST_QUOTE_BYTES = 32768
"""What Linux hands out at most (TSM_REPORT_OUTBLOB_MAX in include/linux/tsm.h)."""
HEADER = struct.Struct("<HHI4x16s20x")
TEE_TDX, KEY_ECDSA_P256 = 0x81, 2
INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
DATA_QE_REPORT, DATA_PCK_CHAIN = 6, 5
QE_REPORT = struct.Struct("<16sI28x16s32s32x32s96xHH60x64s")

TD_10: tuple[tuple[str, int], ...] = (
    ("tee_tcb_svn", 16),
    ("mrseam", 48),
    ("mrsignerseam", 48),
    ("seam_attributes", 8),
    ("td_attributes", 8),
    ("xfam", 8),
    ("mrtd", 48),
    ("mrconfigid", 48),
    ("mrowner", 48),
    ("mrownerconfig", 48),
    ("rtmr0", 48),
    ("rtmr1", 48),
    ("rtmr2", 48),
    ("rtmr3", 48),
    ("report_data", 64),
)
TD_15 = (*TD_10, ("tee_tcb_svn_2", 16), ("mrservicetd", 48))
SERVICE_TD_BYTES = 237
"""What type 4 adds: about the TD's devices, its service TDs and the platform it was launched on; kept unread."""
BODIES = {2: TD_10, 3: TD_15, 4: (*TD_15, ("extended", SERVICE_TD_BYTES))}
NUMBERS = ("seam_attributes", "td_attributes", "xfam")

SGX_EXTENSIONS = "1.2.840.113741.1.13.1"


@dataclasses.dataclass(frozen=True)
class TdReport:
    """What the TDX module says of a trust domain (TD). Registers are of 48 bytes, SHA-384."""

    tee_tcb_svn: bytes
    """[16] security versions of the TDX module, as of the TD's launch."""
    mrseam: bytes
    mrsignerseam: bytes
    """Who signed the TDX module; zeros for Intel."""
    seam_attributes: int
    td_attributes: int
    xfam: int
    """Processor state that the TD may use, as in XCR0."""
    mrtd: bytes
    """The TD's memory at launch, firmware included."""
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    """[64] what the TD asked to have signed."""
    tee_tcb_svn_2: bytes | None = None
    """[16] security versions of the TDX module that runs now; from body 1.5 on, like `mrservicetd`."""
    mrservicetd: bytes | None = None
    extended: bytes | None = None
    """[237] of body type 4."""


@dataclasses.dataclass(frozen=True)
class QeReport:
    """What the processor says of the quoting enclave (QE), which holds the attestation key; an SGX enclave report."""

    cpu_svn: bytes
    misc_select: int
    attributes: bytes
    """[16]."""
    mrenclave: bytes
    mrsigner: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes
    signed: bytes
    """[384] as the platform's key signed it."""


@dataclasses.dataclass(frozen=True)
class TdQuote:
    """A quote: a TD report, signed by a quoting enclave's attestation key, signed by the platform's PCK."""

    version: int
    report: TdReport
    signed: bytes
    """Header and body, as the attestation key signed them."""
    signature: bytes
    """[64] r and s, big-endian, as in `qe_report_signature`."""
    attestation_key: bytes
    """[64] x and y of a point on P-256, big-endian."""
    qe_report: QeReport
    qe_report_signature: bytes
    qe_auth_data: bytes
    pck_chain: bytes
    """PEM: the PCK certificate, its authority, the root."""


@dataclasses.dataclass(frozen=True)
class PckIdentity:
    """What a PCK certificate says of its platform, in Intel's SGX extensions."""

    ppid: bytes
    """[16] the platform's number: it identifies one machine."""
    cpu_svn: bytes
    pce_svn: int
    pce_id: bytes
    fmspc: bytes
    """[6] family, model, stepping and custom SKU: what Intel's TCB information is published by."""
    tcb_components: tuple[int, ...]
    """The 16 security versions that `cpu_svn` stands for."""
    sgx_type: int
    """0 standard, 1 scalable, 2 scalable with integrity."""


class Reader:
    """Takes bytes from the front; `AttestationError` where too few are left."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.offset, self.what = data, 0, what

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        if length > len(self.data) - self.offset:
            raise AttestationError(f"The {self.what} is cut off: {length} bytes are due, fewer are left.")
        self.offset += length
        return self.data[self.offset - length : self.offset]

    def number(self, length: int) -> int:
        """The number in the next `length` bytes."""
        return int.from_bytes(self.take(length), "little")

    def sized(self, length: int) -> bytes:
        """As many bytes as the number in the next `length` bytes says."""
        return self.take(self.number(length))

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self.data) - self.offset)


def read_quote(data: bytes) -> TdQuote:
    """A quote from its bytes, 32 KiB at most; `AttestationError` where it is not one of those that the module names.

    Zero bytes may follow it, as they do in recorded ones; they are not part of anything.
    """
    if len(data) > MOST_QUOTE_BYTES:
        raise AttestationError(f"A quote has {len(data)} bytes; {MOST_QUOTE_BYTES} are allowed.")
    reader = Reader(data, "TDX quote")
    version, key_type, tee_type, vendor = HEADER.unpack(reader.take(HEADER.size))
    if version not in (4, 5) or tee_type != TEE_TDX:
        raise AttestationError(f"A quote of version {version} for TEE {tee_type:#x} is not of version 4 or 5 for TDX.")
    if key_type != KEY_ECDSA_P256 or vendor != INTEL_QE_VENDOR:
        raise AttestationError("A quote has to be signed by ECDSA with P-256 and by Intel's quoting enclave.")
    if version == 4:
        fields, length = TD_10, None
    else:
        kind, length = reader.number(2), reader.number(4)
        if kind not in BODIES:
            raise AttestationError(f"A quote's body is of type {kind}; known are 2, 3 and 4, TD reports 1.0 and 1.5.")
        fields = BODIES[kind]
    if length is not None and length != sum(size for _, size in fields):
        raise AttestationError(f"A quote's body says that it has {length} bytes, which is not its type's length.")
    report = _read_report(reader, fields)
    signed = data[: reader.offset]
    signatures = Reader(reader.sized(4), "TDX quote's signature data")
    if reader.rest().strip(b"\x00"):
        raise AttestationError("Bytes other than zero follow a quote.")
    return _read_signatures(signatures, version, report, signed)


def _read_report(reader: Reader, fields: tuple[tuple[str, int], ...]) -> TdReport:
    values: dict[str, Any] = {name: reader.take(size) for name, size in fields}
    for name in NUMBERS:
        values[name] = int.from_bytes(values[name], "little")
    return TdReport(**values)


def _read_signatures(reader: Reader, version: int, report: TdReport, signed: bytes) -> TdQuote:
    signature, key = reader.take(64), reader.take(64)
    if reader.number(2) != DATA_QE_REPORT:
        raise AttestationError("A quote's certification data has to be of type 6, the quoting enclave's report.")
    inner = Reader(reader.sized(4), "quoting enclave's certification data")
    qe_report, qe_signature, auth_data = inner.take(QE_REPORT.size), inner.take(64), inner.sized(2)
    if inner.number(2) != DATA_PCK_CHAIN:
        raise AttestationError("A quoting enclave's certification data has to be of type 5, the chain of the PCK.")
    chain = inner.sized(4)
    if reader.rest() or inner.rest():
        raise AttestationError("A quote's signature data has bytes after its last field.")
    return TdQuote(
        version=version,
        report=report,
        signed=signed,
        signature=signature,
        attestation_key=key,
        qe_report=_read_qe_report(qe_report),
        qe_report_signature=qe_signature,
        qe_auth_data=auth_data,
        pck_chain=chain,
    )


def _read_qe_report(data: bytes) -> QeReport:
    cpu_svn, misc_select, attributes, mrenclave, mrsigner, product, svn, report_data = QE_REPORT.unpack(data)
    return QeReport(cpu_svn, misc_select, attributes, mrenclave, mrsigner, product, svn, report_data, signed=data)


def read_pck_identity(certificate: Certificate) -> PckIdentity:
    """The platform's description in a PCK certificate; `AttestationError` where it has none, or a malformed one."""
    if SGX_EXTENSIONS not in certificate.extensions:
        raise AttestationError(f"The {certificate.what} certificate has none of Intel's SGX extensions.")
    fields = _by_identifier(der.read_only(certificate.extensions[SGX_EXTENSIONS], der.SEQUENCE))
    tcb = _by_identifier(_field(fields, "2", der.SEQUENCE))
    components = (der.integer_of(_field(tcb, f"2.{number}", der.INTEGER), 255) for number in range(1, 17))
    return PckIdentity(
        ppid=_octets(fields, "1", 16),
        cpu_svn=_octets(tcb, "2.18", 16),
        pce_svn=der.integer_of(_field(tcb, "2.17", der.INTEGER), 65535),
        pce_id=_octets(fields, "3", 2),
        fmspc=_octets(fields, "4", 6),
        tcb_components=tuple(components),
        sgx_type=der.integer_of(_field(fields, "5", der.ENUMERATED), 255),
    )


def _by_identifier(sequence: bytes) -> dict[str, der.Element]:
    """A SEQUENCE of pairs of an object identifier and a value, each identifier once."""
    fields: dict[str, der.Element] = {}
    for pair in der.read_sequence(sequence):
        parts = der.read_sequence(pair.value) if pair.tag == der.SEQUENCE else []
        if len(parts) != 2 or parts[0].tag != der.OBJECT_IDENTIFIER:
            raise AttestationError("Intel's SGX extensions have to be pairs of an identifier and a value.")
        identifier = der.identifier_of(parts[0].value)
        if identifier in fields:
            raise AttestationError(f"Intel's SGX extensions have {identifier} twice.")
        fields[identifier] = parts[1]
    return fields


def _field(fields: dict[str, der.Element], suffix: str, tag: int) -> bytes:
    element = fields.get(f"{SGX_EXTENSIONS}.{suffix}")
    if element is None or element.tag != tag:
        raise AttestationError(f"Intel's SGX extensions lack {SGX_EXTENSIONS}.{suffix}, or it is of another type.")
    return element.value


def _octets(fields: dict[str, der.Element], suffix: str, length: int) -> bytes:
    value = _field(fields, suffix, der.OCTET_STRING)
    if len(value) != length:
        raise AttestationError(f"Intel's SGX extension {SGX_EXTENSIONS}.{suffix} has to be of {length} bytes.")
    return value

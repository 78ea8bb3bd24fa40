"""Intel TDX: recorded quotes against Intel's root and dcap-qvl, and made ones for each reason to refuse."""

import dataclasses
import hashlib
import json
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors import roots, tdx, tdx_verify
from pomona.private.evidence.processors.certificates import read_pem_chain
from pomona.private.evidence.processors.tdx_verify import verify_quote

QUOTES = ("tdx_quote_v4.bin", "tdx_quote_v5_td15.bin", "tdx_quote_v5_td15ex.bin")
ORACLE_NAMES = {"mrseam": "mr_seam", "mrsignerseam": "mr_signer_seam", "mrtd": "mr_td", "mrconfigid": "mr_config_id"}
ORACLE_NAMES |= {"mrowner": "mr_owner", "mrownerconfig": "mr_owner_config", "mrservicetd": "mr_service_td"}
ORACLE_NAMES |= {f"rtmr{number}": f"rt_mr{number}" for number in range(4)} | {"tee_tcb_svn_2": "tee_tcb_svn2"}


@pytest.mark.parametrize("name", QUOTES)
def test_a_recorded_quote_leads_to_intels_root(recorded, make, name):
    verified = verify_quote(recorded(name), make.now)
    assert len(verified.platform.fmspc) == 6
    assert verified.quote.version == (4 if "v4" in name else 5)
    assert (verified.quote.report.mrservicetd is None) == ("v4" in name)
    assert (verified.quote.report.extended is None) == ("td15ex" not in name)


@pytest.mark.parametrize("name", QUOTES)
def test_every_field_reads_as_dcap_qvl_reads_it(recorded, name):
    dcap_qvl = pytest.importorskip("dcap_qvl")
    quote, oracle = tdx.read_quote(recorded(name)), dcap_qvl.Quote.parse(recorded(name))
    assert quote.version == oracle.header.version
    for field in dataclasses.fields(tdx.TdReport):
        ours = getattr(quote.report, field.name)
        if ours is None or field.name == "extended":
            continue
        theirs = getattr(oracle.report, ORACLE_NAMES.get(field.name, field.name))
        assert ours == (int.from_bytes(theirs, "little") if isinstance(ours, int) else theirs), field.name
    if quote.report.extended is not None:
        assert quote.report.extended[1:33] == oracle.report.td_id
        assert quote.report.extended[-8:] == oracle.report.cur_service_td_attributes


@pytest.mark.parametrize("name", QUOTES)
def test_a_platforms_description_reads_as_dcap_qvl_reads_it(recorded, name):
    dcap_qvl = pytest.importorskip("dcap_qvl")
    chain = tdx.read_quote(recorded(name)).pck_chain
    platform = tdx.read_pck_identity(read_pem_chain(chain, tdx_verify.CHAIN)[0])
    oracle = dcap_qvl.parse_pck_extension_from_pem(chain)
    for field in ("ppid", "cpu_svn", "pce_svn", "pce_id", "fmspc", "sgx_type"):
        assert getattr(platform, field) == getattr(oracle, field), field
    assert bytes(platform.tcb_components) == platform.cpu_svn


def test_a_recorded_quote_is_refused_outside_its_certificates_validity(recorded):
    first, last = 1_738_884_351.0, 1_959_722_751.0  # Of the PCK certificate, as openssl shows it.
    for now in (first, last):
        verify_quote(recorded(QUOTES[0]), now)
    for now in (0.0, first - 1, last + 1, 4_000_000_000.0, float("nan")):
        with pytest.raises(AttestationError, match="not valid at the time"):
            verify_quote(recorded(QUOTES[0]), now)


REGIONS = {  # offset in the quote of version 4, and the reason to refuse after a bit there is turned
    "user data": (30, "quote is not signed"),
    "tee_tcb_svn": (48, "quote is not signed"),
    "mrtd": (48 + 136, "quote is not signed"),
    "rtmr3": (48 + 472, "quote is not signed"),
    "report data": (48 + 583, "quote is not signed"),
    "signature": (636 + 40, "quote is not signed"),
    "attestation key": (636 + 64, "attestation key is not the one"),
    "QE's security version": (770 + 259, "quoting enclave's report is not signed"),
    "QE's report data": (770 + 320, "quoting enclave's report is not signed"),
    "QE report's signature": (770 + 384, "quoting enclave's report is not signed"),
    "QE's data": (770 + 450, "attestation key is not the one"),
    "PCK certificate": (770 + 482 + 6 + 60, "PCK certificate"),
}


@pytest.mark.parametrize("region", REGIONS)
def test_a_recorded_quote_with_a_turned_bit_is_refused(recorded, make, region):
    offset, reason = REGIONS[region]
    data = bytearray(recorded(QUOTES[0]))
    data[offset] ^= 1
    with pytest.raises(AttestationError, match=reason):
        verify_quote(bytes(data), make.now)


@pytest.mark.parametrize("offset, bits, reason", [(3865, 4, "odd bits"), (4906, 2, "bits beyond its end")])
def test_bits_of_certificates_that_mean_nothing_have_to_be_zero(recorded, make, offset, bits, reason):
    data = bytearray(recorded(QUOTES[0]))
    data[offset] ^= bits
    with pytest.raises(AttestationError, match=reason):
        verify_quote(bytes(data), make.now)


@pytest.mark.parametrize("kind", [None, 2, 3, 4])
def test_a_made_quote_passes_with_its_root_and_not_with_intels(intel, make, kind):
    quote = intel.quote(kind)
    verified = verify_quote(quote, make.now, intel.pinned)
    assert verified.quote.report.rtmr2 == b"rtmr2".ljust(48, b".")
    assert verified.platform == tdx.PckIdentity(
        b"p" * 16, bytes(range(1, 17)), 13, b"\0\0", b"\x90\xc0\x6f\0\0\0", tuple(range(1, 17)), 1
    )
    with pytest.raises(AttestationError, match="pinned root"):
        verify_quote(quote, make.now)


def of_body(**fields):
    return lambda intel: intel.quote(3, **fields)


def attributes(bits):
    return of_body(td_attributes=(1 << 28 | bits).to_bytes(8, "little"))


def of_enclave(**fields):
    return lambda intel: intel.quote(qe=intel.qe_report(**fields))


def of_chain(**changes):
    return lambda intel: intel.quote(chain=intel.chain(**changes))


OFF_CURVE = b"k" * 64
NAMES_OFF_CURVE = hashlib.sha256(OFF_CURVE + b"a" * 32).digest() + bytes(32)
REFUSED = {
    "quote signed by another key": (lambda i: i.quote(signer=i.pck), "^The quote is not signed"),
    "key not on the curve": (
        lambda i: i.quote(key=OFF_CURVE, qe=i.qe_report(report_data=NAMES_OFF_CURVE)),
        "not a point on P-256",
    ),
    "enclave's report signed by another key": (lambda i: i.quote(qe_signer=i.root), "enclave's report is not signed"),
    "key that the enclave does not name": (of_enclave(report_data=bytes(64)), "not the one that the quoting"),
    "more in the enclave's report data": (
        lambda i: i.quote(qe=i.qe_report()[:-1] + b"\x01"),
        "not the one that the quoting",
    ),
    "enclave of another signer": (of_enclave(mrsigner=b"s" * 32), "does not come from Intel's quoting enclave"),
    "another enclave of Intel's": (of_enclave(product=1), "does not come from Intel's quoting enclave"),
    "enclave in debug mode": (of_enclave(attributes=b"\x17" + bytes(15)), "attributes are not those"),
    "enclave without initialization": (of_enclave(attributes=b"\x14" + bytes(15)), "attributes are not those"),
    "enclave with other state": (of_enclave(misc_select=1), "attributes are not those"),
    "module of another signer": (of_body(mrsignerseam=b"s" * 48), "not Intel's for production"),
    "module in debug mode": (of_body(seam_attributes=b"\x01" + bytes(7)), "not Intel's for production"),
    **{f"TD under debug, bit {bit}": (attributes(1 << bit), "under debug") for bit in range(8)},
    "migratable TD": (attributes(1 << 29), "migrated"),
    "TD with service TDs": (of_body(mrservicetd=b"\x01" + bytes(47)), "service TDs"),
    "TD with service TDs by attribute": (attributes(1 << 17), "service TDs"),
    "TD that takes exceptions": (of_body(td_attributes=bytes(8)), "SEPT_VE_DISABLE"),
    "root not pinned": (lambda i: of_chain(root={"key": i.pck})(i), "pinned root"),
    "expired PCK": (of_chain(pck={"ends": 1_794_999_999.0}), "PCK certificate is not valid"),
    "expired authority": (of_chain(authority={"ends": 1_794_999_999.0}), "PCK authority certificate is not valid"),
    "expired root": (of_chain(root={"ends": 1_794_999_999.0}), "root certificate is not valid"),
    "PCK signed by another": (lambda i: of_chain(pck={"signer": i.root})(i), "PCK certificate is not signed"),
    "authority signed by another": (lambda i: of_chain(authority={"signer": i.pck})(i), "authority certificate is not"),
    "root signed by another": (lambda i: of_chain(root={"signer": i.pck})(i), "root certificate is not signed"),
    "PCK of another issuer": (of_chain(pck={"issuer": "Else"}), "PCK certificate names another issuer"),
    "authority of another issuer": (of_chain(authority={"issuer": "Else"}), "authority certificate names another"),
    "authority that is none": (of_chain(authority={"ca": False}), "authority certificate is not allowed to sign"),
    "authority that may not sign": (of_chain(authority={"usage": "none"}), "authority certificate is not allowed"),
    "root that is none": (of_chain(root={"ca": False}), "root certificate is not allowed to sign"),
    "PCK that is an authority": (of_chain(pck={"ca": True}), "PCK certificate must not be allowed"),
    "PCK with an unknown critical extension": (
        of_chain(pck={"critical": (tdx.SGX_EXTENSIONS,)}),
        f"critical extension {tdx.SGX_EXTENSIONS}",
    ),
    "PCK on another curve": (of_chain(pck={"key": ec.generate_private_key(ec.SECP384R1())}), "not on P-256"),
    "PCK without SGX extensions": (of_chain(sgx=b""), "none of Intel's SGX extensions"),
    "four certificates": (lambda i: i.quote(chain=i.chain() + i.chain()[-800:]), "3 certificates in PEM"),
    "something between the certificates": (
        lambda i: i.quote(chain=i.chain().replace(b"-----BEGIN", b"x-----BEGIN")),
        "3 certificates in PEM",
    ),
    "a certificate that is not in base64": (
        lambda i: i.quote(
            chain=i.chain().replace(b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN CERTIFICATE-----\n=", 1)
        ),
        "not in base64",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_made_quote_is_refused_for_its_reason(intel, make, case):
    build, reason = REFUSED[case]
    with pytest.raises(AttestationError, match=reason):
        verify_quote(build(intel), make.now, intel.pinned)


def test_debug_passes_where_it_is_allowed_and_nothing_else_of_its_group(intel, make):
    assert verify_quote(attributes(1)(intel), make.now, intel.pinned, allow_debug=True).quote.report.td_attributes & 1
    for bit in range(1, 8):
        with pytest.raises(AttestationError, match="under debug"):
            verify_quote(attributes(1 | 1 << bit)(intel), make.now, intel.pinned, allow_debug=True)


def test_registers_and_report_data_are_compared(intel):
    quote = tdx.read_quote(intel.quote(3))
    for register in tdx_verify.REGISTERS:
        value = getattr(quote.report, register)
        tdx_verify.check_register(quote, register, [b"?" * 48, value])
        with pytest.raises(AttestationError, match=f"{register} has none of the 1 allowed"):
            tdx_verify.check_register(quote, register, [b"?" * 48])
        with pytest.raises(AttestationError, match="none of the 0 allowed"):
            tdx_verify.check_register(quote, register, [])
    with pytest.raises(AttestationError, match="no register 'report_data'"):
        tdx_verify.check_register(quote, "report_data", [bytes(range(64))])
    tdx_verify.check_report_data(quote, bytes(range(64)))
    for other in (bytes(64), bytes(range(63)), b""):
        with pytest.raises(AttestationError, match="not what was expected"):
            tdx_verify.check_report_data(quote, other)


def changed(data, offset, fmt, value):
    return data[:offset] + struct.pack(fmt, value) + data[offset + struct.calcsize(fmt) :]


MALFORMED = {
    "version": (lambda q4, q5: changed(q4, 0, "<H", 3), "not of version 4 or 5 for TDX"),
    "SGX": (lambda q4, q5: changed(q4, 4, "<I", 0), "not of version 4 or 5 for TDX"),
    "key type": (lambda q4, q5: changed(q4, 2, "<H", 3), "ECDSA with P-256"),
    "vendor": (lambda q4, q5: changed(q4, 12, "<B", 0), "Intel's quoting enclave"),
    "body of SGX": (lambda q4, q5: changed(q5, 48, "<H", 1), "body is of type 1"),
    "unknown body": (lambda q4, q5: changed(q5, 48, "<H", 5), "body is of type 5"),
    "another body's length": (lambda q4, q5: changed(q5, 50, "<I", 584), "not its type's length"),
    "signatures beyond the end": (lambda q4, q5: changed(q4, 632, "<I", 1 << 31), "cut off"),
    "signatures too short": (lambda q4, q5: changed(q4, 632, "<I", 100), "follow a quote|cut off"),
    "certification data": (lambda q4, q5: changed(q4, 764, "<H", 5), "has to be of type 6"),
    "certification data's length": (lambda q4, q5: changed(q4, 766, "<I", 100), "cut off"),
    "longer certification data": (lambda q4, q5: changed(q4, 766, "<I", 1 << 20), "cut off"),
    "QE's data beyond the end": (lambda q4, q5: changed(q4, 1218, "<H", 65535), "cut off"),
    "chain's type": (lambda q4, q5: changed(q4, 1252, "<H", 4), "of type 5"),
    "chain's length": (lambda q4, q5: changed(q4, 1254, "<I", 100), "after its last field"),
    "more after it": (lambda q4, q5: q4 + b"\0\0\x01", "other than zero follow"),
    "32 KiB": (lambda q4, q5: q4 + bytes(32769), "32768 are allowed"),
    "nothing": (lambda q4, q5: b"", "cut off"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_quote_is_refused(recorded, case):
    change, reason = MALFORMED[case]
    with pytest.raises(AttestationError, match=reason):
        tdx.read_quote(change(recorded(QUOTES[0]), recorded(QUOTES[1])))


def test_a_quote_cut_off_anywhere_is_refused(recorded):
    data = recorded(QUOTES[0]).rstrip(b"\0") + b"\0"  # The chain ends in a zero byte of its own.
    assert tdx.read_quote(data) == tdx.read_quote(recorded(QUOTES[0]))
    for length in range(len(data)):
        with pytest.raises(AttestationError, match="cut off"):
            tdx.read_quote(data[:length])


SGX_REFUSED = {
    "no FMSPC": ({"4": None}, "lack 1.2.840.113741.1.13.1.4"),
    "short FMSPC": ({"4": b"\x04\x01\0"}, "has to be of 6 bytes"),
    "FMSPC of another type": ({"4": b"\x02\x01\0"}, "of another type"),
    "no component": ({"2.16": None}, "lack 1.2.840.113741.1.13.1.2.16"),
    "negative component": ({"2.3": b"\x02\x01\xff"}, "not negative"),
    "component of two bytes": ({"2.3": b"\x02\x02\x01\0"}, "above 255"),
    "component not in its shortest form": ({"2.3": b"\x02\x02\0\x01"}, "shortest form"),
    "long length": ({"2.3": b"\x02\x81\x01\x01"}, "shortest form"),
    "endless": ({"2.3": b"\x02\x80\x01"}, "definite"),
    "not a pair": ({"3": b"\x04\0\x04\0"}, "pairs of an identifier"),
    "beyond its end": ({"5": b"\x0a\x20\x01"}, "reaches beyond"),
}


@pytest.mark.parametrize("case", SGX_REFUSED)
def test_malformed_sgx_extensions_are_refused(intel, make, case):
    changes, reason = SGX_REFUSED[case]
    quote = intel.quote(chain=intel.chain(sgx=make.sgx_extensions(**changes)))
    with pytest.raises(AttestationError, match=reason):
        verify_quote(quote, make.now, intel.pinned)


def test_a_chain_to_a_certificate_that_is_no_platforms_is_refused(intel, make):
    quote = tdx.read_quote(intel.quote(chain=intel.chain(sgx=b"")))
    with pytest.raises(AttestationError, match="none of Intel's SGX extensions"):
        tdx_verify.check_pck_chain(quote, make.now, intel.pinned)


def test_sgx_extensions_that_name_a_field_twice_are_refused(intel, make):
    once = make.sgx_extensions()[4:]
    quote = intel.quote(chain=intel.chain(sgx=make.encode(0x30, once + once)))
    with pytest.raises(AttestationError, match=r"have 1.2.840.113741.1.13.1.1 twice"):
        verify_quote(quote, make.now, intel.pinned)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=3000), head=st.integers(0, 1300), which=st.integers(0, 2))
def test_any_bytes_read_or_raise_the_one_error(recorded, data, head, which):
    with_head = recorded(QUOTES[which])[:head] + data
    try:
        assert isinstance(tdx.read_quote(with_head), tdx.TdQuote)
    except AttestationError:
        pass


@settings(max_examples=60, deadline=None)
@given(offset=st.integers(0, 4934), bit=st.integers(0, 7))
def test_a_quote_with_any_bit_turned_is_refused(recorded, make, offset, bit):
    data = bytearray(recorded(QUOTES[0]))
    data[offset] ^= 1 << bit
    try:
        verified = verify_quote(bytes(data), make.now)
    except AttestationError:
        return
    assert verified == verify_quote(recorded(QUOTES[0]), make.now), "what passes has to mean the same"


def test_the_pinned_enclave_is_that_of_intels_signed_identity(recorded):
    dcap_qvl = pytest.importorskip("dcap_qvl")
    collateral = dcap_qvl.QuoteCollateralV3.from_json(recorded("tdx_collateral_v4.json").decode())
    assert dcap_qvl.verify(recorded(QUOTES[0]), collateral, 1_750_420_000).status == "UpToDate"
    identity = json.loads(collateral.qe_identity)
    assert identity["id"] == "TD_QE"
    assert bytes.fromhex(identity["mrsigner"]) == roots.INTEL_TD_QE_SIGNER
    assert identity["isvprodid"] == roots.INTEL_TD_QE_PRODUCT
    assert bytes.fromhex(identity["attributes"]) == tdx_verify.QE_ATTRIBUTES
    assert bytes.fromhex(identity["attributesMask"]) == tdx_verify.QE_ATTRIBUTES_MASK
    assert (identity["miscselect"], identity["miscselectMask"]) == ("00000000", "FFFFFFFF")

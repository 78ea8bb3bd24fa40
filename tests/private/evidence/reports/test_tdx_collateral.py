"""Intel's collateral: recorded, and made for each status; and dcap-qvl's verdict beside ours on changed quotes."""

import dataclasses
import datetime
import json
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors import roots
from pomona.private.evidence.processors.tdx_collateral import Collateral, TcbStatus, check_tcb_status, read_collateral
from pomona.private.evidence.processors.tdx_verify import verify_quote

RECORDED_AT = 1_750_420_000.5
"""Within the month of the recorded collateral."""


@pytest.fixture
def given_collateral(recorded):
    return read_collateral(recorded("tdx_collateral_v4.json"))


@pytest.fixture
def quote(recorded):
    return recorded("tdx_quote_v4.bin")


def test_a_recorded_platform_is_up_to_date(quote, given_collateral):
    pytest.importorskip("dcap_qvl")
    assert check_tcb_status(quote, given_collateral, RECORDED_AT) == TcbStatus("UpToDate", ())
    with pytest.raises(AttestationError, match="status is UpToDate; accepted: OutOfDate"):
        check_tcb_status(quote, given_collateral, RECORDED_AT, accepted={"OutOfDate"})


def test_collateral_that_is_not_valid_or_not_intels_is_refused(quote, recorded, given_collateral):
    pytest.importorskip("dcap_qvl")
    for now in (RECORDED_AT - 40 * 86400, RECORDED_AT + 40 * 86400, 0.0, -1.0, 1e30):
        with pytest.raises(AttestationError, match="do not pass Intel's rules"):
            check_tcb_status(quote, given_collateral, now)
    for field in dataclasses.fields(Collateral):
        part = getattr(given_collateral, field.name)
        if field.name == "pck_crl_issuer_chain":  # The package does not use it: the PCK's own chain holds it too.
            continue
        middle = len(part) // 2
        other = (
            part[: middle - 8] + part[middle:] if isinstance(part, str) else part[:middle] + bytes(len(part) - middle)
        )
        with pytest.raises(AttestationError, match="do not pass Intel's rules"):
            check_tcb_status(quote, dataclasses.replace(given_collateral, **{field.name: other}), RECORDED_AT)
    with pytest.raises(AttestationError, match="do not pass Intel's rules"):
        check_tcb_status(recorded("tdx_quote_v5_td15.bin"), given_collateral, RECORDED_AT)


def test_without_the_package_the_error_says_so(quote, given_collateral, monkeypatch):
    monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    with pytest.raises(AttestationError, match="needs the dcap-qvl package"):
        check_tcb_status(quote, given_collateral, RECORDED_AT)


def time_of(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def revocations(issuer, key, now, serials=()):
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)])
    builder = x509.CertificateRevocationListBuilder(name, time_of(now - 86400), time_of(now + 86400))
    builder = builder.add_extension(x509.CRLNumber(1), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder(serial, time_of(now - 86400)).build()
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def made_collateral(intel, make, levels, revoked=(), revoked_authorities=()):
    """Collateral for the tests' platform; a level is the number that its first component has to reach, and a status."""
    signing_key = ec.generate_private_key(ec.SECP256R1())
    signing = make.issue("TCB Signing", signing_key, "Root CA", intel.root)
    chain = make.pem(signing, intel.certificates()[2]).decode()
    date = {"tcbDate": "2026-01-01T00:00:00Z"}
    times = {"issueDate": time_of(make.now - 86400), "nextUpdate": time_of(make.now + 86400)}
    shared = {name: at.strftime("%Y-%m-%dT%H:%M:%SZ") for name, at in times.items()} | {"tcbEvaluationDataNumber": 1}
    zeros = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "ff" * 8}
    tcb = {"id": "TDX", "version": 3, **shared, "fmspc": "90C06F000000", "pceId": "0000", "tcbType": 0}
    tcb |= {"tdxModule": zeros, "tdxModuleIdentities": []}
    tcb["tcbLevels"] = [
        {
            "tcb": {
                "sgxtcbcomponents": [{"svn": least}] + 15 * [{"svn": 0}],
                "tdxtcbcomponents": 16 * [{"svn": 0}],
                "pcesvn": 1,
            },
            **date,
            "tcbStatus": status,
            "advisoryIDs": ["INTEL-SA-1"] if status != "UpToDate" else [],
        }
        for least, status in levels
    ]
    enclave = {"id": "TD_QE", "version": 2, **shared, "miscselect": "00000000", "miscselectMask": "FFFFFFFF"}
    enclave |= {"attributes": "11" + "00" * 15, "attributesMask": "fb" + "ff" * 7 + "00" * 8, "isvprodid": 2}
    enclave |= {"mrsigner": roots.INTEL_TD_QE_SIGNER.hex()}
    enclave["tcbLevels"] = [{"tcb": {"isvsvn": 4}, **date, "tcbStatus": "UpToDate"}]
    tcb_info, qe_identity = json.dumps(tcb), json.dumps(enclave)
    return Collateral(
        pck_crl_issuer_chain=chain,
        root_ca_crl=revocations("Root CA", intel.root, make.now, revoked_authorities),
        pck_crl=revocations("Platform CA", intel.authority, make.now, revoked),
        tcb_info_issuer_chain=chain,
        tcb_info=tcb_info,
        tcb_info_signature=make.raw_signature(signing_key, tcb_info.encode()),
        qe_identity_issuer_chain=chain,
        qe_identity=qe_identity,
        qe_identity_signature=make.raw_signature(signing_key, qe_identity.encode()),
    )


@pytest.mark.parametrize("kind", [None, 3, 4])
def test_the_status_of_a_made_platform(intel, make, kind):
    pytest.importorskip("dcap_qvl")
    root = intel.certificates()
    quote = intel.quote(kind, chain=make.pem(*root))

    def status(levels, accepted=("UpToDate",), **changes):
        collateral = made_collateral(intel, make, levels, **changes)
        return check_tcb_status(quote, collateral, make.now, accepted, root[2])

    verify_quote(quote, make.now, intel.pinned)
    assert status([(1, "UpToDate")]) == TcbStatus("UpToDate", ())
    with pytest.raises(AttestationError, match="status is OutOfDate; accepted: UpToDate"):
        status([(2, "UpToDate"), (1, "OutOfDate")])
    accepted = status([(2, "UpToDate"), (1, "OutOfDate")], accepted=("UpToDate", "OutOfDate"))
    assert accepted == TcbStatus("OutOfDate", ("INTEL-SA-1",))
    for levels in ([(1, "Revoked")], [(2, "UpToDate")]):  # Revoked is never accepted; below all levels there is none.
        with pytest.raises(AttestationError, match="do not pass Intel's rules"):
            status(levels, accepted=("UpToDate", "Revoked"))


def test_a_revoked_certificate_is_refused(intel, make):
    pytest.importorskip("dcap_qvl")
    chain = intel.certificates()
    quote = intel.quote(chain=make.pem(*chain))
    for revoked in ({"revoked": [4711]}, {"revoked_authorities": [4711]}):
        collateral = made_collateral(intel, make, [(1, "UpToDate")], **revoked)
        with pytest.raises(AttestationError, match="do not pass Intel's rules"):
            check_tcb_status(quote, collateral, make.now, root_certificate=chain[2])
    other = made_collateral(intel, make, [(1, "UpToDate")], revoked=[4712])
    check_tcb_status(quote, other, make.now, root_certificate=chain[2])
    with pytest.raises(AttestationError, match="do not pass Intel's rules"):
        check_tcb_status(quote, other, make.now)  # The pinned root is Intel's.


@settings(max_examples=40, deadline=None)
@given(offset=st.integers(0, 4934), bit=st.integers(0, 7))
def test_dcap_qvl_and_we_agree_on_quotes_with_a_bit_turned(recorded, offset, bit):
    dcap_qvl = pytest.importorskip("dcap_qvl")
    collateral = dcap_qvl.QuoteCollateralV3.from_json(recorded("tdx_collateral_v4.json").decode())
    data = bytearray(recorded("tdx_quote_v4.bin"))
    data[offset] ^= 1 << bit
    verdicts = []
    for verify in (
        lambda: verify_quote(bytes(data), RECORDED_AT),
        lambda: dcap_qvl.verify(bytes(data), collateral, int(RECORDED_AT)),
    ):
        try:
            verify()
            verdicts.append(True)
        except ValueError:
            verdicts.append(False)
    assert verdicts[0] <= verdicts[1], "we must not accept what the other refuses"


DOCUMENTS = {
    "not JSON": b"[",
    "another type": b"[]",
    "a part is missing": b"{}",
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"pck_crl": "\xff"}',
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_document_that_is_not_collateral_is_refused(case):
    with pytest.raises(AttestationError, match="JSON object of its nine parts"):
        read_collateral(DOCUMENTS[case])


def test_the_parts_of_a_document_are_read_strictly(recorded):
    document = json.loads(recorded("tdx_collateral_v4.json"))
    for change in (
        {"pck_crl": "0g"},
        {"pck_crl": "abc"},
        {"root_ca_crl": "\u0661\u0661"},
        {"tcb_info": 1},
        {"more": ""},
    ):
        with pytest.raises(AttestationError, match="JSON object of its nine parts"):
            read_collateral(json.dumps({**document, **change}).encode())
    with pytest.raises(AttestationError, match="1048576 are allowed"):
        read_collateral(bytes((1 << 20) + 1))


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_document_reads_or_raises_the_one_error(data):
    try:
        read_collateral(data)
    except AttestationError:
        pass

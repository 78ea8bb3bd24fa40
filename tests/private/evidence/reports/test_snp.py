"""AMD SEV-SNP: a recorded report against AMD's root, and made ones for each reason to refuse."""

import dataclasses

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors import certificates, snp, snp_verify
from pomona.private.evidence.processors.roots import AMD_ROOTS
from pomona.private.evidence.processors.snp import Tcb
from pomona.private.evidence.processors.snp_verify import verify_report

RECORDED = ("snp_report_milan.bin", "snp_vcek_milan.der", "snp_ask_milan.der")


def test_a_recorded_report_leads_to_amds_root(recorded, make):
    files = [recorded(name) for name in RECORDED]
    verified = verify_report(*files, make.now, allow_debug=True)
    report = verified.report
    assert (verified.product, verified.key.kind, verified.key.product_name) == ("Milan", "VCEK", "Milan-B0")
    assert (report.version, report.vmpl, report.guest_svn, report.current_version) == (2, 0, 0, (1, 49, 3))
    assert report.report_data == b"\x01\x02\x03\x04\x05".ljust(64, b"\0")
    assert report.measurement.hex().startswith("b07af9620f3b839b47996422ddec6058")
    assert snp.read_tcb(report.reported_tcb, "Milan") == Tcb(bootloader=2, tee=0, snp=5, microcode=68)
    with pytest.raises(AttestationError, match="allows debugging"):  # Its guest was started under debug.
        verify_report(*files, make.now)


def test_a_serial_number_of_zero_is_read_without_a_warning_and_checked_as_it_came(recorded):
    data = recorded("snp_vcek_milan.der")
    read = certificates.read_certificate(data, "VCEK")  # Warnings are errors in tests.
    position = data.index(b"\x02\x01\x00\x30")
    assert read.signed in data and b"\x02\x01\x00\x30" in read.signed[:16]
    for serial in (b"\x80", b"\xff"):
        with pytest.raises(AttestationError, match="no serial number, or a negative one"):
            certificates.read_certificate(data[: position + 2] + serial + data[position + 3 :], "VCEK")
    other = data[: position + 2] + b"\x01" + data[position + 3 :]
    signer = certificates.read_certificate(recorded("snp_ask_milan.der"), "ASK")
    certificates.check_signed_by(read, signer.key)
    with pytest.raises(AttestationError, match="not signed by the key above it"):
        certificates.check_signed_by(certificates.read_certificate(other, "VCEK"), signer.key)


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_amds_signers_are_signed_by_the_pinned_roots(recorded, product):
    signer = certificates.read_certificate(recorded(f"snp_ask_{product.lower()}.der"), "ASK")
    certificates.check_signed_by(signer, certificates.read_key(AMD_ROOTS[product]))
    certificates.check_authority(signer)
    assert certificates.common_name(signer.subject) == f"SEV-{product}"
    assert certificates.common_name(signer.issuer) == f"ARK-{product}"
    for other in set(AMD_ROOTS) - {product}:
        with pytest.raises(AttestationError, match="not signed by the key above it"):
            certificates.check_signed_by(signer, certificates.read_key(AMD_ROOTS[other]))


def test_the_recorded_signature_is_what_cryptography_finds_by_other_means(recorded):
    data = recorded(RECORDED[0])
    public = snp.read_endorsement_key(recorded(RECORDED[1])).certificate.key
    r, s = (int.from_bytes(data[start : start + 72][::-1], "big") for start in (0x2A0, 0x2A0 + 72))
    public.verify(encode_dss_signature(r, s), data[:0x2A0], ec.ECDSA(hashes.SHA384()))
    assert snp.read_report(data).signature == (r, s)


def test_a_recorded_report_is_refused_outside_its_certificates_validity(recorded):
    first, last = 1_787_935_288.0, 2_008_860_088.0  # Of the VCEK's certificate, as openssl shows it.
    files = [recorded(name) for name in RECORDED]
    for now in (first, last):
        verify_report(*files, now, allow_debug=True)
    for now in (0.0, first - 1, last + 1, float("nan")):
        with pytest.raises(AttestationError, match="not valid at the time"):
            verify_report(*files, now, allow_debug=True)


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("vlek", [False, True])
def test_a_made_report_passes_with_its_root_and_not_with_amds(amd, make, product, vlek):
    flags = {"key_flags": 4} if vlek else {}
    files = amd.report(product, **flags), amd.key_certificate(product, vlek), amd.signer_certificate(product, vlek)
    verified = verify_report(*files, make.now, amd.pinned)
    assert (verified.product, verified.key.kind) == (product, "VLEK" if vlek else "VCEK")
    assert verified.key.provider == ("cloud" if vlek else None)
    assert verified.key.tcb == Tcb(1, 2, 3, 4, 9 if product == "Turin" else 0)
    assert verified.report.committed_version == (1, 49, 2)
    with pytest.raises(AttestationError, match="ASK or ASVK certificate is not signed"):
        verify_report(*files, make.now)


def report(**changes):
    return lambda amd: (amd.report(**changes), amd.key_certificate(), amd.signer_certificate())


def key(**changes):
    return lambda amd: (amd.report(), amd.key_certificate(**changes), amd.signer_certificate())


def signer(**changes):
    return lambda amd: (amd.report(), amd.key_certificate(), amd.signer_certificate(**changes))


def extension(oid, value):
    return key(extensions={oid: value})


OTHER_KEY = ec.generate_private_key(ec.SECP384R1())
REFUSED = {
    "signed by another key": (lambda a: report(signer=OTHER_KEY)(a), "is not signed by the VCEK"),
    "key on another curve": (key(key=ec.generate_private_key(ec.SECP256R1())), "not on P-384"),
    "signed by a VLEK": (report(key_flags=4), "not signed by a VCEK"),
    "signed by no key": (report(key_flags=7 << 2), "not signed by a VCEK"),
    "chip's key masked": (report(key_flags=2), "not signed by a VCEK"),
    "another chip": (report(chip_id=b"else" * 16), "chip is not the one"),
    "chip masked": (report(chip_id=bytes(64)), "chip is not the one"),
    "another TCB": (report(reported_tcb=bytes((1, 2, 0, 0, 0, 0, 3, 5))), "TCB is not the one"),
    "lower privilege": (report(vmpl=1), "VMPL 1; 0 is the lowest"),
    "no privilege level": (report(vmpl=0xFFFFFFFF), "is the lowest allowed"),
    "under debug": (report(policy=1 << 17 | 1 << 19), "allows debugging"),
    "with a migration agent": (report(policy=1 << 17 | 1 << 18), "migration agent"),
    "another product's processor": (report(model=bytes((0x19, 0x11, 0))), "0x19/0x11, is not a Milan"),
    "unknown processor": (report(model=bytes((0x1B, 0, 0))), "0x1b/0x0, is not a Milan"),
    "no product": (key(subject="SEV-ELSE"), "neither SEV-VCEK nor SEV-VLEK"),
    "key of an unknown signer": (signer(subject="SEV-Venice"), "product with a pinned root"),
    "VCEK signed by a VLEK's signer": (signer(subject="SEV-VLEK-Milan"), "product with a pinned root"),
    "signer of another issuer": (signer(issuer="ARK-Genoa"), "name its product's root"),
    "signer signed by another": (lambda a: signer(signer=a.signer)(a), "ASK or ASVK certificate is not signed"),
    "signer that is none": (signer(ca=False), "ASK or ASVK certificate is not allowed"),
    "signer that may not sign": (signer(usage="none"), "ASK or ASVK certificate is not allowed"),
    "expired signer": (signer(ends=1_794_999_999.0), "ASK or ASVK certificate is not valid"),
    "key of another issuer": (key(issuer="SEV-Genoa"), "names another issuer"),
    "key signed by another": (lambda a: key(signer=a.root)(a), "VCEK or VLEK certificate is not signed"),
    "key signed by another kind of key": (
        key(signer=ec.generate_private_key(ec.SECP256R1())),
        "signed by an algorithm",
    ),
    "key that is an authority": (key(ca=True), "must not be allowed to sign"),
    "expired key": (key(ends=1_794_999_999.0), "VCEK or VLEK certificate is not valid"),
    "unknown critical extension": (key(critical=(snp.PRODUCT_NAME,)), f"critical extension {snp.PRODUCT_NAME}"),
    "VCEK without a chip": (extension(snp.HARDWARE_ID, None), "names its chip"),
    "VCEK with a provider": (extension(snp.PROVIDER_ID, b"\x16\x01a"), "names its chip"),
    "VLEK without a provider": (
        lambda a: (a.report(), a.key_certificate(vlek=True, extensions={snp.PROVIDER_ID: None}), b""),
        "names its chip",
    ),
    "chip of an odd length": (extension(snp.HARDWARE_ID, b"\x04\x09" + b"c" * 9), "8 or 64 bytes, not 9"),
    "chip that is no bytes": (extension(snp.HARDWARE_ID, b"\x02\x01\x01"), "tag 0x04"),
    "no security version": (extension(snp.SPL["snp"], None), f"lacks the extension {snp.SPL['snp']}"),
    "security version of two bytes": (extension(snp.SPL["snp"], b"\x02\x02\x01\x00"), "above 255"),
    "more after a security version": (extension(snp.SPL["snp"], b"\x02\x01\x03\x00"), "not one element"),
    "no product name": (extension(snp.PRODUCT_NAME, None), f"lacks the extension {snp.PRODUCT_NAME}"),
    "product name in control characters": (extension(snp.PRODUCT_NAME, b"\x16\x01\n"), "not printable ASCII"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_made_report_is_refused_for_its_reason(amd, make, case):
    build, reason = REFUSED[case]
    with pytest.raises(AttestationError, match=reason):
        verify_report(*build(amd), make.now, amd.pinned)


def test_what_a_caller_may_allow(amd, make):
    files = amd.report(policy=3 << 18 | 1 << 17), amd.key_certificate(), amd.signer_certificate()
    verify_report(*files, make.now, amd.pinned, allow_debug=True, allow_migration_agent=True)
    with pytest.raises(AttestationError, match="migration agent"):
        verify_report(*files, make.now, amd.pinned, allow_debug=True)
    with pytest.raises(AttestationError, match="allows debugging"):
        verify_report(*files, make.now, amd.pinned, allow_migration_agent=True)
    lower = snp.read_report(amd.report(vmpl=2))
    snp_verify.check_privilege_level(lower, lowest=2)
    with pytest.raises(AttestationError, match="VMPL 2; 1 is the lowest"):
        snp_verify.check_privilege_level(lower, lowest=1)


def test_a_product_without_a_pinned_root_is_refused(amd, make):
    files = amd.report(), amd.key_certificate(), amd.signer_certificate()
    with pytest.raises(AttestationError, match="product with a pinned root"):
        verify_report(*files, make.now, {"Genoa": amd.pinned["Genoa"]})


def test_a_chip_in_an_octet_string_is_read_too(amd, make):
    for product in ("Milan", "Turin"):
        wrapped = make.encode(4, amd.chip_id(product))
        certificate = amd.key_certificate(product, extensions={snp.HARDWARE_ID: wrapped})
        verify_report(amd.report(product), certificate, amd.signer_certificate(product), make.now, amd.pinned)


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_minimum_versions(amd, product):
    least = Tcb(1, 2, 3, 4, 9 if product == "Turin" else 0)
    good = snp.read_report(amd.report(product))
    snp_verify.check_tcb(good, product, least)
    for part in ("bootloader", "tee", "snp", "microcode", "fmc"):
        above = dataclasses.replace(least, **{part: getattr(least, part) + 1})
        with pytest.raises(AttestationError, match=f"reported {part} version is {getattr(least, part)}, below"):
            snp_verify.check_tcb(good, product, above)
    for name in ("reported", "current", "committed", "launch"):
        with pytest.raises(AttestationError, match=f"{name} .* below"):
            snp_verify.check_tcb(dataclasses.replace(good, **{f"{name}_tcb": bytes(8)}), product, least)
    snp_verify.check_guest_svn(good, 7)
    with pytest.raises(AttestationError, match="security version is 7; the minimum is 8"):
        snp_verify.check_guest_svn(good, 8)


def test_registers_and_report_data_are_compared(amd):
    read = snp.read_report(amd.report())
    for register in snp_verify.REGISTERS:
        snp_verify.check_register(read, register, [b"?", getattr(read, register)])
        with pytest.raises(AttestationError, match=f"{register} has none of the 1 allowed"):
            snp_verify.check_register(read, register, [b"?" * len(getattr(read, register))])
    with pytest.raises(AttestationError, match="no field 'policy'"):
        snp_verify.check_register(read, "policy", [b""])
    snp_verify.check_report_data(read, bytes(range(64)))
    for other in (bytes(64), bytes(range(63)), b""):
        with pytest.raises(AttestationError, match="not what was expected"):
            snp_verify.check_report_data(read, other)


def test_versions_have_their_fields(amd):
    vectors = bytes((1, *7 * [0], 2, *7 * [0]))
    assert snp.read_report(amd.report(version=5, vectors=vectors)).mitigations == (1, 2)
    for version in (3, 4):
        assert snp.read_report(amd.report(version=version)).mitigations is None
        assert snp.read_report(amd.report(version=version)).family_model_stepping == (0x19, 1, 1)
        with pytest.raises(AttestationError, match="reserved bytes"):
            snp.read_report(amd.report(version=version, vectors=vectors))
    assert snp.read_report(amd.report(version=2, model=bytes(24))).family_model_stepping is None
    with pytest.raises(AttestationError, match="reserved bytes"):
        snp.read_report(amd.report(version=2))
    for version in (0, 1, 6):
        with pytest.raises(AttestationError, match=f"is of version {version}"):
            snp.read_report(amd.report(version=version))


MALFORMED = {
    "short": (lambda data: data[:-1], "1184 bytes, not 1183"),
    "long": (lambda data: data + b"\0", "1184 bytes, not 1185"),
    "empty": (lambda data: b"", "1184 bytes, not 0"),
    "algorithm": (lambda data: flip(data, 0x34, 2), "ECDSA with P-384"),
    "policy's reserved bits": (lambda data: flip(data, 0x0B, 4), "reserved bits"),
    "policy without its bit 17": (lambda data: flip(data, 0x0A, 2), "reserved bits"),
    "key's reserved bits": (lambda data: flip(data, 0x48, 0x20), "reserved bits"),
    **{
        f"reserved byte {at:#x}": (lambda data, at=at: flip(data, at, 1), "reserved bytes have to be zero")
        for at in (0x4C, 0x4F, 0x188, 0x19F, 0x1EB, 0x1EF, 0x1F8, 0x207, 0x208, 0x29F)
    },
    **{
        f"byte {at:#x} beside the signature": (lambda data, at=at: flip(data, at, 1), "two numbers of 48 bytes")
        for at in (0x2A0 + 48, 0x2A0 + 71, 0x2E8 + 48, 0x2E8 + 71, 0x330, 0x49F)
    },
}


def flip(data, at, bits):
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_report_is_refused(recorded, case):
    change, reason = MALFORMED[case]
    with pytest.raises(AttestationError, match=reason):
        snp.read_report(change(recorded(RECORDED[0])))


@settings(max_examples=80, deadline=None)
@given(which=st.integers(0, 2), at=st.integers(0, 1 << 16), bit=st.integers(0, 7))
def test_evidence_with_any_bit_turned_is_refused(recorded, make, which, at, bit):
    files = [recorded(name) for name in RECORDED]
    files[which] = flip(files[which], at % len(files[which]), 1 << bit)
    with pytest.raises(AttestationError):
        verify_report(*files, make.now, allow_debug=True)


@settings(max_examples=100, deadline=None)
@given(head=st.integers(0, 1184), tail=st.binary(min_size=1184, max_size=1184))
def test_any_bytes_read_as_a_report_or_raise_the_one_error(recorded, head, tail):
    try:
        assert isinstance(snp.read_report(recorded(RECORDED[0])[:head] + tail[head:]), snp.SnpReport)
    except AttestationError:
        pass


@settings(max_examples=200, deadline=None)
@given(head=st.integers(0, 1350), tail=st.binary(max_size=400))
def test_any_bytes_read_as_a_certificate_or_raise_the_one_error(recorded, head, tail):
    data = recorded(RECORDED[1])
    for changed in (data[:head] + tail, data[:head] + tail + data[head + len(tail) :], tail):
        try:
            assert isinstance(snp.read_endorsement_key(changed), snp.EndorsementKey)
        except AttestationError:
            pass


def test_a_certificate_that_is_too_long_is_refused():
    with pytest.raises(AttestationError, match="16384 are allowed"):
        certificates.read_certificate(bytes(16385), "VCEK")


def test_a_certificate_that_names_two_signature_algorithms_is_refused(recorded):
    data = recorded("snp_vcek_milan.der")  # Nobody signs the second naming.
    with pytest.raises(AttestationError, match="two signature algorithms"):
        certificates.read_certificate(flip(data, 830, 1), "VCEK")


def test_names_have_one_common_name(make):
    a_key = ec.generate_private_key(ec.SECP256R1())
    read = certificates.read_certificate(make.issue("Ü", a_key, "Ü", None), "odd")
    with pytest.raises(AttestationError, match="not printable ASCII"):
        certificates.common_name(read.subject)
    attribute = x509.NameAttribute(x509.NameOID.COMMON_NAME, "once")
    for name in (x509.Name([]), x509.Name([attribute, attribute])):
        with pytest.raises(AttestationError, match="exactly one common name"):
            certificates.common_name(name.public_bytes()[2:])
    with pytest.raises(AttestationError, match="pairs of an identifier"):
        certificates.common_name(make.encode(0x31, make.encode(0x30, b"\x02\x01\x01")))

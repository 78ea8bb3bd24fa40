"""Certificates and DER by themselves, beside what `cryptography` makes of them."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors import certificates, der

arcs = st.integers(0, (1 << 32) - 1)


def test_keys_of_other_kinds_are_refused(make):
    signer = ec.generate_private_key(ec.SECP256R1())
    data = make.issue("Else", ed25519.Ed25519PrivateKey.generate(), "Root CA", signer)
    with pytest.raises(AttestationError, match="neither of an elliptic curve nor RSA"):
        certificates.read_certificate(data, "odd")
    with pytest.raises(AttestationError, match="neither of an elliptic curve nor RSA"):
        certificates.read_key(make.spki(ed25519.Ed25519PrivateKey.generate()))
    for garbage in (b"", b"key", make.spki(signer)[:-1]):
        with pytest.raises(AttestationError, match="cannot be read"):
            certificates.read_key(garbage)


def test_only_certificates_of_version_3_are_read(make):
    key = ec.generate_private_key(ec.SECP256R1())
    data = make.issue("Root CA", key, "Root CA", None, ca=True)
    parsed = x509.load_der_x509_certificate(data)
    tbs = der.read_only(parsed.tbs_certificate_bytes, der.SEQUENCE)
    assert tbs.startswith(b"\xa0\x03\x02\x01\x02")
    without_version = make.encode(0x30, tbs[5:])
    rest = der.read_only(data, der.SEQUENCE)[len(parsed.tbs_certificate_bytes) :]
    with pytest.raises(AttestationError, match=r"not one of X\.509, version 3"):
        certificates.read_certificate(make.encode(0x30, without_version + rest), "old")
    assert certificates.read_certificate(data, "new").signed == parsed.tbs_certificate_bytes


def test_what_is_read_is_what_cryptography_reads(make):
    key = ec.generate_private_key(ec.SECP256R1())
    data = make.issue("Root CA", key, "Root CA", None, ca=True)
    read, parsed = certificates.read_certificate(data, "root"), x509.load_der_x509_certificate(data)
    assert (read.signed, read.signature) == (parsed.tbs_certificate_bytes, parsed.signature)
    assert make.encode(0x30, read.subject) == parsed.subject.public_bytes()
    assert read.not_after == parsed.not_valid_after_utc.timestamp()
    assert read.is_authority and read.critical == {"2.5.29.19", "2.5.29.15"}
    assert certificates.common_name(read.issuer) == "Root CA"
    assert certificates.read_pem_chain(parsed.public_bytes(Encoding.PEM), ("root",))[0] == read


@settings(max_examples=100, deadline=None)
@given(first=st.integers(0, 2), second=st.integers(0, 39), rest=st.lists(arcs, max_size=6))
def test_object_identifiers_read_as_cryptography_writes_them(first, second, rest):
    dotted = ".".join(map(str, (first, second, *rest)))
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(dotted), b"")
    names = x509.Name([x509.NameAttribute(x509.ObjectIdentifier(dotted), "x")]).public_bytes()
    pair = der.read_sequence(der.read_only(der.read_only(der.read_only(names, der.SEQUENCE), 0x31), der.SEQUENCE))
    assert der.identifier_of(pair[0].value) == dotted == extension.oid.dotted_string


@pytest.mark.parametrize(
    "value, reason",
    [
        (b"", "empty"),
        (b"\x2a\x80\x01", "shortest form"),
        (b"\x80", "shortest form"),
        (b"\x2a\x86", "cut off"),
        (b"\x2a\x90\x80\x80\x80\x00", "more than 32 bits"),
    ],
)
def test_malformed_object_identifiers_are_refused(value, reason):
    with pytest.raises(AttestationError, match=reason):
        der.identifier_of(value)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=40))
def test_any_bytes_read_as_der_or_raise_the_one_error(data):
    def numbers(value):
        return der.integer_of(value, 1 << 62)

    for read in (der.read_element, der.read_sequence, der.identifier_of, der.ia5_of, numbers, certificates.common_name):
        try:
            read(data)
        except AttestationError:
            pass

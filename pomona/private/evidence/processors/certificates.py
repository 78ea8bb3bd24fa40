"""Certificates in evidence (RFC 5280), read once into plain values, with the checks that both vendors' chains need.

`cryptography` reads them, with one exception: chips' certificates of AMD have the serial number 0, which RFC 5280
(section 4.1.2.2) forbids and which that library has announced to refuse. It reads those with a 1 in that one byte; the
signature is checked over the bytes as they came, and no check here looks at the serial number of such a certificate.
"""

import base64
import binascii
import dataclasses
import re
from collections.abc import Mapping

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors import der

MOST_CERTIFICATE_BYTES = 16384
ECDSA_WITH_SHA256, RSASSA_PSS = "1.2.840.10045.4.3.2", "1.2.840.113549.1.1.10"
BASIC_CONSTRAINTS, KEY_USAGE = "2.5.29.19", "2.5.29.15"
COMMON_NAME = "2.5.4.3"
LINE_ENDS = b"\r\n"
PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\r\n]*)-----END CERTIFICATE-----")
PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What the checks look at; `what` names it in messages."""

    what: str
    subject: bytes
    """A name, as the value of its DER, like `issuer`: equal names have equal bytes here."""
    issuer: bytes
    not_before: float
    """Seconds since the epoch, like `not_after`: the first and the last second of its validity."""
    not_after: float
    key: PublicKey
    is_authority: bool
    """CA in the basic constraints, and keyCertSign in the key usage."""
    extensions: Mapping[str, bytes]
    """Values in DER by object identifier in dots."""
    critical: frozenset[str]
    """Object identifiers of the extensions that whoever relies on the certificate has to understand."""
    signed: bytes
    """tbsCertificate, as it came."""
    signature_algorithm: str
    signature: bytes


def read_certificate(data: bytes, what: str) -> Certificate:
    """A certificate from its DER, of 16 KiB at most; `AttestationError` where it is malformed or of an unknown kind.

    An authority has to be marked as one; nothing about signatures, names or time is checked yet.
    """
    if len(data) > MOST_CERTIFICATE_BYTES:
        raise AttestationError(f"The {what} certificate has {len(data)} bytes; {MOST_CERTIFICATE_BYTES} are allowed.")
    readable, signed, issuer, subject = _parts(data, what)
    try:
        # The library names no closed list of what reading an ill-formed certificate raises, and some of it is not a
        # ValueError (two extensions of one kind, an unknown curve, a warning that the process has made an error).
        parsed = x509.load_der_x509_certificate(readable)
        key = parsed.public_key()
        extensions = {
            extension.oid.dotted_string: extension.value.value
            if isinstance(extension.value, x509.UnrecognizedExtension)
            else extension.value.public_bytes()
            for extension in parsed.extensions
        }
        critical = frozenset(each.oid.dotted_string for each in parsed.extensions if each.critical)
        values = {type(each.value): each.value for each in parsed.extensions}
        constraints, usage = values.get(x509.BasicConstraints), values.get(x509.KeyUsage)
        not_before, not_after = parsed.not_valid_before_utc.timestamp(), parsed.not_valid_after_utc.timestamp()
        algorithm, signature = parsed.signature_algorithm_oid.dotted_string, parsed.signature
    except Exception as error:
        raise AttestationError(f"The {what} certificate is not one of X.509 that can be read.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise AttestationError(f"The {what} certificate's key is neither of an elliptic curve nor RSA.")
    is_authority = (
        isinstance(constraints, x509.BasicConstraints)
        and constraints.ca
        and isinstance(usage, x509.KeyUsage)
        and usage.key_cert_sign
    )
    return Certificate(
        what=what,
        subject=subject,
        issuer=issuer,
        not_before=not_before,
        not_after=not_after,
        key=key,
        is_authority=is_authority,
        extensions=extensions,
        critical=critical,
        signed=signed,
        signature_algorithm=algorithm,
        signature=signature,
    )


def _parts(data: bytes, what: str) -> tuple[bytes, bytes, bytes, bytes]:
    """The certificate with a serial number that the library reads; tbsCertificate, issuer and subject as they came.

    The names are read here since the library warns of those it finds odd, which whoever sends evidence could abuse.
    """
    outer = der.read_element(data)
    parts = der.read_sequence(outer.value)
    if [part.tag for part in parts] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING] or parts[2].value[:1] != b"\x00":
        raise AttestationError(
            f"The {what} certificate is not one of X.509: it has other parts than three, or odd bits."
        )
    inner = parts[0]
    fields = der.read_sequence(inner.value)
    if [field.tag for field in fields[:6]] != [0xA0, der.INTEGER, *4 * [der.SEQUENCE]]:
        raise AttestationError(f"The {what} certificate is not one of X.509, version 3.")
    if fields[2].value != parts[1].value:
        raise AttestationError(f"The {what} certificate names two signature algorithms.")
    serial, issuer, subject = fields[1], fields[3].value, fields[5].value
    if not serial.value or serial.value[0] >= 0x80:
        raise AttestationError(f"The {what} certificate has no serial number, or a negative one.")
    readable, signed = data, outer.value[: inner.start + len(inner.value)]
    if serial.value == b"\x00":
        position = outer.start + inner.start + serial.start
        readable = data[:position] + b"\x01" + data[position + 1 :]
    return readable, signed, issuer, subject


def read_pem_chain(pem: bytes, names: tuple[str, ...]) -> tuple[Certificate, ...]:
    """Certificates one after the other in PEM (RFC 7468), one for each name; else `AttestationError`.

    Only ends of lines may be between them, and zero bytes after the last, which Intel's quotes have.
    """
    blocks = PEM_BLOCK.findall(pem)
    between = PEM_BLOCK.sub(b"", pem).rstrip(b"\x00")
    if len(blocks) != len(names) or between.strip(LINE_ENDS):
        raise AttestationError(f"A certificate chain has to be {len(names)} certificates in PEM and nothing else.")
    certificates = []
    for name, block in zip(names, blocks):
        text = block.translate(None, LINE_ENDS)
        try:
            data = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise AttestationError(f"The {name} certificate is not in base64.") from error
        if base64.b64encode(data) != text:
            raise AttestationError(f"The {name} certificate's base64 has bits beyond its end.")
        certificates.append(read_certificate(data, name))
    return tuple(certificates)


def read_key(spki: bytes) -> PublicKey:
    """A key from a SubjectPublicKeyInfo in DER, as roots are pinned; `AttestationError` unless RSA or elliptic."""
    try:
        key = load_der_public_key(spki)
    except Exception as error:  # As above: a malformed key raises more than ValueError.
        raise AttestationError("A root's public key cannot be read.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise AttestationError("A root's public key is neither of an elliptic curve nor RSA.")
    return key


def key_bytes(key: PublicKey) -> bytes:
    """A key as SubjectPublicKeyInfo in DER: equal keys have equal bytes."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def common_name(name: bytes) -> str:
    """The common name in a name that has exactly one, of printable ASCII; else `AttestationError`."""
    found = []
    for group in der.read_sequence(name):
        for attribute in der.read_sequence(group.value):
            parts = der.read_sequence(attribute.value)
            if len(parts) != 2 or parts[0].tag != der.OBJECT_IDENTIFIER:
                raise AttestationError("A certificate's name has to be made of pairs of an identifier and a value.")
            if der.identifier_of(parts[0].value) == COMMON_NAME:
                found.append(der.ia5_of(parts[1].value))
    if len(found) != 1:
        raise AttestationError("A certificate's name has to have exactly one common name.")
    return found[0]


def check_validity(certificate: Certificate, now: float) -> None:
    """`AttestationError` unless `now`, in seconds since the epoch, is within the certificate's validity."""
    if not certificate.not_before <= now <= certificate.not_after:
        raise AttestationError(f"The {certificate.what} certificate is not valid at the time of the check.")


def check_critical_extensions(certificate: Certificate) -> None:
    """`AttestationError` where a critical extension is not one of the two that are checked here (RFC 5280, 4.2)."""
    unknown = sorted(certificate.critical - {BASIC_CONSTRAINTS, KEY_USAGE})
    if unknown:
        raise AttestationError(f"The {certificate.what} certificate has a critical extension {unknown[0]}.")


def check_authority(certificate: Certificate) -> None:
    """`AttestationError` unless it may sign certificates (RFC 5280, 4.2.1.3 and 4.2.1.9)."""
    if not certificate.is_authority:
        raise AttestationError(f"The {certificate.what} certificate is not allowed to sign certificates.")


def check_issuer(certificate: Certificate, issuer: bytes) -> None:
    """`AttestationError` unless it names its issuer as the issuer names itself (RFC 5280, 6.1.3)."""
    if certificate.issuer != issuer:
        raise AttestationError(f"The {certificate.what} certificate names another issuer than the one above it.")


def check_signed_by(certificate: Certificate, key: PublicKey) -> None:
    """`AttestationError` unless the key signed it: P-256 by ECDSA with SHA-256, RSA by PSS with SHA-384 and salt 48.

    Intel's chains have the first; AMD's the second (AMD, VCEK Certificate and KDS Interface Specification, 57230).
    """
    what = certificate.what
    try:
        if isinstance(key, rsa.RSAPublicKey) and certificate.signature_algorithm == RSASSA_PSS:
            key.verify(certificate.signature, certificate.signed, PSS, hashes.SHA384())
        elif isinstance(key, ec.EllipticCurvePublicKey) and certificate.signature_algorithm == ECDSA_WITH_SHA256:
            key.verify(certificate.signature, certificate.signed, ec.ECDSA(hashes.SHA256()))
        else:
            raise AttestationError(f"The {what} certificate is signed by an algorithm that its chain does not use.")
    except InvalidSignature as error:
        raise AttestationError(f"The {what} certificate is not signed by the key above it.") from error

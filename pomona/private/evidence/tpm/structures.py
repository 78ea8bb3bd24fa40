"""A TPM's structures that are kept, signed or hashed: public areas, names, attestations, signatures, creation data.

Source: TPM 2.0 Library specification, revision 1.59, Part 2. What is used here is all that is read: P-256 and
RSA-2048 keys, SHA-256 names, ECDSA with SHA-256; anything else raises `AttestationError`. What was read packs to the
same bytes.
"""

import dataclasses
import hashlib

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.wire import (
    ALG_AES,
    ALG_CFB,
    ALG_ECC,
    ALG_ECDH,
    ALG_ECDSA,
    ALG_NULL,
    ALG_RSA,
    ALG_SHA256,
    CURVE_P256,
    MOST_DATA_BYTES,
    MOST_DIGEST_BYTES,
    SHA256_BYTES,
    ST_ATTEST_CERTIFY,
    ST_ATTEST_CREATION,
    ST_ATTEST_QUOTE,
    ST_CREATION,
    Bank,
    Reader,
    number,
    pack_selection,
    read_selection,
    sized,
)

# TPMA_OBJECT: Part 2, section 8.3.2.
FIXED_TPM, ST_CLEAR, FIXED_PARENT, SENSITIVE_DATA_ORIGIN = 1 << 1, 1 << 2, 1 << 4, 1 << 5
USER_WITH_AUTH, ADMIN_WITH_POLICY, NO_DA, ENCRYPTED_DUPLICATION = 1 << 6, 1 << 7, 1 << 10, 1 << 11
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18
KNOWN_ATTRIBUTES = 0x000F0FF6
"""Those above, firmwareLimited and svnLimited (8, 9) and x509sign (19); the other bits are reserved and 0."""

GENERATED = 0xFF544347
"""TPM_GENERATED_VALUE, which no restricted key signs at the head of data from outside (Part 2, section 6.2)."""
COORDINATE_BYTES = 32
RSA_BITS = 2048
RSA_BYTES = RSA_BITS // 8


@dataclasses.dataclass(frozen=True)
class EccPublic:
    """TPMT_PUBLIC of a P-256 key, SHA-256 for its name, no KDF (Part 2, sections 12.2.4 and 12.2.3.6).

    `aes_bits` is the size of the AES-CFB key that protects children: a storage or endorsement key has one, others 0.
    `scheme` is `ALG_ECDSA` or `ALG_ECDH`, each with SHA-256, or `ALG_NULL`. Coordinates are as the TPM wrote them, 32
    bytes at most; empty or zeros in a template.
    """

    attributes: int
    auth_policy: bytes
    aes_bits: int
    scheme: int
    x: bytes = b""
    y: bytes = b""


@dataclasses.dataclass(frozen=True)
class RsaPublic:
    """TPMT_PUBLIC of an RSA-2048 storage or endorsement key: exponent 65537, AES-CFB for what it protects, no scheme,
    SHA-256 for its name (Part 2, sections 12.2.4 and 12.2.3.5)."""

    attributes: int
    auth_policy: bytes
    aes_bits: int
    modulus: bytes = b""


Public = EccPublic | RsaPublic


def pack_public(public: Public) -> bytes:
    """TPMT_PUBLIC (Part 2, section 12.2.4)."""
    kind = ALG_ECC if isinstance(public, EccPublic) else ALG_RSA
    head = number(kind, 2) + number(ALG_SHA256, 2) + number(public.attributes, 4) + sized(public.auth_policy)
    if public.aes_bits:
        head += number(ALG_AES, 2) + number(public.aes_bits, 2) + number(ALG_CFB, 2)
    else:
        head += number(ALG_NULL, 2)
    if isinstance(public, RsaPublic):
        return head + number(ALG_NULL, 2) + number(RSA_BITS, 2) + number(0, 4) + sized(public.modulus)
    head += number(public.scheme, 2) + (b"" if public.scheme == ALG_NULL else number(ALG_SHA256, 2))
    return head + number(CURVE_P256, 2) + number(ALG_NULL, 2) + sized(public.x) + sized(public.y)


def read_public(reader: Reader) -> Public:
    """TPMT_PUBLIC (Part 2, section 12.2.4).

    Raises:
        AttestationError: not a key of the kinds above, or a reserved attribute is set.
    """
    kind = reader.one_of(2, (ALG_ECC, ALG_RSA), "kind of key")
    reader.one_of(2, (ALG_SHA256,), "hash for names")
    attributes = reader.number(4)
    if attributes & ~KNOWN_ATTRIBUTES:
        raise AttestationError(f"{reader.what} has the attributes 0x{attributes:08x}; reserved bits must be 0.")
    policy = reader.sized(SHA256_BYTES)
    aes_bits = 0
    if reader.one_of(2, (ALG_AES, ALG_NULL), "symmetric algorithm") == ALG_AES:
        aes_bits = reader.one_of(2, (128, 256), "AES key size in bits")
        reader.one_of(2, (ALG_CFB,), "mode of AES")
    if kind == ALG_RSA:
        reader.one_of(2, (ALG_NULL,), "RSA scheme")
        reader.one_of(2, (RSA_BITS,), "RSA key size in bits")
        reader.one_of(4, (0,), "RSA exponent (0 stands for 65537)")
        return RsaPublic(attributes, policy, aes_bits, reader.sized(RSA_BYTES))
    scheme = reader.one_of(2, (ALG_ECDSA, ALG_ECDH, ALG_NULL), "scheme")
    if scheme != ALG_NULL:
        reader.one_of(2, (ALG_SHA256,), "hash of the scheme")
    reader.one_of(2, (CURVE_P256,), "curve")
    reader.one_of(2, (ALG_NULL,), "KDF")
    x, y = read_point(reader)
    return EccPublic(attributes, policy, aes_bits, scheme, x, y)


def read_ecc_public(reader: Reader) -> EccPublic:
    """`read_public`, where it must be a P-256 key.

    Raises:
        AttestationError: it is none.
    """
    public = read_public(reader)
    if not isinstance(public, EccPublic):
        raise AttestationError(f"{reader.what} is an RSA key; it must be a P-256 key.")
    return public


def read_point(reader: Reader) -> tuple[bytes, bytes]:
    """TPMS_ECC_POINT: two coordinates of 32 bytes at most (Part 2, section 11.2.5.2).

    Raises:
        AttestationError: it does not read.
    """
    return reader.sized(COORDINATE_BYTES), reader.sized(COORDINATE_BYTES)


def point_bytes(public: EccPublic) -> bytes:
    """The key's point, uncompressed (SEC 1, section 2.3.3), 65 bytes, with the leading zeros a TPM may leave out."""
    return b"\x04" + public.x.rjust(COORDINATE_BYTES, b"\0") + public.y.rjust(COORDINATE_BYTES, b"\0")


def name_of(public: Public) -> bytes:
    """TPM2B_NAME's content: the hash's number and the hash of the public area, 34 bytes (Part 1, "Names")."""
    return number(ALG_SHA256, 2) + hashlib.sha256(pack_public(public)).digest()


def qualified_name(hierarchy: int, name: bytes) -> bytes:
    """A primary key's qualified name, 34 bytes: the hash of its hierarchy's handle and its name (Part 1, "Names")."""
    return number(ALG_SHA256, 2) + hashlib.sha256(number(hierarchy, 4) + name).digest()


# --- what a TPM signs ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ClockInfo:
    """TPMS_CLOCK_INFO (Part 2, section 10.11.1): milliseconds of operation since the clock was set, resets and restarts
    so far, and whether no later clock can have been reported before (`safe`)."""

    clock_milliseconds: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclasses.dataclass(frozen=True)
class QuoteInfo:
    """TPMS_QUOTE_INFO (Part 2, section 10.12.4): which registers, and the hash of their values one after another."""

    selection: tuple[Bank, ...]
    digest: bytes


@dataclasses.dataclass(frozen=True)
class CreationInfo:
    """TPMS_CREATION_INFO (Part 2, section 10.12.7): a key's name and the hash of its creation data."""

    name: bytes
    creation_hash: bytes


@dataclasses.dataclass(frozen=True)
class CertifyInfo:
    """TPMS_CERTIFY_INFO (Part 2, section 10.12.3): a loaded key's name and qualified name."""

    name: bytes
    qualified_name: bytes


@dataclasses.dataclass(frozen=True)
class Attest:
    """TPMS_ATTEST (Part 2, section 10.12.12). `magic` is as found: judging it is the verifier's."""

    magic: int
    qualified_signer: bytes
    extra_data: bytes
    clock: ClockInfo
    firmware_version: int
    attested: QuoteInfo | CreationInfo | CertifyInfo


def pack_attest(attest: Attest) -> bytes:
    """TPMS_ATTEST (Part 2, section 10.12.12)."""
    clock, attested = attest.clock, attest.attested
    if isinstance(attested, QuoteInfo):
        kind, tail = ST_ATTEST_QUOTE, pack_selection(attested.selection) + sized(attested.digest)
    elif isinstance(attested, CreationInfo):
        kind, tail = ST_ATTEST_CREATION, sized(attested.name) + sized(attested.creation_hash)
    else:
        kind, tail = ST_ATTEST_CERTIFY, sized(attested.name) + sized(attested.qualified_name)
    head = number(attest.magic, 4) + number(kind, 2) + sized(attest.qualified_signer) + sized(attest.extra_data)
    head += number(clock.clock_milliseconds, 8) + number(clock.reset_count, 4) + number(clock.restart_count, 4)
    return head + number(clock.safe, 1) + number(attest.firmware_version, 8) + tail


def read_attest(reader: Reader) -> Attest:
    """TPMS_ATTEST of a quote, a creation or a certification (Part 2, section 10.12.12).

    Raises:
        AttestationError: it does not read, or is of another type.
    """
    magic = reader.number(4)
    kinds = (ST_ATTEST_QUOTE, ST_ATTEST_CREATION, ST_ATTEST_CERTIFY)
    kind = reader.one_of(2, kinds, "type of attestation")
    signer, extra = reader.sized(MOST_DATA_BYTES), reader.sized(MOST_DATA_BYTES)
    clock = ClockInfo(reader.number(8), reader.number(4), reader.number(4), bool(reader.one_of(1, (0, 1), "safe")))
    firmware = reader.number(8)
    attested: QuoteInfo | CreationInfo | CertifyInfo
    if kind == ST_ATTEST_QUOTE:
        attested = QuoteInfo(read_selection(reader), reader.sized(MOST_DIGEST_BYTES))
    elif kind == ST_ATTEST_CREATION:
        attested = CreationInfo(reader.sized(MOST_DATA_BYTES), reader.sized(MOST_DIGEST_BYTES))
    else:
        attested = CertifyInfo(reader.sized(MOST_DATA_BYTES), reader.sized(MOST_DATA_BYTES))
    return Attest(magic, signer, extra, clock, firmware, attested)


@dataclasses.dataclass(frozen=True)
class EcdsaSignature:
    """TPMT_SIGNATURE of ECDSA with SHA-256 (Part 2, sections 11.3.4 and 11.3.2): two numbers, 32 bytes at most each."""

    r: bytes
    s: bytes


def pack_signature(signature: EcdsaSignature) -> bytes:
    """TPMT_SIGNATURE (Part 2, section 11.3.4)."""
    return number(ALG_ECDSA, 2) + number(ALG_SHA256, 2) + sized(signature.r) + sized(signature.s)


def read_signature(reader: Reader) -> EcdsaSignature:
    """TPMT_SIGNATURE (Part 2, section 11.3.4).

    Raises:
        AttestationError: not ECDSA with SHA-256 on a 256-bit curve.
    """
    reader.one_of(2, (ALG_ECDSA,), "signature algorithm")
    reader.one_of(2, (ALG_SHA256,), "hash of the signature")
    return EcdsaSignature(*read_point(reader))


# --- how a key came to be ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CreationData:
    """TPMS_CREATION_DATA (Part 2, section 15.1): the registers' hash when the key was made, under which parent."""

    selection: tuple[Bank, ...]
    registers_digest: bytes
    locality: int
    parent_name_algorithm: int
    parent_name: bytes
    parent_qualified_name: bytes
    outside_info: bytes


def pack_creation_data(data: CreationData) -> bytes:
    """TPMS_CREATION_DATA (Part 2, section 15.1)."""
    head = pack_selection(data.selection) + sized(data.registers_digest) + number(data.locality, 1)
    head += number(data.parent_name_algorithm, 2)
    return head + sized(data.parent_name) + sized(data.parent_qualified_name) + sized(data.outside_info)


def read_creation_data(reader: Reader) -> CreationData:
    """TPMS_CREATION_DATA (Part 2, section 15.1).

    Raises:
        AttestationError: it does not read.
    """
    selection, digest = read_selection(reader), reader.sized(MOST_DIGEST_BYTES)
    locality, algorithm = reader.number(1), reader.number(2)
    names = reader.sized(MOST_DATA_BYTES), reader.sized(MOST_DATA_BYTES)
    return CreationData(selection, digest, locality, algorithm, *names, reader.sized(MOST_DATA_BYTES))


@dataclasses.dataclass(frozen=True)
class Ticket:
    """TPMT_TK_CREATION (Part 2, section 10.7.3) or TPMT_TK_AUTH (10.7.5): the TPM's own mark that it did something."""

    tag: int
    hierarchy: int
    digest: bytes


def pack_ticket(ticket: Ticket) -> bytes:
    """TPMT_TK_CREATION or TPMT_TK_AUTH."""
    return number(ticket.tag, 2) + number(ticket.hierarchy, 4) + sized(ticket.digest)


def read_ticket(reader: Reader, tag: int = ST_CREATION) -> Ticket:
    """A ticket with this tag.

    Raises:
        AttestationError: it has another, or does not read.
    """
    return Ticket(reader.one_of(2, (tag,), "tag of the ticket"), reader.number(4), reader.sized(MOST_DIGEST_BYTES))

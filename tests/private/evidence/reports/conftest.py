"""Vendors of the tests' own: roots, certificates and evidence signed by keys that are made here."""

import dataclasses
import datetime
import hashlib
import struct
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pomona.private.evidence.processors import roots, snp, tdx

NOW = 1_795_000_000.0
YEAR_SECONDS = 365 * 86400
PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)


def encode(tag, value):
    """An element in DER, of up to 65535 bytes."""
    size = len(value)
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    length = bytes([size]) if size < 128 else bytes([0x80 + len(octets)]) + octets
    return bytes([tag]) + length + value


def encode_oid(dotted):
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    value = b""
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.insert(0, arc & 0x7F | 0x80)
        value += bytes(groups)
    return encode(6, value)


def spki(key):
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def raw_signature(key, data):
    """ECDSA with SHA-256 as Intel writes it: r and s in 32 bytes each."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def issue(subject, key, issuer, signer, ca=False, extensions=(), critical=(), ends=NOW + YEAR_SECONDS, usage=None):
    """A certificate in DER, valid for two years around NOW; `signer` None signs itself."""
    name = {each: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in (subject, issuer)}
    start, end = (datetime.datetime.fromtimestamp(at, datetime.UTC) for at in (NOW - YEAR_SECONDS, ends))
    builder = x509.CertificateBuilder(name[issuer], name[subject], key.public_key(), 4711, start, end)
    builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    if ca:
        signs = usage != "none"
        flags = x509.KeyUsage(not signs, False, False, False, False, signs, signs, False, False)
        builder = builder.add_extension(flags, critical=True)
    for oid, value in dict(extensions).items():
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(extension, critical=oid in critical)
    signer = signer or key
    if isinstance(signer, rsa.RSAPrivateKey):
        return builder.sign(signer, hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)


def pem(*certificates):
    return b"".join(x509.load_der_x509_certificate(each).public_bytes(Encoding.PEM) for each in certificates)


def sgx_extensions(**changes):
    """Intel's SGX extensions for a platform; a change gives one field's whole element, or None to leave it out."""
    oid = tdx.SGX_EXTENSIONS
    tcb = {f"2.{number}": encode(2, bytes([number])) for number in range(1, 17)}
    tcb |= {"2.17": encode(2, b"\x0d"), "2.18": encode(4, bytes(range(1, 17)))}
    fields = {"1": encode(4, b"p" * 16), "3": encode(4, b"\0\0"), "4": encode(4, b"\x90\xc0\x6f\0\0\0")}
    fields |= {"5": encode(10, b"\x01")}

    def pairs(values):
        found = {**values, **{suffix: value for suffix, value in changes.items() if suffix in values}}
        return b"".join(encode(0x30, encode_oid(f"{oid}.{s}") + v) for s, v in found.items() if v is not None)

    fields["2"] = encode(0x30, pairs(tcb))
    return encode(0x30, pairs(fields))


@dataclasses.dataclass(frozen=True)
class Intel:
    """A platform with a quoting enclave, certified by a root of its own."""

    root: ec.EllipticCurvePrivateKey
    authority: ec.EllipticCurvePrivateKey
    pck: ec.EllipticCurvePrivateKey
    attestation: ec.EllipticCurvePrivateKey

    @property
    def pinned(self):
        return spki(self.root)

    def certificates(self, pck=None, authority=None, root=None, sgx=None):
        """The chain from leaf to root, in DER; arguments of `issue` may be changed for each."""
        sgx = sgx_extensions() if sgx is None else sgx
        leaf = {"subject": "PCK", "key": self.pck, "issuer": "Platform CA", "signer": self.authority}
        leaf |= {"extensions": {tdx.SGX_EXTENSIONS: sgx} if sgx else {}}
        middle = {"subject": "Platform CA", "key": self.authority, "issuer": "Root CA", "signer": self.root, "ca": True}
        top = {"subject": "Root CA", "key": self.root, "issuer": "Root CA", "signer": None, "ca": True}
        return [
            issue(**{**usual, **(change or {})}) for usual, change in ((leaf, pck), (middle, authority), (top, root))
        ]

    def chain(self, **changes):
        """The chain in PEM."""
        return pem(*self.certificates(**changes))

    def qe_report(self, auth_data=b"a" * 32, **changes):
        numbers = self.attestation.public_key().public_numbers()
        point = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        values = {
            "cpu_svn": b"c" * 16,
            "misc_select": 0,
            "attributes": bytes.fromhex("15" + 7 * "00" + "e7" + 7 * "00"),
        }
        values |= {"mrenclave": b"e" * 32, "mrsigner": roots.INTEL_TD_QE_SIGNER, "product": 2, "svn": 6}
        values |= {"report_data": hashlib.sha256(point + auth_data).digest() + bytes(32)}
        return tdx.QE_REPORT.pack(*{**values, **changes}.values())

    def quote(self, kind=None, chain=None, qe=None, qe_signer=None, signer=None, key=None, auth_data=b"a" * 32, **body):
        """A quote: of version 4, or of 5 with a body of type `kind`; fields of the body by name."""
        fields = tdx.BODIES[kind or 2]
        usual = {name: bytes(size) for name, size in fields}
        usual |= {
            name: name.encode().ljust(48, b".") for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mrseam")
        }
        usual |= {"td_attributes": (1 << 28).to_bytes(8, "little"), "report_data": bytes(range(64))}
        content = b"".join({**usual, **body}.values())
        header = tdx.HEADER.pack(4 if kind is None else 5, 2, 0x81, tdx.INTEL_QE_VENDOR)
        signed = header + (b"" if kind is None else struct.pack("<HI", kind, len(content))) + content
        numbers = self.attestation.public_key().public_numbers()
        key = key or numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        report = qe or self.qe_report(auth_data)
        inner = report + raw_signature(qe_signer or self.pck, report) + struct.pack("<H", len(auth_data)) + auth_data
        chain = self.chain() if chain is None else chain
        inner += struct.pack("<HI", 5, len(chain)) + chain
        outer = raw_signature(signer or self.attestation, signed) + key + struct.pack("<HI", 6, len(inner)) + inner
        return signed + struct.pack("<I", len(outer)) + outer


@dataclasses.dataclass(frozen=True)
class Amd:
    """A processor whose VCEK is certified by a root of its own."""

    root: rsa.RSAPrivateKey
    signer: rsa.RSAPrivateKey
    key: ec.EllipticCurvePrivateKey

    @property
    def pinned(self):
        return {product: spki(self.root) for product in ("Milan", "Genoa", "Turin")}

    def signer_certificate(self, product="Milan", vlek=False, **changes):
        subject = f"SEV-VLEK-{product}" if vlek else f"SEV-{product}"
        usual = {"subject": subject, "key": self.signer, "issuer": f"ARK-{product}", "signer": self.root, "ca": True}
        return issue(**{**usual, **changes})

    def key_certificate(self, product="Milan", vlek=False, extensions=None, **changes):
        """Of the VCEK, or the VLEK; `extensions` changes values by their object identifier, None leaves one out."""
        values = {oid: encode(2, bytes([number])) for number, oid in enumerate(snp.SPL.values(), start=1)}
        values[snp.PRODUCT_NAME] = encode(0x16, f"{product}-B1".encode())
        values |= {snp.PROVIDER_ID: encode(0x16, b"cloud")} if vlek else {snp.HARDWARE_ID: self.chip_id(product)}
        if product == "Turin":
            values[snp.FMC] = encode(2, b"\x09")
        values |= extensions or {}
        usual = {"subject": "SEV-VLEK" if vlek else "SEV-VCEK", "key": self.key, "signer": self.signer}
        usual |= {"issuer": f"SEV-VLEK-{product}" if vlek else f"SEV-{product}"}
        usual |= {"extensions": {oid: value for oid, value in values.items() if value is not None}}
        return issue(**{**usual, **changes})

    def chip_id(self, product="Milan"):
        return b"turnchip" if product == "Turin" else b"chip" * 16

    def report(self, product="Milan", signer=None, **changes):
        """A signed report: fields of its layout by name."""
        tcb = bytes((9, 1, 2, 3, 0, 0, 0, 4)) if product == "Turin" else bytes((1, 2, 0, 0, 0, 0, 3, 4))
        model = {"Milan": (0x19, 0x01, 1), "Genoa": (0x19, 0x11, 1), "Turin": (0x1A, 0x02, 1)}[product]
        values = dict(zip(snp.NAMES, snp.FIELDS.unpack(bytes(snp.FIELDS.size))))
        values |= {"version": 3, "guest_svn": 7, "policy": 3 << 16, "algorithm": 1, "report_data": bytes(range(64))}
        values |= {"measurement": b"m" * 48, "host_data": b"h" * 32, "chip_id": self.chip_id(product).ljust(64, b"\0")}
        values |= {f"{name}_tcb": tcb for name in ("current", "reported", "committed", "launch")}
        values |= {"model": bytes(model), "current": bytes((3, 49, 1, 0)), "committed": bytes((2, 49, 1, 0))}
        signed = snp.FIELDS.pack(*{**values, **changes}.values()).ljust(snp.SIGNED_BYTES, b"\0")
        numbers = decode_dss_signature((signer or self.key).sign(signed, ec.ECDSA(hashes.SHA384())))
        return signed + b"".join(number.to_bytes(72, "little") for number in numbers).ljust(512, b"\0")


@pytest.fixture(scope="session")
def intel():
    return Intel(*(ec.generate_private_key(ec.SECP256R1()) for _ in range(4)))


@pytest.fixture(scope="session")
def amd():
    return Amd(*(rsa.generate_private_key(65537, 2048) for _ in range(2)), ec.generate_private_key(ec.SECP384R1()))


@pytest.fixture(scope="session")
def make():
    """What tests of single certificates need: `issue`, `pem`, `encode`, `sgx_extensions`, `spki`, and the time."""

    @dataclasses.dataclass(frozen=True)
    class Make:
        issue = staticmethod(issue)
        pem = staticmethod(pem)
        encode = staticmethod(encode)
        sgx_extensions = staticmethod(sgx_extensions)
        spki = staticmethod(spki)
        raw_signature = staticmethod(raw_signature)
        now = NOW
        year_seconds = YEAR_SECONDS

    return Make()


@pytest.fixture(scope="session")
def recorded():
    """Bytes of real evidence by file name; README.md beside the files says where each comes from."""
    return lambda name: (Path(__file__).parent.parent / "recordings" / name).read_bytes()

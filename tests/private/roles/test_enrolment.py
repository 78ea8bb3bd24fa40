"""How a machine comes into the log: what its TPM has to prove, at a clock of the test's."""

import datetime
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from pomona.core.errors import UserError
from pomona.private.evidence.tpm.errors import TpmError
from pomona.private.evidence.tpm.structures import point_bytes, read_ecc_public
from pomona.private.evidence.tpm.wire import whole
from pomona.private.roles import enrolment
from pomona.private.roles.enrolment import CREDENTIAL_PATH, MACHINE_PATH, Challenge, introduce, open_challenge
from pomona.private.roles.node_keys import open_tpm

NOW, DAY = 1_800_000_000, 86400


class Maker:
    """Who makes TPMs, and certifies their endorsement keys."""

    def __init__(self, name="maker"):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.pem = self.issue(self.key.public_key(), self.name, ca=True).public_bytes(Encoding.PEM)

    def issue(self, key, name, ca=False, begins=NOW - DAY, ends=NOW + DAY):
        day = lambda seconds: datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        made = x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key)
        made = made.serial_number(7).not_valid_before(day(begins)).not_valid_after(day(ends))
        made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        return made.sign(self.key, hashes.SHA256())

    def certify(self, told, **dates):
        """The certificate of the endorsement key that a machine shows, DER."""
        public = whole(told.endorsement, read_ecc_public, "it")
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point_bytes(public))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a TPM")])
        return self.issue(point, name, **dates).public_bytes(Encoding.DER)


@pytest.fixture
def attesters():
    """TPM emulators, each another TPM, with the keys that they attest with."""
    if shutil.which("swtpm") is None:
        pytest.skip("swtpm is not installed")
    running = []

    def make():
        folder = Path(tempfile.mkdtemp(prefix="tpm-"))  # the path of a socket is short
        where = [f"type=unixio,path={folder}/{name}" for name in ("tpm", "control")]
        command = ["swtpm", "socket", "--tpm2", "--server", where[0], "--ctrl", where[1], "--tpmstate", f"dir={folder}"]
        flags = ["--flags", "startup-clear,not-need-init"]
        process = subprocess.Popen(command + flags, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1000):
            try:
                attester = open_tpm(f"unix:{folder}/tpm")
                break
            except TpmError:
                time.sleep(0.01)
        running.append((process, attester, folder))
        return attester

    yield make
    for process, attester, folder in running:
        attester.tpm.close()
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture
def enrol(monkeypatch):
    """Enrols a machine that says `told`, and opens challenges with the TPM of `attester`."""

    class Answer:
        status_code, text = 200, ""

        def __init__(self, content):
            self.content = content

    def run(told, attester, makers, now=NOW):
        def get(address, timeout):
            assert address == "http://node" + MACHINE_PATH
            return Answer(msgspec.json.encode(told))

        def post(address, content, timeout):
            assert address == "http://node" + CREDENTIAL_PATH
            return Answer(open_challenge(attester, msgspec.json.decode(content, type=Challenge)))

        monkeypatch.setattr(enrolment.httpx2, "get", get)
        monkeypatch.setattr(enrolment.httpx2, "post", post)
        return enrolment.enrol("http://node", makers, "operations", now, 30 * DAY)

    return run


def test_a_certified_tpm_is_enrolled(attesters, enrol):
    attester, maker = attesters(), Maker()
    told = introduce(attester)
    told.certificate = maker.certify(told)
    machine = enrol(told, attester, [Maker("another").pem, maker.pem])
    assert machine.key_name == attester.key.name.hex()
    assert (machine.not_before, machine.expires, machine.enrolled_by) == (NOW, NOW + 30 * DAY, "operations")
    assert enrol(introduce(attester), attester, None).key_name == machine.key_name, "any TPM, where that is asked for"


@pytest.mark.parametrize("now", [NOW - DAY - 1, NOW + DAY + 1])
def test_a_certificate_counts_while_it_is_valid(attesters, enrol, now):
    attester, maker = attesters(), Maker()
    told = introduce(attester)
    told.certificate = maker.certify(told)
    for inside in (NOW - DAY, NOW + DAY):
        assert enrol(told, attester, [maker.pem], inside)
    with pytest.raises(UserError, match="its TPM's certificate has expired"):
        enrol(told, attester, [maker.pem], now)


def test_what_is_not_proven_is_refused(attesters, enrol):
    attester, other, maker = attesters(), attesters(), Maker()
    told, others = introduce(attester), introduce(other)
    with pytest.raises(UserError, match="holds no certificate of a maker"):
        enrol(told, attester, [maker.pem])
    told.certificate = Maker().certify(told)
    with pytest.raises(UserError, match="none of these makers certified its TPM"):
        enrol(told, attester, [maker.pem])
    told.certificate = maker.certify(others)
    with pytest.raises(UserError, match="is of another endorsement key"):
        enrol(told, attester, [maker.pem])
    told.certificate = b"\x30\x03abc"
    with pytest.raises(UserError, match="cannot be enrolled"):
        enrol(told, attester, [maker.pem])


def test_a_node_without_a_tpm_is_not_enrolled(monkeypatch):
    answer = SimpleNamespace(status_code=404, text="this node has no TPM\n", content=b"")
    monkeypatch.setattr(enrolment.httpx2, "get", lambda address, timeout: answer)
    with pytest.raises(UserError, match="it answers 404: this node has no TPM"):
        enrolment.enrol("http://node", None, "operations", NOW, DAY)


def test_another_tpms_keys_cannot_be_claimed(attesters, enrol):
    """An attestation key of one TPM beside the endorsement key of another: neither opens the challenge."""
    attester, other = attesters(), attesters()
    told, others = introduce(attester), introduce(other)
    told.endorsement = others.endorsement
    for holder in (attester, other):
        with pytest.raises(UserError, match="cannot be enrolled"):
            enrol(told, holder, None)


def test_a_key_that_signs_anything_is_not_enrolled(attesters, enrol):
    attester = attesters()
    told = introduce(attester)
    told.attestation = told.endorsement
    with pytest.raises(UserError, match="may sign more than what its TPM wrote"):
        enrol(told, attester, None)

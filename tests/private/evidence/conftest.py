"""A TPM emulator for a test, a node's life to run against it or its recording, and evidence made in software."""

import contextlib
import dataclasses
import hashlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

sys.path.insert(0, str(Path(__file__).parent))  # registers.py is a module of the tests here
from registers import REGISTERS, sec1

from pomona.private.evidence.tpm.client import Tpm, pcr_extend, pcr_read, startup
from pomona.private.evidence.tpm.commands import certify_creation, flush_context, quote, read_loaded
from pomona.private.evidence.tpm.credential import make_credential
from pomona.private.evidence.tpm.errors import TpmError
from pomona.private.evidence.tpm.evidence import TpmEvidence, TpmExpected
from pomona.private.evidence.tpm.keys import (
    attestation_key,
    create_register_key,
    endorsement_key,
    load_register_key,
    open_credential,
)
from pomona.private.evidence.tpm.registers import registers_digest, selection_of
from pomona.private.evidence.tpm.structures import (
    GENERATED,
    Attest,
    ClockInfo,
    CreationData,
    CreationInfo,
    EcdsaSignature,
    QuoteInfo,
    name_of,
    pack_attest,
    pack_creation_data,
    pack_public,
    pack_signature,
    qualified_name,
)
from pomona.private.evidence.tpm.templates import ATTESTATION_KEY, ENDORSEMENT_KEY_ECC, register_key
from pomona.private.evidence.tpm.transport import open_unix
from pomona.private.evidence.tpm.wire import RH_ENDORSEMENT

PEER = ec.derive_private_key(0x1234567890ABCDEF, ec.SECP256R1())
QUOTE_DATA, CERTIFICATION_DATA = hashlib.sha256(b"quote").digest(), hashlib.sha256(b"certification").digest()


def repeated(count):
    """Bytes in the place of random ones, so that the commands are the same again."""
    return bytes(range(count))


class Emulator:
    """swtpm with a state folder of its own: what a TPM keeps without power is kept from `start` to `start`."""

    def __init__(self):
        # Not pytest's folder: the path of a socket has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="tpm-"))
        self.process = None
        self.opened = []

    def start(self, server=None):
        server = server or f"type=unixio,path={self.folder}/tpm"
        control = f"type=unixio,path={self.folder}/control"
        state = f"dir={self.folder}"
        command = ["swtpm", "socket", "--tpm2", "--server", server, "--ctrl", control, "--tpmstate", state]
        flags = ["--flags", "startup-clear,not-need-init"]
        self.process = subprocess.Popen(command + flags, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def connect(self):
        """A started TPM over the socket."""
        return self.keep(Tpm(self.waited(lambda: open_unix(self.folder / "tpm")), repeated))

    def keep(self, tpm):
        """Starts the TPM, and closes the connection with the emulator."""
        self.opened.append(tpm)
        startup(tpm)
        return tpm

    def waited(self, open_):
        """What `open_` gives once swtpm listens."""
        for _ in range(1000):
            with contextlib.suppress(TpmError):
                return open_()
            assert self.process.poll() is None, "swtpm ended"
            time.sleep(0.01)
        raise AssertionError("swtpm does not listen")

    def stop(self):
        while self.opened:
            self.opened.pop().close()
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None
        for socket in ("tpm", "control"):
            (self.folder / socket).unlink(missing_ok=True)

    def restart(self):
        """Power off and on: registers begin anew, keys in memory are gone, seeds stay."""
        self.stop()
        self.start()
        return self.connect()


@pytest.fixture
def emulators():
    """Makes emulators that run; each is another TPM."""
    if shutil.which("swtpm") is None:
        pytest.skip("swtpm is not installed")
    made = []

    def make(**options):
        emulator = Emulator()
        made.append(emulator)
        emulator.start(**options)
        return emulator

    yield make
    for emulator in made:
        emulator.stop()
        shutil.rmtree(emulator.folder)


@pytest.fixture
def emulator(emulators):
    """One emulator that runs."""
    return emulators()


@pytest.fixture
def tpm(emulator):
    """A started TPM of its own for the test."""
    return emulator.connect()


@dataclasses.dataclass(frozen=True)
class Life:
    """What came of a node's life."""

    evidence: TpmEvidence
    expected: TpmExpected
    qualified: bytes
    shared: bytes
    credential: bytes
    refusals: list


def node_life(tpm):
    """Boots, measures, enrols, attests, opens a request; then something else is measured, and a request is refused."""
    startup(tpm)
    pcr_extend(tpm, 11, hashlib.sha256(b"model").digest())
    values = pcr_read(tpm, REGISTERS)
    attester = attestation_key(tpm)
    _, qualified = read_loaded(tpm, attester.handle)
    endorsement = endorsement_key(tpm, ENDORSEMENT_KEY_ECC)
    sealed = make_credential(endorsement.public, attester.name, b"enrolled", hashlib.sha256(b"seed").digest())
    credential = open_credential(tpm, endorsement, attester, sealed)
    flush_context(tpm, endorsement.handle)
    created = create_register_key(tpm, values)
    key = load_register_key(tpm, created, values)
    certification = certify_creation(tpm, attester.handle, key.loaded, created, CERTIFICATION_DATA)
    quoted = quote(tpm, attester.handle, values, QUOTE_DATA)
    shared = key.diffie_hellman(sec1(PEER))
    pcr_extend(tpm, 11, hashlib.sha256(b"a debugger").digest())
    refusals = []
    for _ in range(2):
        try:
            key.diffie_hellman(sec1(PEER))
        except TpmError as error:
            refusals.append(error.code)
    key.close()
    evidence = TpmEvidence(
        pack_public(attester.public),
        quoted.attest,
        pack_signature(quoted.signature),
        pack_public(created.public),
        created.creation_data,
        certification.attest,
        pack_signature(certification.signature),
    )
    expected = TpmExpected(attester.name, values, QUOTE_DATA, CERTIFICATION_DATA)
    return Life(evidence, expected, qualified, shared, credential, refusals)


@pytest.fixture(scope="session")
def life():
    """`node_life`, and the peer's private key in it."""
    return node_life, PEER


@pytest.fixture(scope="session")
def recording():
    """The lines of a node's life on swtpm 0.7.1."""
    return (Path(__file__).parent / "recordings" / "tpm_node_life.jsonl").read_text().splitlines()


# --- evidence without a TPM ----------------------------------------------------------------------------------------


def same(found):
    """Changes nothing."""
    return found


class SoftwareTpm:
    """Makes evidence as a TPM does. A function given by a part's name changes that part before it is hashed or signed:
    whatever depends on it is consistent with it."""

    def __init__(self):
        self.values = {register: hashlib.sha256(bytes([register])).digest() for register in REGISTERS}
        self.private = ec.derive_private_key(2**200 + 1, ec.SECP256R1())
        self.attester = self.with_point(ATTESTATION_KEY, self.private)
        self.expected = TpmExpected(name_of(self.attester), self.values, QUOTE_DATA, CERTIFICATION_DATA)

    @staticmethod
    def with_point(public, private):
        point = sec1(private)
        return dataclasses.replace(public, x=point[1:33], y=point[33:])

    def signed(self, attest):
        """The packed attestation, and the packed signature over it."""
        packed = pack_attest(attest)
        r, s = decode_dss_signature(self.private.sign(packed, ec.ECDSA(hashes.SHA256())))
        return packed, pack_signature(EcdsaSignature(r.to_bytes(32, "big"), s.to_bytes(32, "big")))

    def evidence(self, attester=same, quote=same, key=same, creation=same, certification=same):
        """Consistent evidence but for the changes."""
        changed = attester(self.attester)
        signer = qualified_name(RH_ENDORSEMENT, name_of(changed))
        selection, digest = selection_of(self.values), registers_digest(self.values)
        clock = ClockInfo(5000, 3, 1, True)
        quoted = quote(Attest(GENERATED, signer, QUOTE_DATA, clock, 7, QuoteInfo(selection, digest)))
        public = key(self.with_point(register_key(self.values), PEER))
        parent = b"\x00\x0b" + bytes(32)
        data = pack_creation_data(creation(CreationData(selection, digest, 1, 0x000B, parent, parent, b"")))
        made = CreationInfo(name_of(public), hashlib.sha256(data).digest())
        clock = ClockInfo(4000, 3, 1, True)
        certified = certification(Attest(GENERATED, signer, CERTIFICATION_DATA, clock, 7, made))
        return TpmEvidence(
            pack_public(changed), *self.signed(quoted), pack_public(public), data, *self.signed(certified)
        )


@pytest.fixture
def software():
    """A TPM in software."""
    return SoftwareTpm()


@pytest.fixture
def within():
    """Runs a function in a thread and gives what it gave or raised; fails where it hangs."""

    def run(function, seconds=20):
        outcome = []

        def work():
            try:
                outcome.append((function(), None))
            except BaseException as error:
                outcome.append((None, error))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(seconds)
        assert outcome, "it hangs"
        found, error = outcome[0]
        if error is not None:
            raise error
        return found

    return run

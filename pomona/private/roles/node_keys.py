"""A node's keys, and the bundle that proves them: made anew when half of their time is over, in the TPM where there is
one."""

import dataclasses
import hashlib
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from pomona.core.errors import UserError
from pomona.private.attestation.bundle import (
    Bundle,
    Claims,
    ProcessorEvidence,
    ReleaseProof,
    claims_digest,
    encode_bundle,
    identity_of,
)
from pomona.private.attestation.case import BANK, Known
from pomona.private.evidence.binding import report_data_of
from pomona.private.evidence.processors import configfs
from pomona.private.evidence.tpm.client import Tpm, pcr_extend, pcr_read, startup
from pomona.private.evidence.tpm.commands import Loaded, certify_creation, quote
from pomona.private.evidence.tpm.evidence import TpmEvidence
from pomona.private.evidence.tpm.keys import RegisterKey, attestation_key, create_register_key, load_register_key
from pomona.private.evidence.tpm.structures import pack_public, pack_signature
from pomona.private.evidence.tpm.transport import DeviceTransport, open_tcp, open_unix
from pomona.private.sealing.kem import P256, generate_key
from pomona.private.sealing.mlkem import SEED_BYTES, MlKemKey
from pomona.private.transparency.leaves import Release, hash_of
from pomona.private.transparency.merkle import inclusion_proof
from pomona.private.transparency.view import MAX_AGE_SECONDS

KEY_SECONDS = 24 * 3600
BEGUN_SECONDS = 300
"""Keys are dated back by so much, for clients whose clocks are slow."""


@dataclasses.dataclass(frozen=True)
class NodeKeys:
    """Keys that requests are sealed to, until they expire."""

    content: bytes
    """The bundle."""
    point: bytes
    mlkem_seed: bytes = dataclasses.field(repr=False)
    diffie_hellman: Callable[[bytes], bytes]
    close: Callable[[], None]
    expires: int
    renewal: float
    """When others are to be made."""
    release: bytes

    @property
    def identity(self) -> bytes:
        """SHA-256 of the bundle."""
        return identity_of(self.content)


@dataclasses.dataclass(frozen=True)
class Attester:
    """A machine's TPM, and the key by which it attests."""

    tpm: Tpm
    key: Loaded


def open_tpm(place: str) -> Attester:
    """A TPM by its place: a device as `/dev/tpmrm0`, `unix:PATH` or `tcp:HOST:PORT` of an emulator.

    Raises:
        UserError: the place is of none of these forms.
        TpmError: there is none, or it does not answer.
    """
    kind, _, rest = place.partition(":")
    if place.startswith("/"):
        tpm = Tpm(DeviceTransport(Path(place)))
    elif kind == "unix":
        tpm = Tpm(open_unix(Path(rest)))
    elif kind == "tcp" and rest.rpartition(":")[2].isdigit():
        tpm = Tpm(open_tcp(rest.rpartition(":")[0], int(rest.rpartition(":")[2])))
    else:
        raise UserError(
            f"--tpm {place} is no TPM.", "a device, or an emulator's socket.", "/dev/tpmrm0, unix:PATH or tcp:HOST:PORT"
        )
    startup(tpm)
    return Attester(tpm, attestation_key(tpm))


def measure_into(attester: Attester, register: int, digest: bytes, expected: bytes) -> None:
    """Extends a register by what was measured, once after each start of the machine.

    Raises:
        UserError: something else was extended into it since.
        TpmError: the TPM does not answer.
    """
    held = pcr_read(attester.tpm, [register])[register]
    if held == bytes(len(held)):
        pcr_extend(attester.tpm, register, digest)
    elif held != expected:
        raise UserError(
            f"register {register} of the TPM holds another measurement already.",
            "what was measured once stays until the machine starts again.",
            "restart the machine, then the node",
        )


def make_keys(
    attester: Attester | None, processor: Path | None, known: Known, release: Release, now: float
) -> NodeKeys:
    """New keys for a release that is in the log. They expire when the checkpoint that proves this becomes too old for
    clients, if that is before their day is over.

    Args:
        processor: the folder of configfs-tsm, where a processor that encrypts its memory attests as well.

    Raises:
        UserError: the TPM's registers do not hold what the release says.
        AttestationError: TPM or processor refuses.
    """
    seed = secrets.token_bytes(SEED_BYTES)
    leaf = hash_of(release)
    began = int(now) - BEGUN_SECONDS
    expires = min(began + KEY_SECONDS, known.view.time + MAX_AGE_SECONDS)
    dates = {"not_before": began, "expires": expires}
    ends = (expires, (now + expires) / 2, leaf)
    mlkem = MlKemKey.from_seed(seed).public_bytes
    proof = _proof(known, release)
    if attester is None:
        key = generate_key(P256)
        claims = Claims(key.public_bytes, mlkem, leaf, **dates)
        content = encode_bundle(Bundle(claims, proof))
        return NodeKeys(content, claims.point, seed, key.diffie_hellman, lambda: None, *ends)
    registers = _registers(release)
    if not registers:
        raise UserError(
            f"the release of {release.name} names no registers of a TPM.",
            f"its profile is {release.profile}; a node with a TPM is held to what the release says of it.",
            "pomona private release --profile tpm, or the node without --tpm",
        )
    _check_registers(attester, registers)
    created = create_register_key(attester.tpm, registers)
    held = load_register_key(attester.tpm, created, registers)
    claims = Claims(held.public_bytes, mlkem, leaf, **dates)
    evidence = _evidence(attester, held, created, registers, claims_digest(claims))
    guest = _processor(processor, evidence, claims) if processor else None
    content = encode_bundle(Bundle(claims, proof, evidence, guest))
    return NodeKeys(content, claims.point, seed, held.diffie_hellman, held.close, *ends)


def _proof(known: Known, release: Release) -> ReleaseProof:
    index = known.hashes.index(hash_of(release))
    path = inclusion_proof(index, len(known.entries), known.subtree)
    return ReleaseProof(known.entries[index], index, tuple(path), known.view.note)


def _registers(release: Release) -> dict[int, bytes]:
    return {
        int(name.removeprefix(BANK)): bytes.fromhex(value)
        for name, value in release.measurements.items()
        if name.startswith(BANK)
    }


def _check_registers(attester: Attester, registers: Mapping[int, bytes]) -> None:
    held = pcr_read(attester.tpm, registers)
    wrong = [str(number) for number in registers if held[number] != registers[number]]
    if wrong:
        raise UserError(
            f"the TPM's registers {', '.join(wrong)} do not hold what the release says.",
            "clients refuse a node on which something else was started.",
            "start the machine from the release's image, or publish what it runs: pomona private release",
        )


def _evidence(attester, held: RegisterKey, created, registers: Mapping[int, bytes], binding: bytes) -> TpmEvidence:
    certified = certify_creation(attester.tpm, attester.key.handle, held.loaded, created, binding)
    quoted = quote(attester.tpm, attester.key.handle, registers, binding)
    return TpmEvidence(
        pack_public(attester.key.public),
        quoted.attest,
        pack_signature(quoted.signature),
        pack_public(created.public),
        created.creation_data,
        certified.attest,
        pack_signature(certified.signature),
    )


def _processor(folder: Path, evidence: TpmEvidence, claims: Claims) -> ProcessorEvidence:
    binding = report_data_of(hashlib.sha256(evidence.quote).digest(), claims_digest(claims))
    found = configfs.collect(binding, f"pomona-{secrets.token_hex(8)}", folder)
    if found.provider == configfs.TDX:
        return ProcessorEvidence("tdx", found.report)
    table = configfs.read_certificate_table(found.auxiliary)
    key = table.get(configfs.VCEK) or table.get(configfs.VLEK) or b""
    return ProcessorEvidence("sev-snp", found.report, (key, table.get(configfs.ASK, b"")))

"""A bundle before its judge: what it says, and what the judge knows without it."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

from pomona.private.attestation.bundle import Bundle, ProcessorEvidence, claims_digest, decode_bundle, identity_of
from pomona.private.attestation.profiles import PROFILES, Profile
from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors.roots import AMD_ROOTS, INTEL_SGX_ROOT
from pomona.private.evidence.processors.snp import EndorsementKey, SnpReport, read_endorsement_key, read_report
from pomona.private.evidence.processors.tdx import TdQuote, read_quote
from pomona.private.evidence.tpm.evidence import TpmExpected, TpmParts, read_evidence
from pomona.private.evidence.tpm.structures import name_of
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.leaves import (
    Leaf,
    Machine,
    Release,
    Revocation,
    decode,
    hash_of,
    in_force,
    newest_directory,
)
from pomona.private.transparency.merkle import CompactRange, extend, leaf_hash, range_root
from pomona.private.transparency.view import View

BANK = "sha256/"


@dataclasses.dataclass(frozen=True)
class Known:
    """What a client or an auditor brings: the log as it has verified it, and what it accepts."""

    view: View
    entries: Sequence[bytes]
    """All of the log, in its order, as `view` verified them."""
    now: float
    profiles: frozenset[str] = frozenset(PROFILES)
    """Of releases that it would use."""
    models: frozenset[str] = frozenset()
    """Digests of models that it would use; any where there are none."""
    intel_root: bytes = INTEL_SGX_ROOT
    amd_roots: Mapping[str, bytes] = dataclasses.field(default_factory=lambda: AMD_ROOTS)

    @functools.cached_property
    def written(self) -> tuple[Leaf, ...]:
        """All that the log says, in force or not; entries of kinds that are not known say nothing."""
        found = []
        for entry in self.entries:
            try:
                found.append(decode(entry))
            except TransparencyError:
                continue
        return tuple(found)

    def is_revoked(self, leaf: Leaf) -> bool:
        """Whether the log takes a leaf back now."""
        return hash_of(leaf).hex() in self._revoked

    @functools.cached_property
    def _revoked(self) -> frozenset[str]:
        return frozenset(
            each.leaf for each in self.written if isinstance(each, Revocation) and each.not_before <= self.now
        )

    @functools.cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """What is in force now."""
        return tuple(in_force(self.written, self.now))

    @functools.cached_property
    def hashes(self) -> tuple[bytes, ...]:
        """The leaf hashes of all entries."""
        return tuple(leaf_hash(entry) for entry in self.entries)

    @functools.cached_property
    def nodes(self) -> Mapping[bytes, bytes]:
        """The nodes of the directory: their identities, and the releases that they are listed with.

        Raises:
            TransparencyError: there is no directory.
        """
        return {
            bytes.fromhex(node.identity): bytes.fromhex(node.release)
            for node in newest_directory(self.leaves, self.now)
        }

    def subtree(self, level: int, index: int) -> bytes:
        """The hash over the entries from index * 2^level on, 2^level of them: what proofs are made of."""
        return range_root(extend(CompactRange(), self.hashes[index << level : (index + 1) << level]))

    def root(self, size: int) -> bytes:
        """The root of the first entries, which every checkpoint of this log has to have."""
        return range_root(extend(CompactRange(), self.hashes[:size]))


@dataclasses.dataclass(frozen=True)
class Case:
    """One bundle and its judge's knowledge. Parts are read when a clause asks for them."""

    content: bytes
    bundle: Bundle
    known: Known

    @property
    def identity(self) -> bytes:
        """SHA-256 of the bundle."""
        return identity_of(self.content)

    @property
    def binding(self) -> bytes:
        """What all evidence has to have signed: the digest of the claims."""
        return claims_digest(self.bundle.claims)

    @functools.cached_property
    def release(self) -> Release:
        """What the bundle says that the node runs.

        Raises:
            AttestationError: its leaf is no release.
        """
        try:
            leaf = decode(self.bundle.proof.leaf)
        except TransparencyError as error:
            raise AttestationError(f"the release does not read: {error}") from error
        if not isinstance(leaf, Release):
            raise AttestationError("the leaf that the bundle shows is not a release.")
        return leaf

    @property
    def profile(self) -> Profile:
        """Of the release.

        Raises:
            AttestationError: it is none that is known.
        """
        found = PROFILES.get(self.release.profile)
        if found is None:
            raise AttestationError(f"the release's profile is none of {', '.join(PROFILES)}.")
        return found

    @functools.cached_property
    def parts(self) -> TpmParts:
        """The TPM's evidence.

        Raises:
            AttestationError: there is none, or a part does not read.
        """
        if self.bundle.tpm is None:
            raise AttestationError("the bundle has no evidence of a TPM, and its release's profile asks for it.")
        return read_evidence(self.bundle.tpm)

    @functools.cached_property
    def expected(self) -> TpmExpected:
        """What that has to say. Its machine's own name stands in where it is enrolled: `machine_enrolled` judges
        that."""
        registers = {
            int(register.removeprefix(BANK)): bytes.fromhex(value)
            for register, value in self.release.measurements.items()
            if register.startswith(BANK)
        }
        return TpmExpected(name_of(self.parts.attestation_key), registers, self.binding, self.binding)

    @functools.cached_property
    def machines(self) -> frozenset[bytes]:
        """The names of the attestation keys that are enrolled."""
        return frozenset(bytes.fromhex(leaf.key_name) for leaf in self.known.leaves if isinstance(leaf, Machine))

    @functools.cached_property
    def td(self) -> TdQuote:
        """The TDX quote.

        Raises:
            AttestationError: there is none, or it does not read.
        """
        return read_quote(self._processor("tdx").report)

    @functools.cached_property
    def guest(self) -> SnpReport:
        """The SEV-SNP report.

        Raises:
            AttestationError: there is none, or it does not read.
        """
        return read_report(self._processor("sev-snp").report)

    @functools.cached_property
    def guest_key(self) -> EndorsementKey:
        """The processor's key that signed it.

        Raises:
            AttestationError: there is none, or its certificate does not read.
        """
        return read_endorsement_key(self.certificate(0))

    def certificate(self, number: int) -> bytes:
        """Of the SEV-SNP report: 0 for its key, 1 for the signer of that.

        Raises:
            AttestationError: it is not there.
        """
        found = self._processor("sev-snp").certificates
        if len(found) <= number:
            raise AttestationError(f"an SEV-SNP report needs 2 certificates beside it; the bundle has {len(found)}.")
        return found[number]

    def measured(self, register: str) -> list[bytes]:
        """What the release says that a register of the processor's holds.

        Raises:
            AttestationError: it does not say.
        """
        value = self.release.measurements.get(register)
        if value is None:
            raise AttestationError(f"the release does not say what {register} holds.")
        return [bytes.fromhex(value)]

    def _processor(self, kind: str) -> ProcessorEvidence:
        if self.bundle.processor is None or self.bundle.processor.kind != kind:
            raise AttestationError(f"the bundle has no evidence of the kind {kind}.")
        return self.bundle.processor

    @property
    def quote_digest(self) -> bytes:
        """SHA-256 of the TPM's quote, for which the processor vouches."""
        return hashlib.sha256(self.parts.evidence.quote).digest()


def open_case(content: bytes, known: Known) -> Case:
    """A bundle to be judged.

    Raises:
        AttestationError: it is none.
    """
    return Case(content, decode_bundle(content), known)

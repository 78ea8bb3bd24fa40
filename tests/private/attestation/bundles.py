"""Bundles made in software: a log, a release, a machine, a directory, and evidence whose vendors are the tests' own.

A `Recipe` without changes makes a bundle that meets every clause of its profile. Each of its fields changes one thing
at the place where it arises; whatever depends on that is consistent with it.
"""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pomona.private.attestation.bundle import (
    Bundle,
    Claims,
    ProcessorEvidence,
    ReleaseProof,
    claims_digest,
    encode_bundle,
    identity_of,
)
from pomona.private.attestation.case import Known
from pomona.private.evidence.binding import report_data_of
from pomona.private.evidence.tpm.structures import name_of
from pomona.private.transparency.checkpoint import Checkpoint, cosign, open_checkpoint, sign_checkpoint
from pomona.private.transparency.leaves import Directory, Machine, NodeEntry, Release, encode, hash_of
from pomona.private.transparency.merkle import CompactRange, extend, inclusion_proof, leaf_hash, range_root
from pomona.private.transparency.note import Signer, encode_note, encode_vkey, verifier_of
from pomona.private.transparency.view import new_view

EVIDENCE = Path(__file__).parents[1] / "evidence"


def _module(name, path):
    """A conftest of the room of evidence: its makers of evidence serve here too."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tpm_made = _module("tpm_made_in_software", EVIDENCE / "conftest.py")
vendors = _module("vendors_of_the_tests", EVIDENCE / "reports" / "conftest.py")

NOW = int(vendors.NOW)
DAY = 86_400
ORIGIN = "example.org/log"
SIGNER, STRANGER = Signer(ORIGIN, bytes(range(32))), Signer(ORIGIN, bytes(range(1, 33)))
TPM = tpm_made.SoftwareTpm()
POINT, MLKEM = tpm_made.sec1(tpm_made.PEER), bytes(1184)
UNKNOWN_KIND = b'{"expires":9000000000,"kind":"poem","not_before":0}'
Hook = Callable[[Any], Any]


def same(found):
    """Changes nothing."""
    return found


def nothing(vendor):
    """No changes to what a vendor makes."""
    return {}


def release_of(profile, name="model", **changes):
    """A release in force, with the registers that the TPM and the vendors here have."""
    registers = {f"sha256/{number}": value.hex() for number, value in TPM.values.items()}
    registers |= {"mrtd/0": b"mrtd".ljust(48, b".").hex(), "sev-snp/0": (b"m" * 48).hex()}
    registers |= {f"rtmr/{each}": f"rtmr{each}".encode().ljust(48, b".").hex() for each in range(4)}
    fields = {"version": "1", "image": "0a" * 32, "model": "0b" * 32, "measurements": registers}
    dates = {"not_before": NOW - DAY, "expires": NOW + DAY}
    return Release(**{**dates, **fields, "name": name, "profile": profile, **changes})


def signed(entries, signer=SIGNER, dated=NOW - 60):
    """A checkpoint over entries; without a date where `dated` is None."""
    root = range_root(extend(CompactRange(), map(leaf_hash, entries)))
    note = sign_checkpoint(Checkpoint(ORIGIN, len(entries), root), signer)
    return encode_note(note if dated is None else cosign(note, signer, dated))


def known_of(entries, now=NOW, **accepted):
    """What a client knows who has read this log."""
    view = new_view(ORIGIN, encode_vkey(verifier_of(SIGNER)))
    opened = open_checkpoint(signed(entries), ORIGIN, view.log, view.cosigners)
    return Known(dataclasses.replace(view, signed=opened), tuple(entries), now, **accepted)


def proof_of(entries, entry, checkpoint):
    """That an entry is in the tree of these entries."""
    hashes, index = [leaf_hash(each) for each in entries], entries.index(entry)

    def node(level, at):
        return range_root(extend(CompactRange(), hashes[at << level : (at + 1) << level]))

    return ReleaseProof(entry, index, tuple(inclusion_proof(index, len(entries), node)), checkpoint)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is to be made, and what of it is changed."""

    profile: str
    tpm: bool = False
    processor: str = ""
    """`tdx`, `sev-snp`, or one that nobody knows."""
    release: Hook = same
    claims: Hook = same
    history: Hook = same
    """The entries that the proof's checkpoint is over."""
    checkpoint: dict = dataclasses.field(default_factory=dict)
    """Who signs that, and when: `signed`'s arguments."""
    proof: Hook = same
    parts: dict = dataclasses.field(default_factory=dict)
    """Changes to the TPM's parts before they are signed: `SoftwareTpm.evidence`'s arguments."""
    evidence: Hook = same
    """Changes to the TPM's evidence afterwards; the processor vouches for what it is then."""
    bound: Hook = same
    """What the processor vouches for."""
    td: Hook = nothing
    guest: Hook = nothing
    guest_key: Hook = nothing
    guest_signer: Hook = nothing
    """Given a vendor, the arguments of its methods that make a quote, a report or a certificate."""
    certificates: Hook = same
    bundle: Hook = same
    machines: Hook = same
    """The leaves that enrol machines."""
    listing: Hook = same
    """The node's entry in the directory."""
    directory: Hook = same
    later: Hook = nothing
    """Leaves at the end of the log, given the release's."""
    known: Hook = same


@dataclasses.dataclass(frozen=True)
class Vendors:
    """Whose roots the tests' clients have."""

    intel: Any
    amd: Any


def made(recipe, vendors_):
    """The bundle's bytes, and what a client knows that is to judge it."""
    release = recipe.release(release_of(recipe.profile))
    other = release_of(recipe.profile, "other")
    attester = recipe.parts.get("attester", same)(TPM.attester)
    dates = {"not_before": NOW - DAY, "expires": NOW + DAY}
    machine = Machine(**dates, key_name=name_of(attester).hex(), enrolled_by="somebody")
    leaves = [other, release, *recipe.machines([machine])]
    entries = [UNKNOWN_KIND, *map(encode, leaves)]
    shown = recipe.history(entries)
    proof = recipe.proof(proof_of(shown, encode(release), signed(shown, **recipe.checkpoint)))
    dates = {"not_before": NOW - DAY // 2, "expires": NOW + DAY // 2}
    claims = recipe.claims(Claims(POINT, MLKEM, hash_of(release), **dates))
    evidence = _evidence(recipe, claims_digest(claims)) if recipe.tpm else None
    processor = _processor(recipe, evidence, claims, vendors_) if recipe.processor else None
    content = encode_bundle(recipe.bundle(Bundle(claims, proof, evidence, processor)))
    node = recipe.listing(NodeEntry(identity_of(content).hex(), "http://node", claims.release.hex()))
    dates = {"not_before": NOW - 60, "expires": NOW + 3600}
    directory = recipe.directory(Directory(**dates, nodes=(node,), part=1, parts=1))
    added = [directory, *(recipe.later(release) or ())]
    known = known_of([*entries, *map(encode, added)], intel_root=vendors_.intel.pinned, amd_roots=vendors_.amd.pinned)
    return content, recipe.known(known)


def _evidence(recipe, binding):
    def signing(part):
        change = recipe.parts.get(part, same)
        return lambda attest: change(dataclasses.replace(attest, extra_data=binding))

    attests = {part: signing(part) for part in ("quote", "certification")}
    return recipe.evidence(TPM.evidence(**{**recipe.parts, **attests}))


def _processor(recipe, evidence, claims, vendors_):
    quote = evidence.quote if evidence else b""
    data = recipe.bound(report_data_of(hashlib.sha256(quote).digest(), claims_digest(claims)))
    if recipe.processor == "sev-snp":
        amd = vendors_.amd
        report = amd.report(**{"report_data": data, **recipe.guest(amd)})
        certificates = amd.key_certificate(**recipe.guest_key(amd)), amd.signer_certificate(**recipe.guest_signer(amd))
        return ProcessorEvidence("sev-snp", report, recipe.certificates(certificates))
    report = vendors_.intel.quote(3, **{"report_data": data, **recipe.td(vendors_.intel)})
    return ProcessorEvidence(recipe.processor, report)

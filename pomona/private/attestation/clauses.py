"""The policy: every clause that a node's bundle has to meet, each a named function, and which apply to which bundle.

A clause raises where it refuses, and its first line of documentation says what it holds a node to. Nothing else judges
nodes: clients and auditors run the same list.
"""

import dataclasses
import functools
from collections.abc import Callable

from pomona.private.attestation.bundle import LONGEST_SECONDS
from pomona.private.attestation.case import BANK, Case
from pomona.private.evidence.binding import report_data_of
from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors import snp_verify, tdx_verify
from pomona.private.evidence.tpm import verify as tpm_verify
from pomona.private.evidence.tpm.structures import name_of, point_bytes
from pomona.private.transparency.checkpoint import Signed, open_checkpoint, verified_time
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.merkle import leaf_hash
from pomona.private.transparency.view import MAX_AGE_SECONDS, MAX_AHEAD_SECONDS, check

Clause = Callable[[Case], None]
SNP_REGISTER = "sev-snp/0"
TDX_REGISTERS = {"mrtd": "mrtd/0", **{f"rtmr{number}": f"rtmr/{number}" for number in range(4)}}
"""The processors' registers by the names that leaves allow them: a bank and a number."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One clause, and why it refused; nothing where it did not."""

    clause: str
    about: str
    refusal: str = ""


# --- what every node has to meet -----------------------------------------------------------------------------------


def listed(case: Case) -> None:
    """The node is in the directory that the log shows to everybody, with the same release."""
    release = case.known.nodes.get(case.identity)
    _require(release is not None, "the node is not in the directory")
    _require(release == case.bundle.claims.release, "the directory lists the node with another release")


def begun(case: Case) -> None:
    """The node's keys are good already."""
    _require(case.bundle.claims.not_before <= case.known.now, "the node's keys are not good yet")


def not_expired(case: Case) -> None:
    """The node's keys have not expired."""
    _require(case.known.now < case.bundle.claims.expires, "the node's keys have expired")


def short_lived(case: Case) -> None:
    """The node's keys are good for 24 hours at most."""
    seconds = case.bundle.claims.expires - case.bundle.claims.not_before
    _require(0 < seconds <= LONGEST_SECONDS, f"the node's keys are good for {seconds} s, and may be for 86,400")


def release_is_the_claimed(case: Case) -> None:
    """The release that the bundle shows is the one that its claims name."""
    _require(leaf_hash(case.bundle.proof.leaf) == case.bundle.claims.release, "the claims name another release")


def proof_leads_to_root(case: Case) -> None:
    """The release is in the log: the proof leads to the root that the log signed."""
    proof = case.bundle.proof
    check(proof.leaf, proof.index, proof.path, _checkpoint(case).checkpoint)


def proof_is_of_this_log(case: Case) -> None:
    """The checkpoint of the proof is one of the history that everybody sees."""
    checkpoint, known = _checkpoint(case).checkpoint, case.known
    _require(checkpoint.size <= len(known.entries), "the proof's checkpoint is beyond what the log shows")
    _require(checkpoint.root == known.root(checkpoint.size), "the log has shown two histories: it is forked")


def proof_is_fresh(case: Case) -> None:
    """The checkpoint of the proof was the newest less than a day ago."""
    age = case.known.now - verified_time(_checkpoint(case), case.known.view.quorum)
    _require(-MAX_AHEAD_SECONDS <= age <= MAX_AGE_SECONDS, f"the proof's checkpoint is of {age:.0f} s ago: it is stale")


def release_in_force(case: Case) -> None:
    """The release is valid now, and nothing in the log revokes it."""
    _require(case.release in case.known.leaves, "the release has expired, or was revoked, or is not in the log")


def profile_accepted(case: Case) -> None:
    """The release promises what the client asks for."""
    _require(case.release.profile in case.known.profiles, f"the profile {case.release.profile} is not accepted")


def model_accepted(case: Case) -> None:
    """The release serves a model that the client asks for."""
    models = case.known.models
    _require(not models or case.release.model in models, "the release serves another model")


EVERY: tuple[Clause, ...] = (
    listed,
    begun,
    not_expired,
    short_lived,
    release_is_the_claimed,
    proof_leads_to_root,
    proof_is_of_this_log,
    proof_is_fresh,
    release_in_force,
    profile_accepted,
    model_accepted,
)

# --- a TPM ---------------------------------------------------------------------------------------------------------


def machine_enrolled(case: Case) -> None:
    """The TPM is of a machine that is enrolled in the log."""
    _require(name_of(case.parts.attestation_key) in case.machines, "the TPM's machine is not enrolled, or no longer")


def registers_published(case: Case) -> None:
    """The release says what the TPM's registers have to hold."""
    _require(any(name.startswith(BANK) for name in case.release.measurements), "the release names no registers")


def key_is_the_claimed(case: Case) -> None:
    """The key in the TPM is the one that requests are sealed to."""
    _require(point_bytes(case.parts.key) == case.bundle.claims.point, "the key in the TPM is another than the claimed")


def _of_tpm(verify: Callable[..., None]) -> Clause:
    @functools.wraps(verify)
    def clause(case: Case) -> None:
        verify(case.parts, case.expected)

    clause.__name__ = f"tpm_{verify.__name__.removeprefix('check_')}"
    return clause


TPM: tuple[Clause, ...] = (
    machine_enrolled,
    registers_published,
    # whether the attestation key is the enrolled one is `machine_enrolled`'s question
    *(_of_tpm(verify) for verify in tpm_verify.CHECKS if verify is not tpm_verify.check_attestation_key_name),
    key_is_the_claimed,
)

# --- a processor that encrypts its memory --------------------------------------------------------------------------


def tdx_chain(case: Case) -> None:
    """Intel's root signed the platform's certificate, and the platform the quoting enclave."""
    pck = tdx_verify.check_pck_chain(case.td, case.known.now, case.known.intel_root)
    tdx_verify.check_qe_report_signature(case.td, pck)


def tdx_measured(case: Case) -> None:
    """The trust domain holds what the release says: its first memory and all its registers."""
    for register, name in TDX_REGISTERS.items():
        tdx_verify.check_register(case.td, register, case.measured(name))


def tdx_bound(case: Case) -> None:
    """The quote was made for this TPM's quote and these claims."""
    tdx_verify.check_report_data(case.td, report_data_of(case.quote_digest, case.binding))


def _of_td(verify: Callable[..., None], about: str) -> Clause:
    def clause(case: Case) -> None:
        verify(case.td)

    clause.__name__, clause.__doc__ = f"tdx_{verify.__name__.removeprefix('check_')}", about
    return clause


TDX: tuple[Clause, ...] = (
    tdx_chain,
    _of_td(
        tdx_verify.check_quoting_enclave, "The quoting enclave is Intel's for trust domains, and not in debug mode."
    ),
    _of_td(tdx_verify.check_attestation_key, "The quote's key is the one that the quoting enclave vouches for."),
    _of_td(tdx_verify.check_quote_signature, "That key signed the quote."),
    _of_td(tdx_verify.check_tdx_module, "The TDX module is one that Intel signed for production."),
    _of_td(tdx_verify.check_not_under_debug, "The host cannot look into the trust domain."),
    _of_td(tdx_verify.check_not_migratable, "Nothing may move the trust domain to another machine."),
    _of_td(tdx_verify.check_no_service_td, "No other trust domain is bound to this one."),
    _of_td(tdx_verify.check_pages_protected, "The host cannot make it take exceptions by removing pages."),
    tdx_measured,
    tdx_bound,
)


def snp_chain(case: Case) -> None:
    """AMD's root signed the processor's key, the report says of which product, and its versions are the key's."""
    known = case.known
    product = snp_verify.check_key_chain(case.guest_key, case.certificate(1), known.now, known.amd_roots)
    snp_verify.check_product(case.guest, product)
    snp_verify.check_reported_tcb(case.guest, case.guest_key, product)


def snp_signature(case: Case) -> None:
    """The processor's key signed the report, and is of its chip."""
    snp_verify.check_signing_key(case.guest, case.guest_key)
    snp_verify.check_signature(case.guest, case.guest_key)
    snp_verify.check_chip(case.guest, case.guest_key)


def snp_privilege(case: Case) -> None:
    """The guest's highest privilege level asked for the report."""
    snp_verify.check_privilege_level(case.guest)


def snp_not_under_debug(case: Case) -> None:
    """The host cannot decrypt the guest's memory."""
    snp_verify.check_not_under_debug(case.guest)


def snp_not_migratable(case: Case) -> None:
    """Nothing may move the guest to another machine."""
    snp_verify.check_no_migration_agent(case.guest)


def snp_measured(case: Case) -> None:
    """The guest's memory at its launch is what the release says."""
    snp_verify.check_register(case.guest, "measurement", case.measured(SNP_REGISTER))


def snp_bound(case: Case) -> None:
    """The report was made for this TPM's quote and these claims."""
    snp_verify.check_report_data(case.guest, report_data_of(case.quote_digest, case.binding))


SNP: tuple[Clause, ...] = (
    snp_chain,
    snp_signature,
    snp_privilege,
    snp_not_under_debug,
    snp_not_migratable,
    snp_measured,
    snp_bound,
)


def processor_known(case: Case) -> None:
    """A processor that encrypts its memory attests: by TDX or SEV-SNP."""
    processor = case.bundle.processor
    _require(processor is not None and processor.kind in PROCESSORS, "there is no evidence by TDX or SEV-SNP")


PROCESSORS = {"tdx": TDX, "sev-snp": SNP}

# --- the judgement -------------------------------------------------------------------------------------------------


def clauses_of(case: Case) -> tuple[Clause, ...]:
    """What this bundle has to meet: what its release's profile asks for, and whatever evidence it shows besides.

    Raises:
        AttestationError: its release or its profile is none.
    """
    found, bundle, profile = list(EVERY), case.bundle, case.profile
    if profile.tpm or bundle.tpm is not None or bundle.processor is not None:
        found += TPM
    if profile.processor or bundle.processor is not None:
        found += [processor_known, *PROCESSORS.get(bundle.processor.kind if bundle.processor else "", ())]
    return tuple(found)


def judge(case: Case) -> None:
    """Runs every clause.

    Raises:
        AttestationError: the first that refuses; its message begins with the clause's name.
    """
    refused = next((each for each in findings(case) if each.refusal), None)
    if refused:
        raise AttestationError(f"{refused.clause}: {refused.refusal}")


def findings(case: Case) -> "list[Finding]":
    """What every clause says, for whoever wants to see all of them.

    Raises:
        AttestationError: the bundle's release or its profile is none, so that there is no list of clauses.
    """
    found = []
    for clause in clauses_of(case):
        about = (clause.__doc__ or "").partition("\n")[0]
        try:
            clause(case)
            found.append(Finding(clause.__name__, about))
        except (AttestationError, TransparencyError) as error:
            found.append(Finding(clause.__name__, about, str(error)))
    return found


def _checkpoint(case: Case) -> Signed:
    view = case.known.view
    return open_checkpoint(case.bundle.proof.checkpoint, view.origin, view.log, view.cosigners)


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise AttestationError(f"{reason}.")

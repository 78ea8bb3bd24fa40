"""The tamper matrix: for every clause of the policy something that it alone refuses, and its reason."""

import inspect

import pytest
from bundles import DAY, NOW, UNKNOWN_KIND, Recipe, known_of, made, proof_of, signed
from changes import (
    DATES,
    GOOD,
    LAPTOP,
    ON_SNP,
    ON_TDX,
    ON_TPM,
    OTHER,
    OTHER_RELEASE,
    attested,
    guest,
    replace,
    td_attributes,
    to,
)
from changes_for_all import OF_ALL
from changes_of_processors import OF_PROCESSORS
from changes_of_tpm import OF_TPM

from pomona.private.attestation import clauses
from pomona.private.attestation.bundle import decode_bundle
from pomona.private.attestation.case import open_case
from pomona.private.attestation.clauses import EVERY, PROCESSORS, SNP, TDX, TPM, findings, judge, processor_known
from pomona.private.attestation.profiles import PROFILES
from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm import verify as tpm_verify
from pomona.private.transparency.leaves import Machine, encode, hash_of

MATRIX = [*OF_ALL, *OF_TPM, *OF_PROCESSORS]
ALL = {clause.__name__: clause for clause in (*EVERY, *TPM, processor_known, *TDX, *SNP)}


def refusals(recipe, vendors):
    """What the clauses say that refuse, by their names."""
    found = findings(open_case(*made(recipe, vendors)))
    assert all(each.about for each in found)
    return {each.clause: each.refusal for each in found if each.refusal}


@pytest.mark.parametrize("recipe", GOOD.values(), ids=GOOD)
def test_a_good_bundle_meets_every_clause(vendors, recipe):
    content, known = made(recipe, vendors)
    case = open_case(content, known)
    found = findings(case)
    assert not [each for each in found if each.refusal]
    wanted = [*EVERY, *(TPM if recipe.tpm else ())]
    if recipe.processor:
        wanted += [processor_known, *PROCESSORS[recipe.processor]]
    assert [each.clause for each in found] == [clause.__name__ for clause in wanted]
    judge(case)


@pytest.mark.parametrize("row", MATRIX, ids=[row[0] for row in MATRIX])
def test_what_is_changed_is_refused_by_its_clause_and_no_other(vendors, row):
    _, recipe, clause, reason, others = (*row, set()) if len(row) == 4 else row
    found = refusals(recipe, vendors)
    assert set(found) == {clause} | others
    assert reason in found[clause]
    with pytest.raises(AttestationError) as refused:
        judge(open_case(*made(recipe, vendors)))
    first = next(iter(found))
    assert str(refused.value).startswith(f"{first}: ")


def test_every_clause_has_a_change_that_it_refuses():
    assert set(ALL) == {row[2] for row in MATRIX}, "a clause without a change, or a change for no clause"


def test_no_clause_is_left_out_of_the_lists():
    """Every function of the module that judges a case is in a list, every check of a TPM's evidence is a clause, and
    no two clauses have one name."""
    judging = {
        name
        for name, each in vars(clauses).items()
        if inspect.isfunction(each) and each.__module__ == clauses.__name__ and not name.startswith("_")
        if list(inspect.signature(each).parameters) == ["case"]
    }
    assert judging - set(ALL) == {"clauses_of", "judge", "findings"}
    checks = {f"tpm_{check.__name__.removeprefix('check_')}" for check in tpm_verify.CHECKS}
    assert checks - set(ALL) == {"tpm_attestation_key_name"}, "which `machine_enrolled` stands for"
    assert len(ALL) == len((*EVERY, *TPM, processor_known, *TDX, *SNP))
    assert set(PROCESSORS) == {"tdx", "sev-snp"} and PROCESSORS["tdx"] is TDX and PROCESSORS["sev-snp"] is SNP


# --- which clauses apply -------------------------------------------------------------------------------------------


def test_a_profile_that_asks_for_evidence_is_refused_without_it(vendors):
    without = refusals(Recipe("tpm"), vendors)
    assert set(without) == {clause.__name__ for clause in TPM} - {"registers_published"}
    assert all("no evidence of a TPM" in reason for reason in without.values())
    bare = refusals(Recipe("confidential"), vendors)
    assert set(bare) == set(without) | {"processor_known"}


@pytest.mark.parametrize("profile", ["laptop", "operator"])
def test_evidence_that_a_profile_does_not_ask_for_is_judged_all_the_same(vendors, profile):
    as_well = replace(ON_TPM, profile=profile)
    assert refusals(as_well, vendors) == {}
    broken = replace(as_well, parts={"quote": attested(digest=OTHER)})
    assert set(refusals(broken, vendors)) == {"tpm_quote_registers"}
    assert set(refusals(replace(as_well, machines=lambda leaves: []), vendors)) == {"machine_enrolled"}
    for good in (ON_TDX, ON_SNP):
        alone = replace(good, profile=profile)
        assert refusals(alone, vendors) == {}
        debugged = replace(alone, td=td_attributes(1 << 28 | 1).td, guest=guest(policy=1 << 17 | 1 << 19).guest)
        assert set(refusals(debugged, vendors)) <= {"tdx_not_under_debug", "snp_not_under_debug"}
        assert len(refusals(debugged, vendors)) == 1
    unknown = replace(ON_TPM, profile=profile, processor="sgx")
    assert set(refusals(unknown, vendors)) == {"processor_known"}


def test_a_processor_does_not_stand_for_the_tpm(vendors):
    """The node's key is the TPM's to hold: a processor's report without a TPM's evidence proves nothing of it."""
    for profile in PROFILES:
        found = refusals(replace(ON_TDX, profile=profile, tpm=False), vendors)
        assert {clause.__name__ for clause in TPM} - {"registers_published"} <= set(found)


def test_a_report_of_one_kind_under_the_name_of_the_other_is_refused(vendors):
    for good, other in ((ON_TDX, "sev-snp"), (ON_SNP, "tdx")):
        named = replace(
            good, bundle=lambda bundle, other=other: replace(bundle, processor=replace(bundle.processor, kind=other))
        )
        assert set(refusals(named, vendors)) == {clause.__name__ for clause in PROCESSORS[other]}


def test_there_is_no_list_of_clauses_for_a_profile_that_is_unknown(vendors):
    content, known = made(replace(LAPTOP, release=to(profile="bunker")), vendors)
    for look in (findings, judge):
        with pytest.raises(AttestationError, match="profile is none of laptop, operator"):
            look(open_case(content, known))


def test_only_a_release_is_a_release(vendors):
    machine = Machine(**DATES, key_name=f"000b{OTHER.hex()}", enrolled_by="somebody")
    for leaf, reason in (
        (encode(machine), "is not a release"),
        (UNKNOWN_KIND, "does not read"),
        (b"\xff", "does not read"),
        (b"", "does not read"),
    ):
        content, known = made(replace(LAPTOP, proof=to(leaf=leaf)), vendors)
        for look in (findings, judge):
            with pytest.raises(AttestationError, match=reason):
                look(open_case(content, known))


def test_entries_of_kinds_that_nobody_knows_say_nothing(vendors):
    content, known = made(LAPTOP, vendors)
    assert known.entries[0] == UNKNOWN_KIND and len(known.written) == len(known.entries) - 1
    more = known_of([*known.entries, b"\xff", b"", b"[]", UNKNOWN_KIND])
    assert not [each for each in findings(open_case(content, more)) if each.refusal]


def test_times_are_counted_to_the_second(vendors):
    """The last second that is allowed, beside the first in the matrix that is not."""
    for allowed in (
        replace(LAPTOP, claims=to(not_before=NOW, expires=NOW + DAY)),
        replace(LAPTOP, claims=to(not_before=NOW - DAY + 1, expires=NOW + 1)),
        replace(LAPTOP, checkpoint={"dated": NOW - DAY}),
        replace(LAPTOP, checkpoint={"dated": NOW + 300}),
        replace(LAPTOP, release=to(not_before=NOW, expires=NOW + 1)),
    ):
        assert refusals(allowed, vendors) == {}


def test_an_older_checkpoint_of_the_same_history_proves_too(vendors):
    """A proof is made once a day; the log has grown since."""
    fewer = replace(LAPTOP, history=lambda entries: entries[:3])
    content, known = made(fewer, vendors)
    assert b'"index":2' in content and len(known.entries) == 5
    judge(open_case(content, known))


def test_the_proof_of_another_release_is_of_no_use(vendors):
    """What a node that runs one release would have to show to pass for one that runs another."""
    content, known = made(LAPTOP, vendors)
    bundle = decode_bundle(content)
    entries = list(known.entries[:-1])
    other = proof_of(entries, encode(OTHER_RELEASE), signed(entries))
    swapped_proof = replace(LAPTOP, bundle=lambda found: replace(found, proof=other))
    assert set(refusals(swapped_proof, vendors)) == {"release_is_the_claimed"}
    claimed = replace(swapped_proof, claims=to(release=hash_of(OTHER_RELEASE)))
    assert refusals(claimed, vendors) == {}, "without hardware nobody knows what runs"
    assert bundle.proof.leaf != other.leaf

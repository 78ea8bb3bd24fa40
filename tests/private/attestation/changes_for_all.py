"""Rows of the tamper matrix: the log, the release, the validity, which are asked of every node.

Each row: what is changed; the recipe; which clause refuses it, and with what words; which others have to refuse it too,
where some have to.
"""

from bundles import DAY, NOW, STRANGER, release_of
from changes import LAPTOP, OTHER, OTHER_RELEASE, PROOF, replace, revoked, to

from pomona.private.transparency.leaves import encode, hash_of

OF_ALL = [
    ("another node in the directory", replace(LAPTOP, listing=to(identity=OTHER.hex())), "listed", "not in the dir"),
    (
        "the directory lists another release",
        replace(LAPTOP, listing=to(release=hash_of(OTHER_RELEASE).hex())),
        "listed",
        "with another release",
    ),
    (
        "the directory has expired",
        replace(LAPTOP, directory=to(not_before=NOW - 60, expires=NOW)),
        "listed",
        "no directory in the log is complete and valid",
    ),
    (
        "the directory's second part is missing",
        replace(LAPTOP, directory=to(parts=2)),
        "listed",
        "no directory in the log is complete and valid",
    ),
    (
        "keys of tomorrow",
        replace(LAPTOP, claims=to(not_before=NOW + 1, expires=NOW + DAY)),
        "begun",
        "keys are not good yet",
    ),
    (
        "an expired key",
        replace(LAPTOP, claims=to(not_before=NOW - DAY, expires=NOW)),
        "not_expired",
        "keys have expired",
    ),
    (
        "keys good for too long",
        replace(LAPTOP, claims=to(not_before=NOW - 1, expires=NOW + DAY)),
        "short_lived",
        "good for 86401 s",
    ),
    (
        "keys that expire before they begin",
        replace(LAPTOP, claims=to(not_before=NOW - 60, expires=NOW - 120)),
        "short_lived",
        "good for -60 s",
        {"not_expired"},
    ),
    (
        "the claims name another release of the log",
        replace(LAPTOP, claims=to(release=hash_of(OTHER_RELEASE))),
        "release_is_the_claimed",
        "name another release",
    ),
    (
        "a proof with a changed hash",
        replace(LAPTOP, proof=lambda proof: replace(proof, path=(OTHER, *proof.path[1:]))),
        "proof_leads_to_root",
        "does not lead from this entry to the root",
    ),
    (
        "a proof cut short",
        replace(LAPTOP, proof=lambda proof: replace(proof, path=proof.path[:-1])),
        "proof_leads_to_root",
        "does not lead",
    ),
    (
        "a proof's hashes in another order",
        replace(LAPTOP, proof=lambda proof: replace(proof, path=proof.path[::-1])),
        "proof_leads_to_root",
        "does not lead",
    ),
    (
        "a proof without hashes",
        replace(LAPTOP, proof=to(path=())),
        "proof_leads_to_root",
        "does not lead",
    ),
    ("the place of another entry", replace(LAPTOP, proof=to(index=1)), "proof_leads_to_root", "does not lead"),
    ("a place beyond the log", replace(LAPTOP, proof=to(index=1 << 70)), "proof_leads_to_root", "not in a tree of 4"),
    ("a place before the log", replace(LAPTOP, proof=to(index=-1)), "proof_leads_to_root", "not in a tree of 4"),
    (
        "a proof's hash that is none",
        replace(LAPTOP, proof=to(path=(b"short",))),
        "proof_leads_to_root",
        "something else than hashes",
    ),
    (
        "a release that is not in the log",
        replace(
            LAPTOP,
            claims=to(release=hash_of(release_of("laptop", "unpublished"))),
            proof=to(leaf=encode(release_of("laptop", "unpublished"))),
        ),
        "proof_leads_to_root",
        "does not lead",
        {"release_in_force"},
    ),
    (
        "a forked log",
        replace(LAPTOP, history=lambda entries: [b"another history", *entries[1:]]),
        "proof_is_of_this_log",
        "two histories: it is forked",
    ),
    (
        "a log with more than was shown",
        replace(LAPTOP, history=lambda entries: [*entries, b"one", b"two"]),
        "proof_is_of_this_log",
        "beyond what the log shows",
    ),
    (
        "a stale proof",
        replace(LAPTOP, checkpoint={"dated": NOW - DAY - 1}),
        "proof_is_fresh",
        "of 86401 s ago: it is stale",
    ),
    ("a proof of the future", replace(LAPTOP, checkpoint={"dated": NOW + 301}), "proof_is_fresh", "-301 s ago"),
    (
        "a proof that nobody dated",
        replace(LAPTOP, checkpoint={"dated": None}),
        "proof_is_fresh",
        "0 known cosigners dated the checkpoint",
    ),
    (
        "a checkpoint that another signed",
        replace(LAPTOP, checkpoint={"signer": STRANGER}),
        "proof_is_fresh",
        "no known key signed the note",
        PROOF - {"proof_is_fresh"},
    ),
    (
        "a missing proof",
        replace(LAPTOP, proof=to(path=(), checkpoint=b"")),
        "proof_leads_to_root",
        "a note",
        PROOF - {"proof_leads_to_root"},
    ),
    (
        "an expired release",
        replace(LAPTOP, release=to(expires=NOW)),
        "release_in_force",
        "has expired, or was revoked",
    ),
    (
        "a release of tomorrow",
        replace(LAPTOP, release=to(not_before=NOW + 1)),
        "release_in_force",
        "has expired, or was revoked",
    ),
    ("a revoked release", replace(LAPTOP, later=revoked(None)), "release_in_force", "was revoked"),
    (
        "a profile that is not accepted",
        replace(LAPTOP, known=to(profiles=frozenset({"tpm"}))),
        "profile_accepted",
        "the profile laptop is not accepted",
    ),
    (
        "a model that is not asked for",
        replace(LAPTOP, known=to(models=frozenset({OTHER.hex()}))),
        "model_accepted",
        "serves another model",
    ),
]

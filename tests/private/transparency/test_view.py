"""Views: forward, never back, never aside, never into the past; and what shows a fork to others."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.transparency import checkpoint as cp
from pomona.private.transparency import merkle, note, view
from pomona.private.transparency.checkpoint import Checkpoint
from pomona.private.transparency.errors import Absent, Forked, TransparencyError
from pomona.private.transparency.note import COSIGNATURE, encode_vkey, verifier_of

ORIGIN, DAY = "example.org/log", 24 * 3600
NOW = 1_000_000
ENTRIES = tuple(b"entry %d" % number for number in range(600))


@pytest.fixture(scope="session")
def start(signer):
    """A view of the log that has seen nothing, and believes the log's own times."""
    return view.new_view(ORIGIN, encode_vkey(verifier_of(signer)))


@pytest.fixture(scope="session")
def served(signer, files_of, defined):
    """`served(entries, time)`: a `fetch` of a log of these entries, dated by itself and by `others`."""

    def serve(entries, time=NOW, others=(), key=signer, origin=ORIGIN, size=None):
        entries = tuple(entries)
        tree = Checkpoint(origin, len(entries), defined.root(entries))
        made = cp.cosign(cp.sign_checkpoint(tree, key), key, time)
        for cosigner, said in others:
            made = cp.cosign(made, cosigner, said)
        files = files_of(entries) | {"checkpoint": note.encode_note(made)}

        def fetch(path):
            if path not in files:
                raise Absent(path)
            return files[path]

        return fetch

    return serve


def refused(call, *arguments, match=None, **named):
    with pytest.raises(TransparencyError, match=match) as caught:
        call(*arguments, **named)
    assert not isinstance(caught.value, Forked)


def forked(call, *arguments, match=None):
    with pytest.raises(Forked, match=match) as caught:
        call(*arguments)
    return caught.value


def test_a_view_goes_forward_with_its_log(start, served):
    seen, held = start, []
    assert (seen.checkpoint.size, seen.time, seen.note) == (0, 0, b"")
    for size in [0, 0, 1, 2, 255, 256, 256, 300, 512, 600]:
        fetch = served(ENTRIES[:size], NOW + size)
        seen = view.advance(seen, fetch, NOW + size)
        held.append(seen)
        assert (seen.checkpoint.size, seen.time, seen.note) == (size, NOW + size, fetch("checkpoint"))
        assert list(view.entries(seen, fetch)) == list(enumerate(ENTRIES[:size]))
    assert list(view.entries(seen, fetch, 590)) == list(enumerate(ENTRIES))[590:]
    for old in held:
        assert view.advance(old, fetch, NOW + 600).checkpoint == seen.checkpoint


def test_entries_are_proved_and_checked(start, served):
    fetch = served(ENTRIES)
    seen = view.advance(start, fetch, NOW)
    for index in (0, 255, 256, 599):
        proof = view.prove(seen, fetch, index)
        view.check(ENTRIES[index], index, proof, seen.checkpoint)
        for wrong in [(b"other", index), (ENTRIES[index], index ^ 1), (ENTRIES[index], 600), (ENTRIES[index], -1)]:
            refused(view.check, *wrong, proof, seen.checkpoint)
        refused(view.check, ENTRIES[index], index, proof[:-1], seen.checkpoint)
    refused(view.prove, seen, fetch, 600)


@pytest.mark.parametrize(
    ("old", "new"), [(1, 2), (2, 3), (4, 7), (5, 8), (256, 257), (255, 600), (512, 600), (300, 301)]
)
def test_a_fork_is_refused_and_shown(start, served, old, new):
    """The larger tree begins with other entries than the one that was seen."""
    seen = view.advance(start, served(ENTRIES[:old]), NOW)
    other = (*ENTRIES[: old - 1], b"changed", *ENTRIES[old:new])
    error = forked(view.advance, seen, served(other), NOW, match="does not begin with")
    assert error.held == seen.note and error.offered == served(other)("checkpoint")
    assert merkle.roots_of_path(old, new, error.path)[1] == merkle.root_of_hashes([merkle.leaf_hash(e) for e in other])
    # Somebody else, who trusts neither of the two, sees it from the evidence alone, in any order of the notes.
    notes = [cp.open_checkpoint(data, ORIGIN, start.log) for data in (error.held, error.offered)]
    for pair in [notes, notes[::-1]]:
        assert view.compare(*pair, error.path).verdict == "forked"
        assert view.compare(*pair).verdict == "needs a proof"
    honest = view.advance(start, served(ENTRIES[:new]), NOW).signed
    refused(view.compare, notes[0], honest, error.path, match="larger tree's root")


def test_a_fork_of_one_size_is_refused_and_shown(start, served):
    seen = view.advance(start, served(ENTRIES[:5]), NOW)
    other = served([*ENTRIES[:4], b"changed"], NOW + 5)
    error = forked(view.advance, seen, other, NOW + 5, match="two trees of 5")
    assert (error.held, error.offered, error.path) == (seen.note, other("checkpoint"), ())
    notes = [cp.open_checkpoint(data, ORIGIN, start.log) for data in (error.held, error.offered)]
    comparison = view.compare(*notes)
    assert comparison.verdict == "forked" and comparison.error.offered == error.offered


@pytest.mark.parametrize("size", [0, 1, 4, 299])
def test_a_smaller_tree_is_refused_and_shown(start, served, size):
    seen = view.advance(start, served(ENTRIES[:300]), NOW)
    old = served(ENTRIES[:size])
    error = forked(view.advance, seen, old, NOW, match=f"offers {size} entries after 300")
    assert (error.held, error.offered) == (seen.note, old("checkpoint"))


def test_two_clients_views_are_compared(start, served):
    fetch = served(ENTRIES)
    large = view.advance(start, fetch, NOW)
    tree = view.VerifiedTree(fetch, 600, large.checkpoint.root)
    for size in (1, 256, 300):
        small = view.advance(start, served(ENTRIES[:size]), NOW)
        path = merkle.consistency_path(size, 600, tree.node)
        assert view.compare(small.signed, large.signed).verdict == "needs a proof"
        assert view.compare(small.signed, large.signed, path).verdict == "consistent"
        assert view.compare(large.signed, small.signed, path).verdict == "consistent"
        for wrong in [path[:-1], [*path, path[-1]], path[1:] or [b""], [bytes(32), *path[1:]]]:
            refused(view.compare, small.signed, large.signed, wrong)
    same = view.advance(start, served(ENTRIES, NOW + 9), NOW)
    assert view.compare(large.signed, same.signed) == view.Comparison("consistent")
    empty = view.advance(start, served([]), NOW)
    assert view.compare(empty.signed, large.signed).verdict == "consistent"
    other = dataclasses.replace(large.signed, checkpoint=Checkpoint("example.org/other", 600, large.checkpoint.root))
    refused(view.compare, large.signed, other, match="different logs")


def test_a_checkpoint_is_fresh_for_a_day_and_not_from_the_future(start, served):
    fetch = served(ENTRIES[:5])
    for now in [NOW - 300, NOW, NOW + DAY]:
        assert view.advance(start, fetch, now).time == NOW
    refused(view.advance, start, fetch, NOW + DAY + 1, match="seconds ago")
    refused(view.advance, start, fetch, NOW - 301, match="after now")
    assert view.advance(start, fetch, NOW + 3 * DAY, max_age_seconds=3 * DAY)
    refused(view.advance, start, fetch, NOW + 61, max_age_seconds=60, match="it may be 60")
    seen = view.advance(start, fetch, NOW)
    view.check_fresh(seen, NOW + DAY)
    refused(view.check_fresh, seen, NOW + DAY + 1)
    refused(view.check_fresh, start, NOW, match="no checkpoint")


def test_of_two_times_of_one_tree_the_later_is_kept(start, served):
    seen = view.advance(start, served(ENTRIES[:5], NOW), NOW)
    later = view.advance(seen, served(ENTRIES[:5], NOW + 500), NOW + 500)
    assert later.time == NOW + 500
    # An older copy neither takes the time back nor makes a fresh view stale.
    assert view.advance(later, served(ENTRIES[:5], NOW), NOW + DAY + 400) == later
    refused(view.advance, later, served(ENTRIES[:5], NOW), NOW + DAY + 501)


def test_a_quorum_of_witnesses_dates_the_checkpoint(served, signer, witness):
    second = note.Signer("example.org/second", bytes(range(2, 34)))
    keys = [encode_vkey(verifier_of(each, COSIGNATURE)) for each in (witness, second)]
    log = encode_vkey(verifier_of(signer))
    one, two = (view.new_view(ORIGIN, log, keys, quorum) for quorum in (1, 2))
    both = served(ENTRIES[:5], NOW, [(witness, NOW + 10), (second, NOW + 20)])
    assert (view.advance(one, both, NOW).time, view.advance(two, both, NOW).time) == (NOW + 20, NOW + 10)
    single = served(ENTRIES[:5], NOW, [(second, NOW + 20)])
    assert view.advance(one, single, NOW).time == NOW + 20
    refused(view.advance, two, single, NOW, match="2 have to")
    # The log's own time does not count where witnesses are asked for.
    refused(view.advance, one, served(ENTRIES[:5]), NOW, match="1 have to")
    stale = served(ENTRIES[:5], NOW, [(witness, NOW - DAY - 1), (second, NOW)])
    assert view.advance(one, stale, NOW)
    refused(view.advance, two, stale, NOW, match="seconds ago")


def test_views_that_make_no_sense_are_refused(signer, witness):
    log, timed = encode_vkey(verifier_of(signer)), encode_vkey(verifier_of(witness, COSIGNATURE))
    assert view.new_view(ORIGIN, log, [timed]).quorum == 1
    for arguments in [
        (timed,),
        (log, [log]),
        (log, [timed], 0),
        (log, [timed], 2),
        (log, [], 2),
        (log, [timed, timed]),
        ("none",),
        (log, ["none"]),
    ]:
        refused(view.new_view, ORIGIN, *arguments)


def test_another_log_and_another_key_are_refused(start, served, witness):
    refused(view.advance, start, served(ENTRIES[:5], origin="example.org/other"), NOW, match="another log")
    refused(view.advance, start, served(ENTRIES[:5], key=witness), NOW, match="no known key")


def test_a_log_that_hides_its_tiles_is_refused(start, served):
    seen = view.advance(start, served(ENTRIES[:5]), NOW)
    good = served(ENTRIES)

    def hidden(path):
        if path == "checkpoint":
            return good(path)
        raise Absent(path)

    for known in (start, seen):
        refused(view.advance, known, hidden, NOW)
        refused(view.advance, known, lambda path: good(path) if path == "checkpoint" else bytes(32), NOW)


def test_a_view_is_kept_in_a_file(tmp_path, start, served, signer, witness):
    path = tmp_path / "below" / "view.json"
    keys = [encode_vkey(verifier_of(each, COSIGNATURE)) for each in (signer, witness)]
    for kept in [
        start,
        view.advance(start, served(ENTRIES[:5]), NOW),
        view.new_view(ORIGIN, encode_vkey(start.log), keys, 2),
    ]:
        view.save_view(kept, path)
        assert view.load_view(path) == kept
    assert [each.name for each in path.parent.iterdir()] == ["view.json"]


def test_a_damaged_file_is_refused(tmp_path, start, served):
    path = tmp_path / "view.json"
    view.save_view(view.advance(start, served(ENTRIES[:5]), NOW), path)
    whole = path.read_text()
    stored = json.loads(whole)
    for wrong in [
        "",
        "{}",
        "[" * 100_000,
        whole[:-5],
        json.dumps(stored | {"more": 1}),
        json.dumps(stored | {"quorum": "1"}),
        json.dumps(stored | {"quorum": 2}),
        json.dumps(stored | {"origin": "example.org/other"}),
        json.dumps(stored | {"note": stored["note"].replace("\n5\n", "\n6\n")}),
        json.dumps(stored | {"note": "\ud800"}),
        json.dumps(stored | {"vkey": stored["cosigners"][0]}),
        json.dumps(stored | {"cosigners": ["none"]}),
    ]:
        path.write_text(wrong)
        refused(view.load_view, path)
    path.write_bytes(b"\xff" + whole.encode())
    refused(view.load_view, path)
    with pytest.raises(OSError):
        view.load_view(tmp_path / "none")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_arbitrary_answers_are_refused_in_one_way(start, served, data):
    seen, good = view.advance(start, served(ENTRIES[:5]), NOW), served(ENTRIES[:300])
    wrong = data.draw(st.sampled_from(["checkpoint", "tile/0/001.p/44", "tile/1/000.p/1", "tile/0/000"]))
    whole = bytearray(good(wrong))
    at = data.draw(st.integers(0, len(whole)))
    whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        found = view.advance(seen, lambda path: bytes(whole) if path == wrong else good(path), NOW)
    except TransparencyError as error:
        assert not isinstance(error, Forked)
        return
    assert found.checkpoint == view.advance(seen, good, NOW).checkpoint

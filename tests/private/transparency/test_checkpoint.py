"""Checkpoints and cosignatures: published ones, made ones, and what is wrong with others."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.transparency import checkpoint as cp
from pomona.private.transparency import note
from pomona.private.transparency.checkpoint import Checkpoint
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.merkle import EMPTY_ROOT
from pomona.private.transparency.note import COSIGNATURE, Note, Signature, verifier_of

ORIGIN = "example.org/log"
ROOT = hashlib.sha256(b"root").digest()
TREE = Checkpoint(ORIGIN, 7, ROOT)


def refused(call, *arguments, match=None):
    with pytest.raises(TransparencyError, match=match):
        call(*arguments)


@pytest.fixture(scope="session")
def published(vectors):
    """A public log's checkpoint, its key and its witnesses."""
    known = vectors("notes")["witnessed"]
    keys = [note.decode_vkey(each) for each in known["cosigners"]]
    return known["note"].encode(), note.decode_vkey(known["vkey"]), keys, known["time"]


def test_a_published_checkpoint_with_four_witnesses(published):
    data, log, witnesses, time = published
    signed = cp.open_checkpoint(data, log.name, log, witnesses)
    assert signed.checkpoint.size == 1432088532 and signed.times == (time,) * 4
    assert cp.verified_time(signed, 4) == time
    refused(cp.verified_time, signed, 5, match="5 have to")
    assert cp.open_checkpoint(data, log.name, log, witnesses[1:2]).times == (time,)
    assert cp.open_checkpoint(data, log.name, log).times == ()
    assert note.encode_note(signed.note) == data


def test_a_published_checkpoint_with_a_changed_size_or_time_is_refused(published):
    data, log, witnesses, time = published
    refused(cp.open_checkpoint, data.replace(b"1432088532", b"1432088533"), log.name, log, witnesses, match="wrong")
    parsed = note.parse_note(data)
    for at, signature in enumerate(parsed.signatures[2:], 2):
        later = Signature(signature.name, signature.key_id, (time + 1).to_bytes(8, "big") + signature.data[8:])
        changed = Note(parsed.text, (*parsed.signatures[:at], later, *parsed.signatures[at + 1 :]))
        refused(cp.cosigned_times, changed, witnesses, match="wrong")
        others = [witness for witness in witnesses if witness.name != signature.name]
        assert len(cp.cosigned_times(changed, others)) == 3


def test_what_is_signed_of_a_cosignature(signer, witness):
    """The message as C2SP tlog-cosignature writes it out, checked without this room's code."""
    signed = cp.cosign(cp.sign_checkpoint(TREE, signer), witness, 1679315147.9)
    line = signed.signatures[-1]
    assert line.data[:8] == (1679315147).to_bytes(8, "big") and len(line.data) == 72
    key = note.Ed25519PublicKey.from_public_bytes(verifier_of(witness).public_key)
    key.verify(line.data[8:], b"cosignature/v1\ntime 1679315147\n" + signed.text.encode())
    wanted = hashlib.sha256(witness.name.encode() + b"\n\x04" + key.public_bytes_raw()).digest()[:4]
    assert line.key_id == wanted


def test_the_log_itself_may_say_that_it_is_the_newest(signer, witness):
    own, other = verifier_of(signer, COSIGNATURE), verifier_of(witness, COSIGNATURE)
    made = cp.cosign(cp.cosign(cp.sign_checkpoint(TREE, signer), signer, 100), witness, 130)
    data = note.encode_note(made)
    signed = cp.open_checkpoint(data, ORIGIN, verifier_of(signer), [own, other])
    assert signed.checkpoint == TREE and signed.times == (130, 100)
    assert [cp.verified_time(signed, quorum) for quorum in (1, 2)] == [130, 100]
    again = cp.cosign(made, signer, 160)
    assert cp.cosigned_times(again, [own, other]) == {own: 160, other: 130}
    assert len(again.signatures) == 3


def test_of_one_cosigner_the_last_time_counts_and_each_has_to_be_right(signer, witness):
    key = verifier_of(witness, COSIGNATURE)
    plain = cp.sign_checkpoint(TREE, signer)
    early, late = (cp.cosign(plain, witness, now).signatures[-1] for now in (10, 20))
    for order in [(late, early), (early, late)]:
        assert cp.cosigned_times(Note(plain.text, order), [key]) == {key: 20}
    wrong = Signature(early.name, early.key_id, early.data[:-1] + b"\x00")
    refused(cp.cosigned_times, Note(plain.text, (late, wrong)), [key], match="wrong")
    for data in [early.data[:-1], early.data + b"\x00", b"\x00", b"\xff" * 8 + early.data[8:]]:
        bad = Note(plain.text, (Signature(early.name, early.key_id, data),))
        refused(cp.cosigned_times, bad, [key], match="not a time|wrong")
    never = (1 << 63).to_bytes(8, "big") + note.sign_bytes(
        witness, b"cosignature/v1\ntime 9223372036854775808\n" + plain.text.encode()
    )
    refused(
        cp.cosigned_times, Note(plain.text, (Signature(early.name, early.key_id, never),)), [key], match="not a time"
    )
    refused(cp.cosigned_times, plain, [key, key], match="same key")
    refused(cp.cosigned_times, plain, [note.Verifier("other", COSIGNATURE, key.public_key), key], match="same key")
    refused(cp.cosigned_times, plain, [verifier_of(witness)], match="signature type 4")


def test_a_cosignature_covers_extension_lines(signer, witness):
    key = verifier_of(witness, COSIGNATURE)
    made = cp.cosign(cp.sign_checkpoint(Checkpoint(ORIGIN, 7, ROOT, ("more", "and more")), signer), witness, 5)
    assert cp.cosigned_times(made, [key]) == {key: 5}
    refused(cp.cosigned_times, Note(made.text.replace("and", "not"), made.signatures), [key], match="wrong")


def test_another_log_s_checkpoint_is_refused(signer, witness):
    data = note.encode_note(cp.sign_checkpoint(TREE, signer))
    assert cp.open_checkpoint(data, ORIGIN, verifier_of(signer)).checkpoint == TREE
    refused(cp.open_checkpoint, data, "example.org/other", verifier_of(signer), match="another log")
    refused(cp.open_checkpoint, data, ORIGIN, verifier_of(witness), match="no known key")
    # A cosignature of the log does not stand for its signature.
    cosigned = cp.cosign(Note(cp.format_checkpoint(TREE)), signer, 5)
    refused(cp.open_checkpoint, note.encode_note(cosigned), ORIGIN, verifier_of(signer), match="no known key")


def test_times_that_are_none(signer):
    plain = cp.sign_checkpoint(TREE, signer)
    for now in [-1, 2.0**64, float("nan"), float("inf")]:
        refused(cp.cosign, plain, signer, now, match="time")
    refused(cp.cosign, Note("no checkpoint\n"), signer, 1)


@pytest.mark.parametrize("extensions", [(), ("one",), ("one", "two: é")])
def test_a_checkpoint_s_text(extensions):
    tree = Checkpoint(ORIGIN, 20852163, ROOT, extensions)
    words = cp.format_checkpoint(tree)
    assert cp.parse_checkpoint(words) == tree
    assert words.split("\n")[:2] == [ORIGIN, "20852163"] and words.endswith("\n")


def test_malformed_checkpoints_are_refused():
    good = cp.format_checkpoint(TREE)
    origin, size, root, _ = good.split("\n")
    for bad in [
        "",
        "\n",
        f"{origin}\n{size}\n",
        good[:-1],
        good + "\n",
        f"\n{size}\n{root}\n",
        f"{origin}\n\n{root}\n",
        f"{origin}\n07\n{root}\n",
        f"{origin}\n-7\n{root}\n",
        f"{origin}\n{1 << 63}\n{root}\n",
        f"{origin}\n{size}\n{root[:-1]}\n",
        f"{origin}\n{size}\n{root[4:]}\n",
        f"{origin}\n{size}\n{root}\n\nextension\n",
        f"{origin}\n0\n{root}\n",
    ]:
        refused(cp.parse_checkpoint, bad)
    for bad in [
        Checkpoint("", 7, ROOT),
        Checkpoint("a\nb", 7, ROOT),
        Checkpoint(ORIGIN, -1, ROOT),
        Checkpoint(ORIGIN, 7, ROOT[1:]),
        Checkpoint(ORIGIN, 0, ROOT),
        Checkpoint(ORIGIN, 7, ROOT, ("",)),
        Checkpoint(ORIGIN, 7, ROOT, ("a\nb",)),
    ]:
        refused(cp.format_checkpoint, bad)
    assert cp.parse_checkpoint(cp.format_checkpoint(Checkpoint(ORIGIN, 0, EMPTY_ROOT))).size == 0


@pytest.mark.parametrize("origin", ["tab\there", "\ud800"])
def test_an_origin_that_no_note_can_have_is_refused(signer, origin):
    refused(cp.sign_checkpoint, Checkpoint(origin, 7, ROOT), signer)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.lists(st.text(alphabet="0123456789=Aa/+é", max_size=50)).map("\n".join)))
def test_arbitrary_texts_are_a_checkpoint_or_refused(words):
    try:
        tree = cp.parse_checkpoint(words)
    except TransparencyError:
        return
    assert cp.format_checkpoint(tree) == words


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_published_checkpoint_with_changed_bytes_is_refused_or_ignored(published, data):
    """Lines of unknown keys do not count, so a change in one is allowed, and loses that cosigner."""
    whole, log, witnesses, time = published
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        signed = cp.open_checkpoint(bytes(changed), log.name, log, witnesses)
    except TransparencyError:
        return
    assert signed.checkpoint == cp.open_checkpoint(whole, log.name, log).checkpoint
    assert set(signed.times) <= {time}

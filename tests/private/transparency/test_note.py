"""Signed notes against published ones, and every way to malform one."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.transparency import note, text
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.note import Note, Signature, Verifier


def refused(call, *arguments, match=None):
    with pytest.raises(TransparencyError, match=match):
        call(*arguments)


def test_c2sp_s_example_verifies(vectors):
    known = vectors("notes")["c2sp"]
    verifier = note.decode_vkey(known["vkey"])
    assert note.encode_vkey(verifier) == known["vkey"]
    parsed = note.parse_note(known["note"].encode())
    assert parsed.text == "This is an example message.\n"
    assert note.verify_note(parsed, [verifier]) == [verifier]
    changed = note.parse_note(known["note"].replace("an", "no").encode())
    refused(note.verify_note, changed, [verifier], match="wrong")


def test_go_s_example_is_made_and_verified_byte_for_byte(vectors):
    known = vectors("notes")["go"]
    signer = note.decode_skey(known["skey"])
    assert note.encode_skey(signer) == known["skey"]
    assert note.encode_vkey(note.verifier_of(signer)) == known["vkey"]
    made = note.sign_note(Note(known["text"]), signer)
    assert note.encode_note(made) == (known["text"] + "\n" + known["lines"][0]).encode()
    assert known["skey"][-20:] not in repr(signer) and str(signer.seed) not in repr(signer)


def test_of_two_signatures_unknown_ones_are_ignored(vectors):
    known = vectors("notes")["go"]
    peter, enoch = note.decode_vkey(known["vkey"]), note.decode_vkey(known["other_vkey"])
    parsed = note.parse_note((known["text"] + "\n" + "".join(known["lines"])).encode())
    assert note.verify_note(parsed, [peter]) == [peter]
    assert note.verify_note(parsed, [enoch]) == [enoch]
    assert note.verify_note(parsed, [enoch, peter]) == [peter, enoch]
    refused(note.verify_note, parsed, [], match="no known key")
    # A name or an id alone makes no key known (C2SP signed-note, "Signatures").
    stranger = Verifier(peter.name, note.ED25519, enoch.public_key)
    refused(note.verify_note, parsed, [stranger], match="no known key")
    assert note.verify_note(parsed, [stranger, peter]) == [peter]


def test_a_wrong_signature_of_a_known_key_spoils_the_note(vectors):
    known = vectors("notes")["go"]
    peter, enoch = note.decode_vkey(known["vkey"]), note.decode_vkey(known["other_vkey"])
    good = note.parse_note((known["text"] + "\n" + "".join(known["lines"])).encode())
    first, second = good.signatures
    for data in [first.data[:-1] + b"\x00", first.data[:-1], first.data + b"\x00", b"\x00"]:
        bad = Note(good.text, (second, Signature(first.name, first.key_id, data)))
        refused(note.verify_note, bad, [enoch, peter], match="wrong")
        assert note.verify_note(bad, [enoch]) == [enoch]
    # Also where a right one stands beside it.
    refused(note.verify_note, Note(good.text, (first, Signature(first.name, first.key_id, b"1"))), [peter])


def test_a_new_signature_of_a_key_replaces_its_old_one(signer, witness):
    once = note.sign_note(Note("text\n"), signer)
    twice = note.sign_note(note.sign_note(once, witness), signer)
    assert [each.name for each in twice.signatures] == [witness.name, signer.name]
    again = note.parse_note(note.encode_note(twice))
    assert again == twice
    assert note.verify_note(again, [note.verifier_of(signer), note.verifier_of(witness)])


def test_generated_keys_differ_and_sign(signer):
    one, other = note.generate_signer("example.org/new"), note.generate_signer("example.org/new")
    assert one != other
    assert note.decode_skey(note.encode_skey(one)) == one
    signed = note.sign_note(Note("\n"), one)
    assert note.verify_note(note.parse_note(note.encode_note(signed)), [note.verifier_of(one)])
    for name in ["", "a b", "a+b", "a\nb", "a\u2003b", "a\x00", "\ud800"]:
        refused(note.generate_signer, name)


def test_the_two_types_of_one_key_have_two_ids(signer):
    plain, timed = note.verifier_of(signer), note.verifier_of(signer, note.COSIGNATURE)
    assert plain.public_key == timed.public_key and note.key_id(plain) != note.key_id(timed)
    assert note.decode_vkey(note.encode_vkey(timed)) == timed
    signed = note.sign_note(Note("text\n"), signer)
    refused(note.verify_note, signed, [timed], match="signature type 1")
    refused(note.verify_note, signed, [plain, plain], match="same name")


def test_a_note_is_never_what_a_cosigner_signs(signer):
    refused(note.sign_note, Note("cosignature/v1\ntime 1\nexample.org/log\n"), signer, match="does not begin")


def test_malformed_keys_are_refused(vectors):
    known = vectors("notes")["go"]
    for whole, decode in [(known["vkey"], note.decode_vkey), (known["skey"], note.decode_skey)]:
        for begin in range(len(whole)):
            for end in range(begin, len(whole) + 1):
                if end - begin < len(whole):
                    refused(decode, whole[begin:end])
        for at, letter in enumerate(whole):
            refused(decode, whole[:at] + chr(ord(letter) + 1) + whole[at + 1 :])
    for bad in known["bad_vkeys"]:
        refused(note.decode_vkey, bad)
    refused(note.decode_vkey, known["vkey"].replace("c74f20a3", "C74F20A3"), match="lowercase")
    refused(note.decode_skey, known["skey"].replace("c74f20a3", "c74f20a4"), match="not the hash")
    refused(note.decode_vkey, "\ud800" + known["vkey"])


def test_malformed_notes_are_refused(vectors):
    known = vectors("notes")["go"]
    words, line = known["text"], known["lines"][0]
    head, signature = line[:-1].rsplit(" ", 1)
    good = words + "\n" + line
    assert note.parse_note(good.encode()).signatures
    assert note.parse_note((words + "\n" + line * 100).encode()).signatures
    for bad in [
        "",
        "\n",
        words,
        words + "\n",
        good[:-1],
        good + "\n",
        good + "More.\n",
        words + line,
        "\x01" + good,
        good.replace("you", "\t"),
        good.replace("\n", "\r\n"),
        words + "\n" + line.replace("—", "-"),
        words + "\n" + line.replace("— ", "—"),
        words + "\n" + line.replace("PeterNeumann", "Peter Neumann"),
        words + "\n" + line.replace("PeterNeumann", "Peter+Neumann"),
        words + "\n" + line.replace("PeterNeumann", "Peter\u00a0Neumann"),
        words + "\n" + line.replace("PeterNeumann", ""),
        words + "\n" + f"{head}\n",
        words + "\n" + f"{head} \n",
        words + "\n" + f"{head} {signature[:-1]}\n",
        words + "\n" + f"{head} {signature}=\n",
        words + "\n" + f"{head} {signature[:-2]}N=\n",  # spare bits
        words + "\n" + f"{head} AAAAAA==\n",  # an id and nothing else
        words + "\n" + f"{head} é\n",
        words + "\n" + line * 101,
        "x" * (1 << 20) + good,
    ]:
        refused(note.parse_note, bad.encode())
    refused(note.parse_note, b"\xff" + good.encode(), match="UTF-8")


def test_what_cannot_be_written_is_refused(signer):
    signature = Signature("name", b"1234", b"data")
    assert note.encode_note(Note("text\n", (signature,)))
    for bad in [
        Note("text", (signature,)),
        Note("text\n"),
        Note("te\x00xt\n", (signature,)),
        Note("\ud800\n", (signature,)),
        Note("text\n", (Signature("na me", b"1234", b"data"),)),
        Note("text\n", (Signature("\ud800", b"1234", b"data"),)),
        Note("text\n", (Signature("name", b"123", b"data"),)),
        Note("text\n", (Signature("name", b"1234", b""),)),
        Note("text\n", (signature,) * 101),
    ]:
        refused(note.encode_note, bad)
    for words in ["text", "te\x00xt\n", "\ud800\n"]:
        refused(note.sign_note, Note(words), signer)


def test_a_text_may_have_empty_lines(signer):
    for words in ["\n", "\n\n", "a\n\n", "\na\n\nb\n\n\n"]:
        signed = note.sign_note(Note(words), signer)
        assert note.parse_note(note.encode_note(signed)) == signed


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(), st.text(alphabet="—\n a+=A\x00é").map(str.encode)))
def test_arbitrary_bytes_are_a_note_or_refused(data):
    try:
        parsed = note.parse_note(data)
    except TransparencyError:
        return
    assert note.encode_note(parsed) == data


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_published_note_with_changed_bytes_is_refused_or_not_signed(vectors, data):
    known = vectors("notes")["c2sp"]
    whole, verifier = bytearray(known["note"].encode()), note.decode_vkey(known["vkey"])
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    if whole == known["note"].encode():
        return
    with pytest.raises(TransparencyError):
        note.verify_note(note.parse_note(bytes(whole)), [verifier])


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="PRIVATEKEY+abcdef0189=/é")))
def test_arbitrary_texts_are_no_keys(words):
    for decode in (note.decode_vkey, note.decode_skey):
        refused(decode, words)
        refused(decode, "PRIVATE+KEY+" + words)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.text(), st.text(alphabet="0123456789"), st.binary().map(lambda data: base64.b64encode(data).decode()))
)
def test_texts_have_one_form(words):
    for decode, encode in [
        (text.decode_base64, text.encode_base64),
        (text.decode_decimal, str),
        (lambda words, what: text.decode_hex(words, what, (1, 2, 5)), bytes.hex),
    ]:
        try:
            value = decode(words, "it")
        except TransparencyError:
            continue
        assert encode(value) == words


def test_numbers_and_digits_that_are_refused():
    assert text.decode_decimal(str((1 << 63) - 1), "it") == (1 << 63) - 1
    for words in ["", "00", "01", "-1", "+1", " 1", "1 ", "1\n", "1_0", "٣", "1e3", str(1 << 63), "9" * 5000]:
        refused(text.decode_decimal, words, "it")
    for words in ["0", "00" * 31, "AA" * 32, "gg" * 32, "٣" * 64]:
        refused(text.decode_hex, words, "it")

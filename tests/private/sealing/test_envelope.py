"""The envelope: each of its nodes opens it, nobody else does, and the answer is of the node that did."""

import dataclasses
import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.sealing import kem, varint
from pomona.private.sealing.answer import AnswerKey, AnswerOpener
from pomona.private.sealing.envelope import (
    NodeKey,
    node_identities,
    open_request,
    replay_digest,
    seal_request,
)
from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.mlkem import MlKemKey

PREAMBLE_BYTES, ENTRY_BYTES = 10, 1233


@pytest.mark.parametrize("count", [1, 2, 8])
def test_each_node_opens_it_and_its_answer_opens(nodes, count):
    keys, recipients = nodes
    data, answer_keys = seal_request(recipients[:count], b"what is asked")
    assert len(data) == PREAMBLE_BYTES + count * ENTRY_BYTES + 2 + 13 + 16
    assert node_identities(data) == tuple(key.identity for key in keys[:count])
    for key in keys[:count]:
        plaintext, sealer = open_request(key, data)
        assert plaintext == b"what is asked"
        opener = AnswerOpener(answer_keys)
        assert opener.feed(sealer.head()) == [] and opener.identity == key.identity
        assert opener.feed(sealer.chunk(b"one")) == [b"one"] and not opener.finished
        assert opener.feed(sealer.chunk(b"two", final=True)) == [b"two"] and opener.finished
        opener.close()


@pytest.mark.parametrize("length", [0, 1, 16383, 16384, 16385, 100_000])
def test_any_length_goes_through(opened, nodes, length):
    keys, recipients = nodes
    data, answer_keys = seal_request(recipients[:1], b"\7" * length)
    plaintext, sealer = open_request(keys[0], data)
    assert plaintext == b"\7" * length
    texts = opened(answer_keys, sealer.head(), sealer.chunk(b"\7" * length, final=True))
    assert b"".join(texts) == b"\7" * length


# An independent reading of the layout in the module's docstring


def test_the_layout_is_what_the_docstring_says(opened, their_context, expanded, nodes):
    keys, recipients = nodes
    data, answer_keys = seal_request(recipients[:3], b"what is asked")
    preamble = bytes.fromhex("01 0010 0001 0001 0041 03")
    header, chunks = data[: 10 + 3 * ENTRY_BYTES], data[10 + 3 * ENTRY_BYTES :]
    assert header[:10] == preamble
    for number in range(3):
        entry = header[10 + number * ENTRY_BYTES :][:ENTRY_BYTES]
        assert entry[:32] == keys[number].identity
        context = their_context(entry, preamble, keys[number])
        content_key = context.open(entry[1185:], b"".join(key.identity for key in keys[:3]))
        salt = hashlib.sha256(header).digest()
        key, nonce = expanded(salt, content_key, b"key", 16), expanded(salt, content_key, b"nonce", 12)
        assert chunks[:2] == bytes([0, 13 + 16])
        assert AESGCM(key).decrypt(nonce, chunks[2:], b"final") == b"what is asked"

        _, sealer = open_request(keys[number], data)
        head, first, last = sealer.head(), sealer.chunk(b"yes"), sealer.chunk(b"no", final=True)
        assert opened(answer_keys, head, first, last) == [b"yes", b"no"]
        assert head[:32] == keys[number].identity and len(head) == 64
        secret = context.export(b"pomona envelope answer\0" + hashlib.sha256(data).digest(), 32)
        salt = entry[32:97] + head[32:]
        key, nonce = expanded(salt, secret, b"key", 16), expanded(salt, secret, b"nonce", 12)
        assert first[:2] == varint.encode(256 + 16) and last[:3] == b"\0" + varint.encode(256 + 16)
        assert AESGCM(key).decrypt(nonce, first[2:], b"") == b"\3yes" + bytes(252)
        nonce = nonce[:-1] + bytes([nonce[-1] ^ 1])
        assert AESGCM(key).decrypt(nonce, last[3:], b"final") == b"\2no" + bytes(253)


def test_a_recorded_request_and_its_answer_still_open(opened, vectors):
    case = {name: bytes.fromhex(value) for name, value in vectors("envelope.json").items()}
    key = NodeKey(
        case["identity"], kem.private_key(kem.P256, case["p256_private"]), MlKemKey.from_seed(case["mlkem_seed"])
    )
    plaintext, _ = open_request(key, case["request"])
    assert plaintext == case["plaintext"]
    assert replay_digest(case["request"]) == case["replay_digest"]
    keys = {key.identity: AnswerKey(case["request"][42:107], case["answer_secret"])}
    assert b"".join(opened(keys, case["answer"])) == case["answer_plaintext"]


# Who cannot open it


def test_a_node_that_was_not_asked_cannot_open_it(nodes):
    keys, recipients = nodes
    data, _ = seal_request(recipients[:2], b"text")
    with pytest.raises(SealingError, match="not for this node"):
        open_request(keys[2], data)
    with pytest.raises(SealingError, match="does not open"):  # under another's name
        open_request(dataclasses.replace(keys[2], identity=keys[0].identity), data)


def test_both_secrets_are_needed(nodes):
    keys, recipients = nodes
    data, _ = seal_request(recipients[:1], b"text")
    for half in ({"private": keys[1].private}, {"mlkem": keys[1].mlkem}):
        with pytest.raises(SealingError, match="does not open"):
            open_request(dataclasses.replace(keys[0], **half), data)


def test_it_is_bound_to_the_identity(nodes):
    keys, recipients = nodes
    renamed = dataclasses.replace(recipients[0], identity=b"\xaa" * 32)
    data, _ = seal_request([renamed], b"text")
    data = data.replace(b"\xaa" * 32, keys[0].identity)
    with pytest.raises(SealingError, match="does not open"):
        open_request(keys[0], data)


def test_a_byte_changed_anywhere_is_refused_by_every_node(nodes):
    keys, recipients = nodes
    data, _ = seal_request(recipients[:2], b"text")
    for place in [*range(0, len(data), 9), *range(45), *range(len(data) - 30, len(data))]:
        changed = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
        for key in keys[:2]:
            with pytest.raises(SealingError):
                open_request(key, changed)


def test_a_request_cut_anywhere_or_longer_is_refused(nodes):
    keys, recipients = nodes
    data, _ = seal_request(recipients[:2], b"text" * 5000)
    for end in [*range(0, len(data), 97), *range(len(data) - 20, len(data))]:
        with pytest.raises(SealingError):
            open_request(keys[1], data[:end])
    for more in (b"\0", data[-20:], b"\x11" * 18):
        with pytest.raises(SealingError, match="after the last"):
            open_request(keys[1], data + more)


def test_the_list_of_nodes_is_authentic(nodes):
    """An entry cannot be taken away, moved or replaced."""
    keys, recipients = nodes
    data, _ = seal_request(recipients[:3], b"text")
    other, _ = seal_request(recipients[3:4], b"text")
    start = PREAMBLE_BYTES
    first, second, third = (data[start + at * ENTRY_BYTES :][:ENTRY_BYTES] for at in range(3))
    chunks, foreign = data[start + 3 * ENTRY_BYTES :], other[start : start + ENTRY_BYTES]
    for entries in (
        [first],
        [first, second],
        [second, first, third],
        [first, second, foreign],
        [first, second, third, foreign],
    ):
        changed = data[:9] + bytes([len(entries)]) + b"".join(entries) + chunks
        assert len(node_identities(changed)) == len(entries)
        with pytest.raises(SealingError, match="does not open"):
            open_request(keys[0], changed)


@pytest.mark.parametrize(
    "preamble", ["02001000010001004101", "01002000010001004101", "01001000010002004101", "01001000010001004201"]
)
def test_another_version_or_suite_is_refused(nodes, preamble):
    keys, recipients = nodes
    data, _ = seal_request(recipients[:1], b"text")
    changed = bytes.fromhex(preamble) + data[10:]
    for call in (
        lambda: open_request(keys[0], changed),
        lambda: node_identities(changed),
        lambda: replay_digest(changed),
    ):
        with pytest.raises(SealingError, match="version or suite"):
            call()


@pytest.mark.parametrize("count", [0, 9, 255])
def test_another_number_of_nodes_is_refused(nodes, count):
    _, recipients = nodes
    data, _ = seal_request(recipients[:1], b"text")
    with pytest.raises(SealingError, match="1 to 8"):
        node_identities(data[:9] + bytes([count]) + data[10:])
    with pytest.raises(SealingError, match="1 to 8"):
        seal_request((recipients * 30)[:count] if count > 9 else recipients[:count], b"text")


def test_a_node_is_asked_once(nodes):
    _, recipients = nodes
    with pytest.raises(SealingError, match="each once"):
        seal_request([recipients[0], recipients[1], recipients[0]], b"text")
    data, _ = seal_request(recipients[:2], b"text")
    doubled = data[: PREAMBLE_BYTES + ENTRY_BYTES] + data[PREAMBLE_BYTES:][:ENTRY_BYTES] + data[10 + 2 * ENTRY_BYTES :]
    with pytest.raises(SealingError, match="each once"):
        node_identities(doubled)


@pytest.mark.parametrize(
    "change",
    [
        {"identity": bytes(31)},
        {"public_key": b"\4" + bytes(64)},
        {"public_key": b""},
        {"mlkem_public_key": b"\xff" * 1184},
    ],
)
def test_a_recipient_with_wrong_keys_is_refused(nodes, change):
    _, recipients = nodes
    with pytest.raises(SealingError):
        seal_request([recipients[1], dataclasses.replace(recipients[0], **change)], b"text")


class Gone(Exception):
    """What a key says that is not there any more."""


def test_what_a_key_raises_comes_through(nodes):
    keys, recipients = nodes

    class Broken:
        public_bytes = keys[0].private.public_bytes

        def diffie_hellman(self, peer_public_bytes):
            raise Gone

    data, _ = seal_request(recipients[:1], b"text")
    with pytest.raises(Gone):
        open_request(NodeKey(keys[0].identity, Broken(), keys[0].mlkem), data)


def test_requests_differ_and_so_do_their_digests(nodes):
    _, recipients = nodes
    one, _ = seal_request(recipients[:2], b"text")
    other, _ = seal_request(recipients[:2], b"text")
    assert replay_digest(one) == replay_digest(one[: PREAMBLE_BYTES + 2 * ENTRY_BYTES]) != replay_digest(other)
    assert replay_digest(one) == hashlib.sha256(one[: PREAMBLE_BYTES + 2 * ENTRY_BYTES]).digest()
    for call in (node_identities, replay_digest):
        with pytest.raises(SealingError, match="truncated"):
            call(one[: PREAMBLE_BYTES + 2 * ENTRY_BYTES - 1])


# Anything at all


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(opened, nodes, asked, data):
    for start in (b"", bytes.fromhex("01001000010001004101")):
        for call in (lambda: open_request(nodes[0][0], start + data), lambda: node_identities(start + data)):
            with pytest.raises(SealingError):
                call()
    for start in (b"", b"\1" * 32):
        with pytest.raises(SealingError):
            opened(asked[1], start + data)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_changed_request_is_refused(nodes, asked, data, changed, changes):
    found = changed(asked[0], *(data.draw(each) for each in changes))
    try:
        plaintext, _ = open_request(nodes[0][0], found)
    except SealingError:
        assert found != asked[0]
    else:
        assert plaintext == b"text"
        assert found[: PREAMBLE_BYTES + 2 * ENTRY_BYTES] == asked[0][: PREAMBLE_BYTES + 2 * ENTRY_BYTES]
    try:
        node_identities(found)
    except SealingError:
        pass


@settings(max_examples=30, deadline=None)
@given(
    st.binary(max_size=40_000),
    st.lists(st.binary(max_size=600), max_size=4),
    st.lists(st.integers(0, 5000), max_size=4),
)
def test_what_is_sealed_opens(answer, opened, nodes, cut, plaintext, pieces, places):
    keys, recipients = nodes
    data, answer_keys = seal_request(recipients[:1], plaintext)
    found, sealer = open_request(keys[0], data)
    assert found == plaintext
    assert b"".join(opened(answer_keys, *cut(answer(sealer, *pieces), places))) == b"".join(pieces)

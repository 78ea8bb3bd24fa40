"""The answer to an envelope: it opens as the answer of a node that was asked, to what was asked, whole and in order."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.sealing import aead, varint
from pomona.private.sealing.answer import AnswerOpener, AnswerSealer
from pomona.private.sealing.chunks import ChunkSealer
from pomona.private.sealing.envelope import open_request, seal_request
from pomona.private.sealing.errors import SealingError

PREAMBLE_BYTES, ENTRY_BYTES = 10, 1233


@pytest.fixture
def whole(nodes, asked):
    """An answer in four parts: head, two chunks and the last."""
    _, sealer = open_request(nodes[0][0], asked[0])
    return [sealer.head(), sealer.chunk(b"one"), sealer.chunk(b"two"), sealer.chunk(b"three", final=True)]


def test_an_answer_opens_however_it_is_cut(opened, asked, whole):
    data = b"".join(whole)
    for step in (1, 63, 64, 65, 300, len(data)):
        pieces = [data[start : start + step] for start in range(0, len(data), step)]
        assert opened(asked[1], *pieces) == [b"one", b"two", b"three"]


WRONG = {
    "reordered": lambda h, a, b, c: [h, b, a, c],
    "replayed": lambda h, a, b, c: [h, a, a, b, c],
    "replayed at the end": lambda h, a, b, c: [h, a, b, a],
    "left out": lambda h, a, b, c: [h, b, c],
    "a byte behind the last": lambda h, a, b, c: [h, a, b, c, b"\0"],
    "a chunk behind the last": lambda h, a, b, c: [h, a, b, c, a],
    "the whole again": lambda h, a, b, c: [h, a, b, c, h, a, b, c],
    "a chunk as the last": lambda h, a, b, c: [h, a, b"\0" + b],
    "the other's name": lambda h, a, b, c: [b"\2" * 32 + h[32:], a, b, c],
    "another nonce": lambda h, a, b, c: [h[:-1] + bytes([h[-1] ^ 1]), a, b, c],
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_refused(opened, asked, whole, change):
    pieces = change(*whole)
    with pytest.raises(SealingError):
        opened(asked[1], *pieces)
    with pytest.raises(SealingError):
        opened(asked[1], b"".join(pieces))


def test_a_truncated_answer_is_refused(asked, whole):
    data = b"".join(whole)
    for end in range(len(data)):
        opener = AnswerOpener(asked[1])
        opener.feed(data[:end])
        assert not opener.finished
        with pytest.raises(SealingError, match="truncated"):
            opener.close()


def test_an_answer_of_a_node_that_was_not_asked_is_refused(nodes, asked, whole):
    stranger = AnswerSealer(nodes[0][5].identity, asked[1][nodes[0][0].identity])
    opener = AnswerOpener(asked[1])
    with pytest.raises(SealingError, match="not asked"):
        opener.feed(stranger.head())
    for call in (lambda: opener.feed(b"".join(whole)), opener.close):
        with pytest.raises(SealingError, match="refused before"):
            call()
    assert opener.identity is None


def test_no_node_can_answer_for_another(answer, opened, nodes, asked):
    keys, _ = nodes
    _, sealer = open_request(keys[1], asked[0])
    forged = answer(sealer, b"text")
    with pytest.raises(SealingError, match="does not open"):
        opened(asked[1], keys[0].identity + forged[32:])


def test_an_answer_to_another_request_is_refused(answer, opened, nodes, asked):
    keys, recipients = nodes
    other, _ = seal_request(recipients[:2], b"text")
    _, sealer = open_request(keys[0], other)
    with pytest.raises(SealingError, match="does not open"):
        opened(asked[1], answer(sealer, b"text"))


def test_what_one_node_put_behind_the_header_is_not_answered_to_the_client(
    answer, opened, their_context, expanded, nodes, asked
):
    """Node 2 has the content key: it can hand other chunks to node 1, but the client does not open that answer."""
    keys, _ = nodes
    data, answer_keys = asked
    header = data[: PREAMBLE_BYTES + 2 * ENTRY_BYTES]
    entry = header[PREAMBLE_BYTES + ENTRY_BYTES :]
    context = their_context(entry, header[:PREAMBLE_BYTES], keys[1])
    content_key = context.open(entry[1185:], keys[0].identity + keys[1].identity)
    salt = hashlib.sha256(header).digest()
    inner = aead.Sealer(
        aead.AES_128_GCM, expanded(salt, content_key, b"key", 16), expanded(salt, content_key, b"nonce", 12)
    )
    forged = header + ChunkSealer(inner.seal, delimited=True).chunk(b"something else", final=True)
    plaintext, sealer = open_request(keys[0], forged)
    assert plaintext == b"something else"
    with pytest.raises(SealingError, match="does not open"):
        opened(answer_keys, answer(sealer, b"the answer to something else"))


@pytest.mark.parametrize("bucket", [1, 2, 3, 64, 256, 1000, 16384])
@pytest.mark.parametrize("final", [False, True])
def test_lengths_go_up_to_buckets(opened, nodes, asked, bucket, final):
    for length in (0, 1, 60, 253, 254, 255, 256, 16000, 16382, 16383, 40_000):
        _, sealer = open_request(nodes[0][0], asked[0], bucket)
        sealed = sealer.chunk(b"\7" * length, final)
        end = b"" if final else sealer.chunk(b"", final=True)
        assert b"".join(opened(asked[1], sealer.head(), sealed, end)) == b"\7" * length
        while sealed:
            size = 2 if sealed[0] == 0 else 1
            prefix = sealed[size - 1 :][: varint.encoded_bytes(sealed[size - 1])]
            chunk_bytes = varint.decode(prefix) - 16
            assert chunk_bytes % bucket == 0 and 0 < chunk_bytes <= 16384
            sealed = sealed[size - 1 + len(prefix) + chunk_bytes + 16 :]


def test_short_pieces_have_one_length(nodes, asked):
    _, sealer = open_request(nodes[0][0], asked[0])
    assert {len(sealer.chunk(b"x" * length)) for length in range(1, 255)} == {2 + 256 + 16}
    assert len(sealer.chunk(b"x" * 255)) == 2 + 512 + 16
    assert sealer.chunk(b"") == b""


@pytest.mark.parametrize("bucket", [0, -1, 16385])
def test_another_bucket_is_refused(nodes, asked, bucket):
    with pytest.raises(SealingError, match="bucket"):
        open_request(nodes[0][0], asked[0], bucket)


def test_an_answer_ends_once(nodes, asked):
    _, sealer = open_request(nodes[0][0], asked[0])
    sealer.chunk(b"", final=True)
    for final in (False, True):
        for data in (b"", b"more"):
            with pytest.raises(SealingError, match="after the last"):
                sealer.chunk(data, final)


@pytest.mark.parametrize("framed", [b"\5four", b"\4four\0\1", b"\x40", b"\xff" * 8, b"\1"])
def test_a_piece_that_is_framed_wrongly_is_refused_for_good(expanded, asked, framed):
    """A node can seal whatever it likes: the frame inside is checked too."""
    key = asked[1][b"\1" * 32]
    head = b"\1" * 32 + bytes(32)
    salt = key.enc + bytes(32)
    inner = aead.Sealer(
        aead.AES_128_GCM, expanded(salt, key.secret, b"key", 16), expanded(salt, key.secret, b"nonce", 12)
    )
    sealer = ChunkSealer(inner.seal, delimited=True)
    opener = AnswerOpener(asked[1])
    assert opener.feed(head + sealer.chunk(b"\4good")) == [b"good"]
    with pytest.raises(SealingError, match=r"truncated|padding"):
        opener.feed(sealer.chunk(framed))
    with pytest.raises(SealingError, match="refused before"):
        opener.feed(sealer.chunk(b"\4good"))


def test_secrets_are_not_in_what_is_printed(nodes, asked):
    keys, recipients = nodes
    assert "secret" not in repr(asked[1]) and "private" not in repr(keys[0]) and "mlkem" not in repr(recipients[0])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_changed_answer_is_refused_or_opens_as_what_it_was(answer, opened, nodes, asked, data, changed, changes):
    _, sealer = open_request(nodes[0][0], asked[0])
    whole = answer(sealer, b"one", b"two")
    found = changed(whole, *(data.draw(each) for each in changes))
    try:
        texts = opened(asked[1], found)
    except SealingError:
        assert found != whole
    else:
        assert texts == [b"one", b"two"]

"""Messages in sealed chunks: however they are cut they open, and in no other order, number or length."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.sealing import aead, varint
from pomona.private.sealing.chunks import CHUNK_BYTES, FINAL, ChunkOpener, ChunkSealer, HeadedOpener
from pomona.private.sealing.errors import SealingError

KEY, NONCE = bytes(range(16)), bytes(range(12))
both = pytest.mark.parametrize("delimited", [False, True], ids=["to the end", "delimited"])


def sealer(delimited):
    return ChunkSealer(aead.Sealer(aead.AES_128_GCM, KEY, NONCE).seal, delimited)


def opener(delimited, most_bytes=CHUNK_BYTES):
    return ChunkOpener(aead.Opener(aead.AES_128_GCM, KEY, NONCE).open, delimited, most_bytes)


def opened(pieces, delimited):
    """The plaintexts, the last one too where there is one."""
    one = opener(delimited)
    texts = [text for piece in pieces for text in one.feed(piece)]
    last = one.close()
    assert one.finished
    return texts + [last] * bool(last)


@both
@pytest.mark.parametrize("last", [b"", b"last"])
def test_chunks_come_out_as_they_went_in(delimited, last):
    seal = sealer(delimited)
    pieces = [seal.chunk(b"one"), seal.chunk(b"two"), seal.chunk(last, final=True)]
    assert opened(pieces, delimited) == [b"one", b"two"] + [last] * bool(last)
    assert opened([bytes([byte]) for byte in b"".join(pieces)], delimited) == [b"one", b"two"] + [last] * bool(last)
    mark = pieces[2][:1] + (varint.encode(len(last) + 16) if delimited else b"")
    assert pieces[2].startswith(mark) and len(pieces[2]) == len(mark) + len(last) + 16 and mark[0] == 0


@both
def test_the_end_is_known_at_once_only_where_it_is_delimited(delimited):
    one = opener(delimited)
    assert one.feed(sealer(delimited).chunk(b"text", final=True)) == [b"text"] * delimited
    assert one.finished == delimited
    assert one.close() == b"text" * (not delimited)
    assert one.finished


@both
@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
@pytest.mark.parametrize("final", [False, True])
def test_long_data_is_cut(delimited, length, final):
    seal, data = sealer(delimited), bytes(length)
    sealed = seal.chunk(data, final) + (b"" if final else seal.chunk(b"", final=True))
    texts = opened([sealed], delimited)
    assert b"".join(texts) == data and max(map(len, texts), default=0) <= CHUNK_BYTES
    assert len(texts) == -(-length // CHUNK_BYTES)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.lists(st.integers(0, 300), max_size=6), st.booleans()
)
def test_any_cut_opens(cut, texts, places, delimited):
    seal = sealer(delimited)
    sealed = b"".join(seal.chunk(text) for text in texts) + seal.chunk(b"", final=True)
    assert opened(cut(sealed, places), delimited) == texts


def message(delimited):
    """Three chunks and the last."""
    seal = sealer(delimited)
    return [seal.chunk(b"one"), seal.chunk(b"two"), seal.chunk(b"three"), seal.chunk(b"four", final=True)]


@both
def test_a_message_that_ends_anywhere_is_truncated(delimited):
    whole = b"".join(message(delimited))
    for end in range(len(whole)):
        one = opener(delimited)
        one.feed(whole[:end])
        in_last = not delimited and end > len(whole) - 1 - len(b"four") - 16
        with pytest.raises(SealingError, match="does not open" if in_last else "truncated"):
            one.close()
        assert not one.finished


WRONG = {
    "reordered": lambda a, b, c, d: b + a + c + d,
    "repeated": lambda a, b, c, d: a + a + b + c + d,
    "replayed later": lambda a, b, c, d: a + b + a + c + d,
    "left out": lambda a, b, c, d: a + c + d,
    "the first left out": lambda a, b, c, d: b + c + d,
    "the last early": lambda a, b, c, d: a + b + d,
    "the last twice": lambda a, b, c, d: a + b + c + d + d,
    "a chunk behind the last": lambda a, b, c, d: a + b + c + d + a,
    "a byte behind the last": lambda a, b, c, d: a + b + c + d + b"\0",
    "a chunk as the last": lambda a, b, c, d: a + b + b"\0" + c,
    "a chunk's bytes as the last": lambda a, b, c, d: a + b + b"\0" + c[1:],
    "the last as a chunk": lambda a, b, c, d: a + b + c + bytes([len(d) - 2]) + d[2:],
    "the last without its mark": lambda a, b, c, d: a + b + c + bytes([len(d) - 1]) + d[1:],
}


@both
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "byte by byte"])
def test_chunks_in_another_order_are_refused(delimited, change, at_once):
    sealed = change(*message(delimited))
    assert sealed != b"".join(message(delimited))
    pieces = [sealed] if at_once else [bytes([byte]) for byte in sealed]
    with pytest.raises(SealingError):
        opened(pieces, delimited)


@both
def test_bytes_behind_the_last_chunk_are_refused_whenever_they_come(delimited):
    one = opener(delimited)
    one.feed(b"".join(message(delimited)))
    if delimited:
        assert one.finished
        with pytest.raises(SealingError, match="after the last"):
            one.feed(b"\0")
    else:
        one.feed(b"\0")  # it may be of the last chunk: that is known when the stream ends
    with pytest.raises(SealingError):
        one.close()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), delimited=st.booleans())
def test_a_changed_message_is_refused_or_opens_as_what_it_was(data, delimited, changed, changes):
    whole = b"".join(message(delimited))
    found = changed(whole, *(data.draw(each) for each in changes))
    try:
        texts = opened([found], delimited)
    except SealingError:
        assert found != whole
    else:
        assert texts == [b"one", b"two", b"three", b"four"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4), st.booleans())
def test_any_bytes_are_refused(pieces, delimited):
    with pytest.raises(SealingError):
        opened(pieces, delimited)


@both
def test_a_chunk_without_data_is_refused_unless_it_is_the_last(delimited):
    inner = aead.Sealer(aead.AES_128_GCM, KEY, NONCE)
    empty = inner.seal(b"", b"")
    with pytest.raises(SealingError, match="holds no data"):
        opener(delimited).feed(varint.encode(len(empty)) + empty)
    for length in range(1, 16):
        with pytest.raises(SealingError, match="holds no data"):
            opener(delimited).feed(varint.encode(length))
    assert sealer(delimited).chunk(b"") == b""


def test_a_delimited_last_chunk_has_room_for_its_tag():
    for length in range(16):
        with pytest.raises(SealingError, match="holds no data"):
            opener(True).feed(b"\0" + varint.encode(length))


@both
def test_a_long_chunk_is_refused_before_its_bytes_come(delimited):
    assert opener(delimited).feed(varint.encode(CHUNK_BYTES + 16)) == []
    for length in (CHUNK_BYTES + 17, varint.LARGEST):
        with pytest.raises(SealingError, match="too long"):
            opener(delimited).feed(varint.encode(length))
    assert opener(delimited, 1 << 20).feed(varint.encode(CHUNK_BYTES + 17)) == []
    one = opener(delimited)
    if delimited:
        with pytest.raises(SealingError, match="too long"):
            one.feed(b"\0" + varint.encode(CHUNK_BYTES + 17))
    else:
        assert one.feed(b"\0" + bytes(CHUNK_BYTES + 16)) == []
        with pytest.raises(SealingError, match="too long"):
            one.feed(b"\0")


@both
def test_what_was_refused_stays_refused(delimited):
    one, chunks = opener(delimited), message(delimited)
    assert one.feed(chunks[0]) == [b"one"]
    with pytest.raises(SealingError, match="does not open"):
        one.feed(chunks[2])
    for call in (lambda: one.feed(chunks[1]), lambda: one.feed(b""), one.close):
        with pytest.raises(SealingError, match="refused before"):
            call()
    assert not one.finished


@both
def test_a_message_ends_once(delimited):
    seal = sealer(delimited)
    seal.chunk(b"", final=True)
    for final in (False, True):
        with pytest.raises(SealingError, match="after the last"):
            seal.chunk(b"more", final)


@both
def test_a_message_without_chunks_cannot_be_closed(delimited):
    one = opener(delimited)
    with pytest.raises(SealingError, match="truncated"):
        one.close()
    with pytest.raises(SealingError, match="refused before"):
        one.close()


def test_the_associated_data_mark_the_last_one():
    """Even with the right number, a chunk is no last one and the last one no chunk."""
    inner = aead.Sealer(aead.AES_128_GCM, KEY, NONCE)
    last = inner.seal(FINAL, b"text")
    with pytest.raises(SealingError, match="does not open"):
        opener(False).feed(varint.encode(len(last)) + last)
    chunk = aead.Sealer(aead.AES_128_GCM, KEY, NONCE).seal(b"", b"text")
    one = opener(False)
    one.feed(b"\0" + chunk)
    with pytest.raises(SealingError, match="does not open"):
        one.close()


def headed():
    """An opener whose head is the two bytes `hd`."""

    def head(cursor):
        if cursor.take(2, "the head") != b"hd":
            raise SealingError("no head")
        return opener(False)

    return HeadedOpener(head)


def test_a_head_comes_first_however_it_is_cut():
    for pieces in ([b"hd"], [b"h", b"d"], [b"", b"h", b"", b"d"]):
        one = headed()
        for piece in pieces:
            assert one.feed(piece) == [] and not one.finished
        assert one.feed(b"".join(message(False))) == [b"one", b"two", b"three"]
        assert one.close() == b"four" and one.finished
    assert headed().feed(b"hd" + message(False)[0]) == [b"one"]


def test_a_wrong_head_is_refused_for_good():
    one = headed()
    with pytest.raises(SealingError, match="no head"):
        one.feed(b"xx")
    for call in (lambda: one.feed(b"hd"), one.close):
        with pytest.raises(SealingError, match="refused before"):
            call()


def test_an_incomplete_head_is_truncated():
    one = headed()
    one.feed(b"h")
    with pytest.raises(SealingError, match="within its head"):
        one.close()

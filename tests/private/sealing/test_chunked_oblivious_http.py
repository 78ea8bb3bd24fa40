"""Chunked oblivious HTTP: its chunks open however they are cut, and in no other order, number or message."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.sealing import chunked_oblivious_http as chunked
from pomona.private.sealing import varint
from pomona.private.sealing.errors import SealingError


@pytest.fixture(scope="module")
def exchanged(keys):
    """A request and a response in four chunks each, and openers for them."""
    head, sealer, exchange = chunked.seal_chunked_request(keys[0].config)
    request = [head, *(sealer.chunk(text) for text in (b"one", b"two", b"three")), sealer.chunk(b"four", final=True)]
    opener = chunked.ChunkedRequestOpener(keys)
    opener.feed(head)
    head, sealer = chunked.seal_chunked_response(opener.exchange)
    response = [head, *(sealer.chunk(text) for text in (b"one", b"two", b"three")), sealer.chunk(b"four", final=True)]
    return {
        "request": (request, lambda: chunked.ChunkedRequestOpener(keys)),
        "response": (response, lambda: chunked.open_chunked_response(exchange)),
    }


def opened(opener, pieces):
    texts = [text for piece in pieces for text in opener.feed(piece)]
    return [*texts, opener.close()]


ways = pytest.mark.parametrize("way", ["request", "response"])


@ways
def test_chunks_open_however_they_are_cut(exchanged, way):
    pieces, opener = exchanged[way]
    whole = b"".join(pieces)
    for step in (1, 2, 7, 40, len(whole)):
        cuts = [whole[start : start + step] for start in range(0, len(whole), step)]
        assert opened(opener(), cuts) == [b"one", b"two", b"three", b"four"]


WRONG = {
    "reordered": lambda h, a, b, c, d: [h, b, a, c, d],
    "replayed": lambda h, a, b, c, d: [h, a, b, a, c, d],
    "left out": lambda h, a, b, c, d: [h, a, c, d],
    "truncated": lambda h, a, b, c, d: [h, a, b, c],
    "the head alone": lambda h, a, b, c, d: [h],
    "trailing": lambda h, a, b, c, d: [h, a, b, c, d, a],
    "a byte more": lambda h, a, b, c, d: [h, a, b, c, d, b"\0"],
    "two messages": lambda h, a, b, c, d: [h, a, b, c, d, h, a, b, c, d],
    "another last": lambda h, a, b, c, d: [h, a, b, b"\0", c[1:]],
}


@ways
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_chunks_are_refused(exchanged, way, change):
    pieces, opener = exchanged[way]
    with pytest.raises(SealingError):
        opened(opener(), change(*pieces))


def test_chunks_of_another_message_are_refused(keys, exchanged):
    pieces, _ = exchanged["response"]
    head, _, exchange = chunked.seal_chunked_request(keys[0].config)
    with pytest.raises(SealingError, match="does not open"):
        chunked.open_chunked_response(exchange).feed(b"".join(pieces))
    opener = chunked.ChunkedRequestOpener(keys)
    opener.feed(head)
    with pytest.raises(SealingError, match="does not open"):
        opener.feed(exchanged["request"][0][1])


def test_a_receiver_takes_16384_bytes_in_a_chunk_and_more_if_it_is_told(keys):
    head, sealer, _ = chunked.seal_chunked_request(keys[0].config)
    assert chunked.ChunkedRequestOpener(keys).feed(head + sealer.chunk(bytes(16384))) == [bytes(16384)]
    longer = head + varint.encode(16384 + 17)
    with pytest.raises(SealingError, match="too long"):
        chunked.ChunkedRequestOpener(keys).feed(longer)
    assert chunked.ChunkedRequestOpener(keys, most_bytes=1 << 16).feed(longer) == []


@settings(max_examples=100, deadline=None)
@given(data=st.data(), way=st.sampled_from(["request", "response"]))
def test_a_changed_message_is_refused_or_opens_as_what_it_was(exchanged, data, way, changed, changes):
    pieces, opener = exchanged[way]
    whole = b"".join(pieces)
    found = changed(whole, *(data.draw(each) for each in changes))
    try:
        texts = opened(opener(), [found])
    except SealingError:
        assert found != whole
    else:
        assert texts == [b"one", b"two", b"three", b"four"]

"""Streamed text: byte for byte what all tokens decode to, in whole characters, up to a stop."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.data.stream import stream_text, until_stop
from pomona.data.tokenizer import ESCAPE, load_tokenizer, train_tokenizer

TEXTS = st.text(alphabet=st.sampled_from("ab \n\u2581\ue000<n>0123\x00é漢🙂"), max_size=30)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["some text to learn pieces from, a few and again\n"] * 50, 290, 100_000, folder)
    return load_tokenizer(folder)


@given(TEXTS)
@settings(deadline=None, max_examples=200)
def test_pieces_are_the_text(tokenizer, text):
    pieces = list(stream_text(tokenizer, tokenizer.encode(text)))
    assert "".join(pieces) == text
    assert all(pieces) and not any("\ufffd" in piece for piece in pieces), "only whole characters"


@given(st.lists(st.integers(0, 299), max_size=30))
@settings(deadline=None, max_examples=200)
def test_any_tokens_are_what_they_decode_to(tokenizer, tokens):
    """Ids from 290 on are rows of an embedding that is larger than the vocabulary."""
    assert "".join(stream_text(tokenizer, tokens)) == tokenizer.decode(tokens)


@given(TEXTS, st.lists(st.text(alphabet="ab \n", min_size=1, max_size=3), max_size=3))
@settings(deadline=None, max_examples=200)
def test_it_ends_before_the_first_stop_and_gives_nothing_of_it_away(tokenizer, text, stops):
    assert "".join(stream_text(tokenizer, tokenizer.encode(text), stops)) == until_stop(text, stops)


def test_no_more_tokens_are_asked_for_than_are_needed(tokenizer):
    asked = []
    tokens = (asked.append(token) or token for token in tokenizer.encode("ab stop and more and more"))
    assert "".join(stream_text(tokenizer, tokens, ("stop",))) == "ab "
    assert tokenizer.decode(asked).endswith("stop")


def test_an_escape_at_the_end_stays_what_it_is(tokenizer):
    tokens = tokenizer.processor.encode("a" + ESCAPE)
    assert "".join(stream_text(tokenizer, tokens)) == "a" + ESCAPE

"""Of a document with a prompt, exactly the predictions of the response count, however it is cut and packed."""

import json

import numpy as np
import pytest

from pomona.core.errors import UserError
from pomona.data.config import DataConfig, Source, TokenizerConfig
from pomona.data.prepare import heldout_batches, open_batches, prepare
from pomona.data.tokenizer import BEGIN, END, load_tokenizer

LENGTH = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Prompts and responses of 1 to 30 words; words differ by side, so that every id tells where it is from."""
    path, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    say = lambda letters, most: " ".join(rng.choice(list(letters), rng.integers(1, most)))
    rows = [{"prompt": say("abc", 30), "response": say("xyz", 30)} for _ in range(120)]
    (path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(
        sources=(Source("task", str(path / "task.jsonl"), text_field="prompt:response"),),
        tokenizer=TokenizerConfig(vocab_size=270),
        heldout_fraction=0.2,
        cache=str(path / "cache"),
        workers=1,
    )
    return prepare(data, lambda text: None)


def check(batch, pieces):
    """Whether a prediction counts by the text of its target; the first of a response is known by what comes before."""
    expected = np.zeros_like(batch.targets)
    for at in np.argwhere(batch.segments > 0):
        piece = pieces[batch.targets[tuple(at)]]
        expected[tuple(at)] = any(letter in piece for letter in b"xyz") or batch.targets[tuple(at)] == END
    assert (batch.segments >= 0).all() and batch.counted.dtype == np.int32
    unsure = np.array([[set(pieces[t]) <= set(b" ") for t in row] for row in batch.targets]) & (batch.targets != END)
    np.testing.assert_array_equal(np.where(unsure, 0, batch.counted), np.where(unsure, 0, expected))
    assert (batch.counted <= (batch.segments > 0)).all()
    return batch.counted.sum(), (batch.segments > 0).sum()


def test_exactly_the_predictions_of_responses_count(corpus):
    pieces = load_tokenizer(corpus.tokenizer).pieces()
    batches = open_batches(corpus, LENGTH, 4, seed=0)
    sums = [check(batches.batch(step), pieces) for step in range(20)]
    sums += [check(make(), pieces) for make in heldout_batches(corpus, LENGTH, 4, 50)]
    counted, real = np.sum(sums, axis=0)
    assert 0.3 < counted / real < 0.7
    rows = np.concatenate([batches.batch(step).tokens for step in range(20)])
    assert (rows[:, 0] != BEGIN).any(), "some documents are longer than a record, and are cut"


def test_rows_without_the_two_fields_are_refused(tmp_path):
    (tmp_path / "task.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    source = Source("task", str(tmp_path / "task.jsonl"), text_field="prompt:response")
    with pytest.raises(UserError, match=r"task\.jsonl:2 has no text in the field 'response'"):
        prepare(DataConfig(sources=(source,), cache=str(tmp_path / "cache")), lambda text: None)

"""From files to batches: every kind of source, exact tokens, no loss in packing, batches that nothing else changes."""

import gzip
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.core.errors import UserError
from pomona.data.config import DataConfig, Source, TokenizerConfig, Weight
from pomona.data.loader import stream
from pomona.data.pack import pack
from pomona.data.prepare import corpus_fingerprint, heldout_batches, open_batches, prepare
from pomona.data.sources import documents
from pomona.data.token_files import is_heldout, open_token_files, token_dtype
from pomona.data.tokenizer import BEGIN, END, load_tokenizer, train_tokenizer

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "12345", "numbers", "(and"]
WORDS += ["[brackets])", "wait\n\tindented"]


def texts(count=300, seed=0):
    rng = np.random.default_rng(seed)
    return [f"{i}: " + " ".join(rng.choice(WORDS, rng.integers(5, 200))) for i in range(count)]


def config(tmp_path, **changes):
    path = tmp_path / "text.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    fields = {
        "sources": (Source("a", str(path)),),
        "tokenizer": TokenizerConfig(vocab_size=400),
        "heldout_fraction": 0.1,
        "cache": str(tmp_path / "cache"),
        "workers": 1,
    }
    return DataConfig(**(fields | changes))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(config(tmp_path_factory.mktemp("data")), report=lambda _: None)


def test_every_kind_of_file_gives_the_same_documents(tmp_path):
    import pyarrow.parquet
    import zstandard

    rows = ["one\n", "zwei ü", "三"]
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(lines))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(lines))
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "e.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert [text for _, text in documents(Source("s", str(path)))] == rows, path.name
    assert len(list(documents(Source("s", str(tmp_path))))) == 15
    assert len(list(documents(Source("s", str(tmp_path / "*.jsonl*"))))) == 12


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.txt", b"good \xff bad", "not UTF-8 at offset 5"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"txet": "x"}\n', "did you mean txet?"),
        ("a.jsonl.gz", b"no gzip", "cannot be decompressed"),
        ("a.txt.zst", b"no zstd", "cannot be decompressed"),
        ("a.txt.xz", lzma.compress(b"x" * 1000)[:-20], "cannot be decompressed"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path, name, content, word):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(documents(Source("s", str(tmp_path / name))))
    assert word in str(caught.value)


def test_a_missing_file_and_an_empty_corpus(tmp_path):
    with pytest.raises(UserError, match="no text at"):
        list(documents(Source("s", str(tmp_path / "nothing"))))
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(UserError, match="corpus is empty"):
        prepare(config(tmp_path, sources=(Source("s", str(tmp_path / "empty.txt")),)), print)


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'pomona\[data\]'"):
        list(documents(Source("s", str(tmp_path / "a.parquet"))))


@pytest.fixture(scope="module")
def tokenizer(prepared):
    return load_tokenizer(prepared.tokenizer)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(
        st.sampled_from(["<n>", "\n", "\u2581", "\ue000", "\ue0002", "\x00", " ", "\r", "12", "é", "😀", "<s>", "\t"])
    ).map("".join)
)
def test_any_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stand_alone_and_newline_is_a_piece(tokenizer):
    pieces = [tokenizer.pieces()[i] for i in tokenizer.encode("12345\n")]
    assert pieces == [b"1", b"2", b"3", b"4", b"5", b"\n"]


def test_token_bytes_add_up_to_the_text(tokenizer):
    for text in texts(20, seed=5):
        ids = tokenizer.encode(text)
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert tokenizer.token_bytes()[[BEGIN, END]].tolist() == [0, 0]


def test_too_little_text_for_the_vocabulary(tmp_path):
    with pytest.raises(UserError, match="a vocabulary of 4096 could not be trained"):
        train_tokenizer(["hello"], 4096, 1000, tmp_path)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=60), st.integers(1, 20))
def test_packing_predicts_every_token_once(lengths, record_length):
    lengths = np.array(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    plan = pack(starts, lengths, record_length)
    predicted = np.concatenate([np.arange(s, s + n) + 1 for s, n in zip(plan.starts, plan.lengths)])
    wanted = np.concatenate([np.arange(s, s + n)[1:] for s, n in zip(starts, lengths)])
    assert sorted(predicted) == sorted(wanted)
    filled = [plan.lengths[a:b].sum() for a, b in zip(plan.records, plan.records[1:])]
    assert all(0 < n <= record_length for n in filled)


def test_packing_is_a_best_fit():
    plan = pack(np.array([0, 10, 20, 30]), np.array([7, 5, 4, 3]), 8)  # 6, 4, 3, 2 predictions into records of 8
    assert sorted(tuple(sorted(plan.lengths[a:b])) for a, b in zip(plan.records, plan.records[1:])) == [(2, 6), (3, 4)]


def test_records_restart_positions_and_mark_padding(prepared, tokenizer):
    batch = open_batches(prepared, 64, 4, seed=0).batch(0)
    for row in range(4):
        segments, positions = batch.segments[row], batch.positions[row]
        for segment in range(1, segments.max() + 1):
            np.testing.assert_array_equal(positions[segments == segment], np.arange((segments == segment).sum()))
        inside = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
        np.testing.assert_array_equal(batch.tokens[row, 1:][inside], batch.targets[row, :-1][inside])


def test_training_and_heldout_text_do_not_meet(prepared, tokenizer):
    dtype = token_dtype(prepared.vocab_size)
    sides = [open_token_files(prepared.folder / "a", dtype, heldout) for heldout in (False, True)]
    found = [{tokenizer.decode(f.read(s, n)[1:-1].tolist()) for s, n in zip(f.starts, f.lengths)} for f in sides]
    expected = [{t for t in texts() if is_heldout(t, 0.1) is heldout} for heldout in (False, True)]
    assert found == expected and all(expected)


def test_heldout_batches_hold_every_token_once(prepared):
    files = open_token_files(prepared.folder / "a", token_dtype(prepared.vocab_size), heldout=True)
    made = [make() for make in heldout_batches(prepared, 64, 4, max_batches=10**6)]
    assert sum((batch.segments > 0).sum() for batch in made) == (files.lengths - 1).sum()


def test_a_batch_is_a_pure_function_of_the_step(prepared):
    one, two = (open_batches(prepared, 32, 8, seed=3) for _ in range(2))
    for step in (0, 5, 1000):  # far past the first epoch
        whole = one.batch(step)
        parts = [two.batch(step, rows=range(i, i + 2)) for i in range(0, 8, 2)]
        np.testing.assert_array_equal(whole.tokens, np.concatenate([part.tokens for part in parts]))
    assert (one.batch(0).tokens != open_batches(prepared, 32, 8, seed=4).batch(0).tokens).any()


def test_the_stream_is_the_batches(prepared):
    batches = open_batches(prepared, 32, 8, seed=3)
    for step, batch in enumerate(stream(batches, 4, 9, range(2, 5)), start=4):
        np.testing.assert_array_equal(batch.tokens, batches.batch(step, range(2, 5)).tokens)
    assert step == 8


def test_an_epoch_holds_every_record_once(prepared):
    batches = open_batches(prepared, 32, 1, seed=0)
    files = open_token_files(prepared.folder / "a", token_dtype(prepared.vocab_size), heldout=False)
    count = pack(files.starts, files.lengths, 32).num_records
    rows = {batches.batch(step).tokens.tobytes() + batches.batch(step).positions.tobytes() for step in range(count)}
    assert len(rows) == count > 50


def test_mixtures_follow_their_weights(tmp_path):
    (tmp_path / "b.txt").write_text("\n".join(texts(200, seed=9)))
    (tmp_path / "c").mkdir()
    for i, text in enumerate(texts(200, seed=8)):
        (tmp_path / "c" / f"{i}.txt").write_text(text.upper())
    base = config(tmp_path)
    sources = (*base.sources, Source("upper", str(tmp_path / "c"), weight=3.0))
    ready = prepare(config(tmp_path, sources=sources), lambda _: None)
    tokenizer = load_tokenizer(ready.tokenizer)

    def share(mixture):
        batches = open_batches(ready, 16, 100, seed=0, mixture=mixture)
        upper = [tokenizer.decode(row.tolist()).isupper() for row in batches.batch(0).tokens]
        return np.mean(upper)

    assert share(None) == pytest.approx(0.75, abs=0.1)
    assert share((Weight("a", 1.0), Weight("upper", 1.0))) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(UserError, match="'uper'"):
        open_batches(ready, 16, 4, 0, (Weight("uper", 1.0),))


def test_a_corpus_smaller_than_a_batch(prepared):
    with pytest.raises(UserError, match="smaller than one batch"):
        open_batches(prepared, 64, 10_000, seed=0)


def test_workers_do_not_change_the_files(tmp_path):
    from pomona.data import token_files

    folder = tmp_path / "tokenizer"
    train_tokenizer(texts(), 400, 10**6, folder)
    for workers, name in ((1, "one"), (2, "two")):
        many = texts(4000, seed=2) * 12  # several shards
        token_files.tokenize(many, folder, tmp_path / name, 0.1, workers, lambda _: None)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert len(files) > 4
    assert files == sorted(p.name for p in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_killed_preparation_goes_on(tmp_path):
    settings_ = config(tmp_path)
    code = (
        "import os, signal, sys, pomona.data.token_files as t\n"
        "t.write_bytes = lambda path, content, write=t.write_bytes: (write(path, content), "
        "os.kill(os.getpid(), signal.SIGKILL) if path.suffix == '.npy' else None)\n"
        "from pomona.data.config import *; from pomona.data.prepare import prepare\n"
        f"prepare({settings_!r}, print)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folder = tmp_path / "cache" / corpus_fingerprint(settings_)
    assert (folder / "a" / "00000.npy").exists() and not (folder / "done.json").exists()
    before = os.stat(folder / "a" / "00000.npy").st_mtime_ns
    assert prepare(settings_, lambda _: None).folder == folder
    assert os.stat(folder / "a" / "00000.npy").st_mtime_ns == before


def test_changed_text_is_another_corpus(tmp_path):
    settings_ = config(tmp_path)
    before = corpus_fingerprint(settings_)
    shutil.copy(tmp_path / "text.jsonl", tmp_path / "copy")
    with (tmp_path / "text.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    assert corpus_fingerprint(settings_) != before

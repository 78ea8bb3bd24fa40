"""Documents to token files: in parallel, resumable, read back as memory maps.

The documents of a source are cut into shards of about 8 MB of text. A shard becomes two files: `00012.tokens` (the ids
of its documents one after another, each `begin ... end`, 2 or 4 bytes an id) and `00012.npy` (the length of every
document, negative if held out); the lengths are written last and say that the shard is done. Documents with a prompt
have a third file, `00012.prompts.npy`: the number of ids of each prompt, `begin` not counted. A run that was killed
goes on with the first shard that is missing. The result does not depend on the number of worker processes.
"""

import dataclasses
import hashlib
import io
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from pomona.core.files import write_bytes
from pomona.data.tokenizer import BEGIN, END, Tokenizer, load_tokenizer

SHARD_BYTES = 8_000_000

Text = str | tuple[str, str]
"""A document, or a prompt and what is learned to follow it."""


@dataclasses.dataclass(frozen=True)
class TokenFiles:
    """One split of a tokenized source. Documents are whole inside a shard."""

    shards: tuple[np.ndarray, ...]  # memory maps of ids
    shard_starts: np.ndarray  # int64, the place of each shard's first id; the last entry is the end
    starts: np.ndarray  # int64 [documents], the place of each document's first id
    lengths: np.ndarray  # int64 [documents], ids of each document, begin and end included
    prompts: np.ndarray | None = None  # int64 [documents], ids of each document after `begin` that are only given

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` ids from place `start`, which lie in one shard."""
        shard = int(np.searchsorted(self.shard_starts, start, side="right")) - 1
        local = start - int(self.shard_starts[shard])
        return self.shards[shard][local : local + count]

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())


def tokenize(
    texts: Iterable[Text],
    tokenizer_folder: Path,
    folder: Path,
    heldout_fraction: float,
    workers: int,
    report: Callable[[str], None],
) -> None:
    """Writes the shards that `folder` lacks. `workers` is the number of processes, 0 for one per core."""
    workers = workers or os.cpu_count() or 1
    tasks = (
        (index, shard, tokenizer_folder, folder, heldout_fraction)
        for index, shard in enumerate(_cut(texts))
        if not _lengths_path(folder, index).exists()
    )
    first = list(itertools.islice(tasks, 2))
    if len(first) < 2 or workers == 1:  # a pool costs more than one shard
        for task in itertools.chain(first, tasks):
            _report(report, _tokenize_shard(task))
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pending: list = []
        for task in itertools.chain(first, tasks):
            pending.append(pool.apply_async(_tokenize_shard, (task,)))
            if len(pending) > 2 * workers:  # bounds the text in memory
                _report(report, pending.pop(0).get())
        for result in pending:
            _report(report, result.get())


def open_token_files(folder: Path, dtype: np.dtype, heldout: bool) -> TokenFiles:
    """The training or the held-out documents of a tokenized source."""
    shards, starts, lengths, prompts, shard_starts = [], [], [], [], [0]
    for index in itertools.count():
        if not _lengths_path(folder, index).exists():
            break
        signed = np.load(_lengths_path(folder, index))
        size = np.abs(signed)
        begin = shard_starts[-1] + np.concatenate([[0], np.cumsum(size)[:-1]]).astype(np.int64)
        chosen = (signed < 0) == heldout
        starts.append(begin[chosen])
        lengths.append(size[chosen])
        if _prompts_path(folder, index).exists():
            prompts.append(np.load(_prompts_path(folder, index))[chosen])
        path = _tokens_path(folder, index)
        shards.append(np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype))
        shard_starts.append(shard_starts[-1] + int(size.sum()))
    empty = [np.zeros(0, np.int64)]
    return TokenFiles(
        shards=tuple(shards),
        shard_starts=np.array(shard_starts),
        starts=np.concatenate(starts or empty),
        lengths=np.concatenate(lengths or empty),
        prompts=np.concatenate(prompts) if prompts else None,
    )


def token_dtype(vocab_size: int) -> np.dtype:
    """Two bytes an id where they suffice."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def whole(text: Text) -> str:
    """A document as one string."""
    return text if isinstance(text, str) else "".join(text)


def is_heldout(text: str, fraction: float) -> bool:
    """Decides a document's split by its content alone: copies land on one side, in any order of files."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _cut(texts: Iterable[Text]) -> Iterator[list[Text]]:
    shard: list[Text] = []
    size = 0
    for text in texts:
        if not whole(text).strip():
            continue
        shard.append(text)
        size += len(whole(text))
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


_loaded: dict[Path, Tokenizer] = {}  # one tokenizer per worker process


def _tokenize_shard(task: tuple[int, list[Text], Path, Path, float]) -> tuple[int, int, int]:
    """Writes one shard; returns (shard, documents, tokens)."""
    index, texts, tokenizer_folder, folder, heldout_fraction = task
    if tokenizer_folder not in _loaded:
        _loaded[tokenizer_folder] = load_tokenizer(tokenizer_folder)
    tokenizer = _loaded[tokenizer_folder]
    dtype = token_dtype(tokenizer.vocab_size)
    given = tokenizer.encode_batch([text[0] for text in texts if not isinstance(text, str)])
    learned = tokenizer.encode_batch([text if isinstance(text, str) else text[1] for text in texts])
    # A source is all pairs or has none, by the name of its field.
    prompts = given or [[]] * len(texts)
    documents = [np.array([BEGIN, *first, *ids, END], dtype) for first, ids in zip(prompts, learned, strict=True)]
    sign = [-1 if is_heldout(whole(text), heldout_fraction) else 1 for text in texts]
    lengths = np.array([len(d) * s for d, s in zip(documents, sign)], np.int64)
    write_bytes(_tokens_path(folder, index), np.concatenate(documents).tobytes())
    if given:
        write_bytes(_prompts_path(folder, index), _saved(np.array([len(ids) for ids in given], np.int64)))
    write_bytes(_lengths_path(folder, index), _saved(lengths))
    return index, len(documents), int(np.abs(lengths).sum())


def _saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _report(report: Callable[[str], None], result: tuple[int, int, int]) -> None:
    index, documents, tokens = result
    report(f"tokenized shard {index}: {documents:,} documents, {tokens:,} tokens")


def _tokens_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05}.tokens"


def _lengths_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05}.npy"


def _prompts_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05}.prompts.npy"

"""The data stage: addresses in, a folder of token files out, and batches from it.

    <cache>/<fingerprint>/tokenizer/        the tokenizer
    <cache>/<fingerprint>/<source>/         token files, see token_files.py
    <cache>/<fingerprint>/done.json         counts; written last
    <cache>/<fingerprint>/labels/           what teachers expect of the text, see labels.py

The fingerprint covers everything that decides the content: addresses, the names, sizes and times of the files, the
tokenizer and the split. The folder is made once, survives a kill anywhere, and is shared by all runs.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pomona.core.config import to_json
from pomona.core.errors import UserError
from pomona.core.files import disk_errors, read_json, write_json
from pomona.data.config import DataConfig, Weight, check_data
from pomona.data.labels import label_folder, open_labels
from pomona.data.loader import Batch, Batches, Records, mix, stack
from pomona.data.pack import pack
from pomona.data.sources import documents, state
from pomona.data.token_files import TokenFiles, open_token_files, token_dtype, tokenize, whole
from pomona.data.tokenizer import MODEL_FILE, load_tokenizer, train_tokenizer

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A corpus that is ready to be read."""

    config: DataConfig
    folder: Path
    tokenizer: Path
    vocab_size: int


def prepare(config: DataConfig, report: Callable[[str], None]) -> Prepared:
    """Makes the corpus's folder, or finds it. Only one process at a time does; the others wait.

    Raises:
        UserError: unreadable or empty sources, too little text for the tokenizer, a full disk.
    """
    check_data(config)
    folder = Path(config.cache) / corpus_fingerprint(config)
    with disk_errors(folder), one_at_a_time(folder, report):
        if not (folder / "done.json").exists():
            _prepare(config, folder, report)
    done = read_json(folder / "done.json")
    given = config.tokenizer.path
    return Prepared(config, folder, Path(given) if given else folder / "tokenizer", done["vocab_size"])


def corpus_fingerprint(config: DataConfig) -> str:
    """Sixteen hex digits that change with anything that would change the token files."""
    given = config.tokenizer.path
    parts = {
        "format": FORMAT,
        "sources": [[to_json(dataclasses.replace(s, weight=1.0)), state(s)] for s in config.sources],
        "tokenizer": load_tokenizer(Path(given)).fingerprint if given else to_json(config.tokenizer),
        "heldout": config.heldout_fraction,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def open_batches(
    prepared: Prepared,
    sequence_length: int,
    batch_size: int,
    seed: int,
    mixture: Sequence[Weight] = (),
    teacher: str | None = None,
) -> Batches:
    """The training batches at a sequence length.

    Args:
        mixture: replaces the sources' own weights, if any.
        teacher: the fingerprint of the teacher whose labels the batches carry.

    Raises:
        UserError: a source of the mixture is unknown, all text makes less than one batch, or labels are missing.
    """
    weights = source_weights(prepared, mixture)
    sources = [_records(prepared, name, sequence_length, heldout=False, teacher=teacher) for name in weights]
    available = sum(len(records) for records in sources)
    tokens = sum(records.files.num_tokens for records in sources)
    if available < batch_size or any(len(records) == 0 for records in sources):
        raise UserError(
            f"the corpus is smaller than one batch: {tokens:,} training tokens make {available} records of "
            f"{sequence_length} tokens, and a batch is {batch_size} records.",
            "the training text fills one batch at least, and every source one record.",
            f"more text, a smaller batch size (at most {max(available, 1)}), or a shorter sequence length.",
        )
    return mix(sources, list(weights.values()), batch_size, seed)


def source_weights(prepared: Prepared, mixture: Sequence[Weight]) -> dict[str, float]:
    """The sources that are read with a mixture, each with its positive weight.

    Raises:
        UserError: a source of the mixture is unknown.
    """
    weights = {source.name: source.weight for source in prepared.config.sources}
    if mixture:
        for item in mixture:
            if item.source not in weights:
                raise UserError(
                    f"the mixture names a source {item.source!r}.",
                    "a mixture weighs the sources of the run.",
                    "one of: " + ", ".join(weights),
                )
        weights = {item.source: item.weight for item in mixture}
    return {name: weight for name, weight in weights.items() if weight > 0}


def heldout_batches(
    prepared: Prepared, sequence_length: int, batch_size: int, max_batches: int
) -> list[Callable[[], Batch]]:
    """The held-out documents of all sources, each once, as batches made on call; the last is filled with padding.

    Raises:
        UserError: no document was held out.
    """
    rows: list[tuple[Records, int]] = []
    for source in prepared.config.sources:
        records = _records(prepared, source.name, sequence_length, heldout=True)
        rows += [(records, index) for index in range(len(records))]
    if not rows:
        raise UserError(
            "no document was held out for evaluation.",
            f"about {prepared.config.heldout_fraction:.1%} of the documents are, chosen by content.",
            "more documents, or --data.heldout-fraction 0.2",
        )
    np.random.default_rng(0).shuffle(rows)  # so that the first batches speak for all sources
    empty = np.zeros((4, sequence_length), np.int32)
    prompts = any(records.files.prompts is not None for records, _ in rows)

    def make(group: list[tuple[Records, int]]) -> Batch:
        filled = [records[index] for records, index in group]
        return stack(filled + [empty] * (batch_size - len(filled)), prompts)

    groups = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)][:max_batches]
    return [partial(make, group) for group in groups]


def _prepare(config: DataConfig, folder: Path, report: Callable[[str], None]) -> None:
    texts = lambda: (whole(text) for source in config.sources for _, text in documents(source))
    tokenizer_folder = Path(config.tokenizer.path) if config.tokenizer.path else folder / "tokenizer"
    if not any(text.strip() for text in texts()):
        raise UserError(
            "the corpus is empty: " + ", ".join(f"{s.name} at {s.address!r}" for s in config.sources) + ".",
            "at least one document has text in it.",
            "give another address, or leave the default corpus (stdlib).",
        )
    if not (tokenizer_folder / MODEL_FILE).exists() and not config.tokenizer.path:
        report(f"training a tokenizer of {config.tokenizer.vocab_size:,} pieces")
        train_tokenizer(texts(), config.tokenizer.vocab_size, config.tokenizer.sample_bytes, tokenizer_folder)
    for source in config.sources:
        tokenize(
            (text for _, text in documents(source)),
            tokenizer_folder,
            folder / source.name,
            config.heldout_fraction,
            config.workers,
            report,
        )
    vocab_size = load_tokenizer(tokenizer_folder).vocab_size
    write_json(folder / "done.json", {"vocab_size": vocab_size, "sources": to_json(config.sources)})


def token_files(prepared: Prepared, source: str, heldout: bool) -> TokenFiles:
    """The training or the held-out documents of a source."""
    return open_token_files(prepared.folder / source, token_dtype(prepared.vocab_size), heldout)


def _records(prepared: Prepared, source: str, length: int, heldout: bool, teacher: str | None = None) -> Records:
    files, labels = token_files(prepared, source, heldout), None
    if teacher is not None:
        labels = open_labels(label_folder(prepared.folder, teacher, length), source, files)
    return Records(files, pack(files.starts, files.lengths, length), length, labels)


@contextlib.contextmanager
def one_at_a_time(folder: Path, report: Callable[[str], None], among: bool = True) -> Iterator[None]:
    """One process at a time works in a folder; the kernel drops the lock of a process that dies.

    Args:
        among: whether this process is one of those that take turns; the others of its job follow it.
    """
    if not among:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"another process is preparing the same in {folder}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

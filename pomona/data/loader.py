"""Batches as a pure function of (corpus, seed, step, what is passed over), on Grain's random-access datasets.

Shapes: R rows of this process, T tokens of a record.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from pomona.data.pack import Plan
from pomona.data.token_files import TokenFiles


@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed records; every array is int32 [R, T]."""

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray  # 0 is padding; documents of a record are 1, 2, ...
    positions: np.ndarray  # restart at 0 in every document
    labels: np.ndarray | None = None  # what a teacher expects in place of the targets
    counted: np.ndarray | None = None  # 1 where a prediction counts; absent: wherever segments are above 0

    @property
    def counts(self) -> np.ndarray:
        """Where a prediction counts: above 0."""
        return self.segments if self.counted is None else self.counted


@dataclasses.dataclass(frozen=True)
class Records:
    """The packed records of one source; a random-access source for Grain. An element is int32 [4, T], or [5, T] with
    a teacher's labels."""

    files: TokenFiles
    plan: Plan
    length: int
    labels: TokenFiles | None = None  # as `files`, with a teacher's label in the place of every id

    def __len__(self) -> int:
        return self.plan.num_records

    def predictions(self, index: int) -> int:
        """How many tokens of a record are predicted; the rest is padding."""
        return int(self.plan.lengths[self.plan.records[index] : self.plan.records[index + 1]].sum())

    def __getitem__(self, index: int) -> np.ndarray:
        record = np.zeros((4 if self.labels is None else 5, self.length), np.int32)
        first, last = self.plan.records[index], self.plan.records[index + 1]
        at = 0
        for segment, piece in enumerate(range(first, last), start=1):
            size = int(self.plan.lengths[piece])
            start = int(self.plan.starts[piece])
            ids = self.files.read(start, size + 1)
            record[0, at : at + size] = ids[:-1]
            record[1, at : at + size] = ids[1:]
            record[2, at : at + size] = segment
            record[2, at : at + self._given(int(self.plan.starts[piece]), size)] *= -1  # `stack` tells them apart
            record[3, at : at + size] = np.arange(size)
            if self.labels is not None:
                record[4, at : at + size] = self.labels.read(start, size)
            at += size
        return record

    def _given(self, start: int, size: int) -> int:
        """How many of a piece's predictions are of its document's prompt."""
        if self.files.prompts is None:
            return 0
        document = int(np.searchsorted(self.files.starts, start, side="right")) - 1
        left = self.files.prompts[document] - (start - self.files.starts[document])
        return int(np.clip(left, 0, size))


@dataclasses.dataclass(frozen=True)
class Batches:
    """The training batches of one stage."""

    dataset: grain.MapDataset
    batch_size: int
    skipped: tuple[tuple[int, int], ...] = ()
    """(position, batches): from this step of the stage on, so many batches more are passed over."""
    prompts: bool = False
    """Whether any source has prompts, so that not every prediction counts."""

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        """The given rows (default: all) of the global batch of a step. The same for every number of processes."""
        wanted = range(self.batch_size) if rows is None else rows
        place = step + sum(batches for position, batches in self.skipped if step >= position)
        return stack([self.dataset[place * self.batch_size + row] for row in wanted], self.prompts)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """`Batches` as a Grain source, for its prefetching."""

    batches: Batches
    first: int
    last: int
    rows: Sequence[int]

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Batch:
        return self.batches.batch(self.first + index, self.rows)


def mix(sources: Sequence[Records], weights: Sequence[float], batch_size: int, seed: int) -> Batches:
    """Shuffles every source anew in each of its epochs and mixes them by weight, without end."""
    shuffled = [
        grain.MapDataset.source(records).shuffle(seed=(seed + 7919 * i) % 2**32).repeat()
        for i, records in enumerate(sources)
    ]
    total = sum(weights)
    one = shuffled[0] if len(shuffled) == 1 else grain.MapDataset.mix(shuffled, [w / total for w in weights])
    return Batches(one, batch_size, prompts=any(records.files.prompts is not None for records in sources))


def stream(batches: Batches, first: int, last: int, rows: Sequence[int]) -> Iterator[Batch]:
    """The batches of steps `first` to `last`, this process's rows, made ahead of time by a background thread."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    return iter(grain.MapDataset.source(_Steps(batches, first, last, rows)).to_iter_dataset(options))


def stack(records: Sequence[np.ndarray], prompts: bool = False) -> Batch:
    """Rows of [4, T], or of [5, T] with a teacher's labels, to a batch; of prompts, segments are negative in them."""
    fields = np.stack(records, axis=1)
    if not prompts:
        return Batch(*fields)
    counted = (fields[2] > 0).astype(np.int32)
    fields[2] = np.abs(fields[2])
    return dataclasses.replace(Batch(*fields), counted=counted)


def take(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch."""
    fields: dict[str, Any] = {name: None if field is None else field[rows] for name, field in vars(batch).items()}
    return Batch(**fields)

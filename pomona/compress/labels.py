"""Computing a teacher's labels of a corpus, on the mesh that the student will be trained on.

The shards of a source are taken in groups that fill several batches. Every process computes every batch with the
others, as in training, for a teacher seldom fits the devices of one process, and the mesh that trains the student holds
it; the first process writes. What is missing decides which groups are computed, never what is computed in one: a build
that was killed and goes on leaves the same bytes as one that was not.

Shapes: A micro-batches, B sequences of a micro-batch, T tokens.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from pomona.core.errors import Preempted, UserError
from pomona.core.files import disk_errors
from pomona.data.labels import (
    claim_labels,
    is_sound,
    label_dtype,
    missing_shards,
    place_labels,
    shard_records,
    write_labels,
)
from pomona.data.loader import Batch, Records, stack
from pomona.data.token_files import TokenFiles
from pomona.model.config import Execution
from pomona.model.objective import TokenBatch
from pomona.model.taught import top_tokens
from pomona.parallel import rules
from pomona.parallel.mesh import any_process, gather, same_fate
from pomona.train.begin import SHARED_SECONDS
from pomona.train.config import Stage
from pomona.train.feed import Feed
from pomona.train.signals import StopRequest
from pomona.train.teacher import Teacher
from pomona.train.watchdog import Watchdog

GROUP_BATCHES = 16  # that a group fills at least, so that the last batch's padding costs little
REPORT_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The labels of one source at one stage's sequence length: where they go, and of which documents."""

    folder: Path
    source: str
    files: TokenFiles
    stage: Stage


@dataclasses.dataclass(frozen=True)
class Builder:
    """What computes labels, and whom it tells."""

    teacher: Teacher
    execution: Execution
    mesh: Mesh
    stop: StopRequest
    watchdog: Watchdog
    report: Callable[[str], None]


def build_labels(builder: Builder, wanted: list[Wanted]) -> int:
    """Computes the labels that are not there yet, or are damaged; returns the number of predictions computed.

    Raises:
        UserError: labels of another teacher have the same key, the disk is full, or processes do not share it.
        Preempted: a signal asked to stop; the finished shards stay.
    """
    leads = jax.process_index() == 0
    with same_fate():
        for each in wanted if leads else ():
            claim_labels(each.folder, builder.teacher.run.architecture.vocab_size, about_teacher(builder.teacher))
    with same_fate():
        _see(lambda: all((each.folder / "about.json").exists() for each in wanted), wanted)
    todo = [(each, group) for each in wanted for group in _unfinished_groups(each)]
    if not todo:
        return 0
    total = sum(_predictions(each.files, group) for each, group in todo)
    builder.report(f"the teacher {builder.teacher.origin.run} labels {total:,} predictions")
    with jax.set_mesh(builder.mesh):
        builder.watchdog.compiling()
        params = builder.teacher.load(builder.mesh)
        steps = {
            each.stage: jax.jit(label_step(builder), out_shardings=rules.sharding(builder.mesh, ())) for each, _ in todo
        }
        progress = _Progress(builder, total)
        for each, group in todo:
            _build_group(each, group, lambda batch: steps[each.stage](params, batch), builder, progress)
    with same_fate():
        _see(lambda: not any(missing_shards(each.folder, each.source, each.files) for each in wanted), wanted)
    return total


def about_teacher(teacher: Teacher) -> dict[str, object]:
    """What decides labels besides the teacher's weights, the text and T."""
    return {"teacher": teacher.origin.fingerprint, "rope_base": teacher.rope_base}


def label_step(builder: Builder) -> Callable[[object, TokenBatch], jax.Array]:
    """(the teacher's parameters, batch of [A, B, T]) -> its most likely tokens, int32 [A, B, T]."""
    reading = builder.teacher.reading(builder.execution)
    return lambda params, batch: jax.lax.map(lambda micro: top_tokens(params, micro, reading), batch)  # type: ignore


def groups(files: TokenFiles, batch_tokens: int) -> list[range]:
    """Neighbouring shards that are computed together; a function of the token files and the batch alone."""
    found, first, ids = [], 0, 0
    for shard, each in enumerate(files.shards):
        ids += each.size
        if ids >= GROUP_BATCHES * batch_tokens or shard == len(files.shards) - 1:
            found.append(range(first, shard + 1))
            first, ids = shard + 1, 0
    return found


def _build_group(
    wanted: Wanted, group: range, step: Callable[[TokenBatch], jax.Array], builder: Builder, progress: "_Progress"
) -> None:
    """Computes and writes the labels of a group's shards."""
    records = [shard_records(wanted.files, shard, wanted.stage.sequence_length) for shard in group]
    labels = list(
        _label_rows([(each, i) for each in records for i in range(len(each))], wanted, step, builder, progress)
    )
    with same_fate(), disk_errors(wanted.folder):
        dtype = label_dtype(wanted.folder)
        for shard, each in zip(group, records) if jax.process_index() == 0 else ():
            rows, labels = labels[: len(each)], labels[len(each) :]
            if not is_sound(wanted.folder, wanted.source, shard):
                write_labels(wanted.folder, wanted.source, shard, place_labels(each, rows, shard, dtype))
    _stop_if_asked(builder, any_process(bool(builder.stop)))


def _label_rows(
    rows: list[tuple[Records, int]],
    wanted: Wanted,
    step: Callable[[TokenBatch], jax.Array],
    builder: Builder,
    progress: "_Progress",
) -> Iterator[np.ndarray]:
    """The labels [T] of every record, one batch behind what the devices work on."""
    size, length = wanted.stage.batch_size, wanted.stage.sequence_length
    feed, empty = Feed(builder.mesh, wanted.stage), np.zeros((4, length), np.int32)

    def batch(first: int) -> Batch:
        mine = [first + row for row in feed.rows]
        return stack([rows[i][0][rows[i][1]] if i < len(rows) else empty for i in mine])

    def fetch(first: int, computed: jax.Array) -> Iterator[np.ndarray]:
        yield from feed.take(computed)[: len(rows) - first]
        builder.watchdog.progress()
        progress.done(sum(each.predictions(i) for each, i in rows[first : first + size]))

    behind: Iterator[np.ndarray] = iter(())
    for first in range(0, len(rows), size):
        computed = step(feed.put(batch(first)))
        yield from behind
        behind = fetch(first, computed)
        _stop_if_asked(builder, jax.process_count() == 1 and bool(builder.stop))
    yield from behind


class _Progress:
    """Says now and then how far the labels are."""

    def __init__(self, builder: Builder, total: int):
        self._report, self._total, self._done = builder.report, total, 0
        self._began = self._said = time.monotonic()

    def done(self, predictions: int) -> None:
        """So many more predictions are labelled."""
        self._done += predictions
        now = time.monotonic()
        if self._done < self._total and now - self._said < REPORT_SECONDS:
            return
        self._said, seconds = now, max(now - self._began, 1e-9)
        left = (self._total - self._done) * seconds / self._done
        share, rate = self._done / self._total, self._done / seconds
        self._report(f"labels: {share:.0%} of {self._total:,}, {rate:,.0f} tokens/s, {left:,.0f} s left")


def _unfinished_groups(wanted: Wanted) -> list[range]:
    """The groups with a shard that is missing or damaged; every process reads its share of what is there."""
    found = groups(wanted.files, wanted.stage.batch_tokens)
    missing = set(missing_shards(wanted.folder, wanted.source, wanted.files))
    mine = range(jax.process_index(), len(found), jax.process_count())
    bad = np.zeros(len(found), np.float32)
    for i in mine:
        bad[i] = not all(s not in missing and is_sound(wanted.folder, wanted.source, s) for s in found[i])
    return [group for group, wrong in zip(found, gather(bad.tolist()).max(axis=0).tolist()) if wrong]


def _predictions(files: TokenFiles, group: range) -> int:
    begin, end = files.shard_starts[group.start], files.shard_starts[group.stop]
    return int((files.lengths[slice(*np.searchsorted(files.starts, [begin, end]))] - 1).sum())


def _stop_if_asked(builder: Builder, asked: bool) -> None:
    if asked:
        raise Preempted(
            f"stopped ({builder.stop.signal or 'another process was asked to'}) while labels were computed; what is "
            "finished is kept, and the same command goes on with the rest."
        )


def _see(there: Callable[[], bool], wanted: list[Wanted]) -> None:
    """Waits until this process sees what the first one has written.

    Raises:
        UserError: it does not, in as long as a network disk takes.
    """
    deadline = time.monotonic() + SHARED_SECONDS
    while not there():
        if time.monotonic() > deadline:
            raise UserError(
                f"process {jax.process_index()} does not see the labels in {wanted[0].folder}.",
                "labels are kept beside the text, and processes that distill together share that disk.",
                "--data.cache with a folder on the shared disk.",
            )
        time.sleep(0.1)

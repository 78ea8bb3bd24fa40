"""The trained model that a stage begins with, and the stage of training that it gets by default."""

import dataclasses
from pathlib import Path

from pomona.core.run_folder import Origin, RunFolder, read_config
from pomona.optim.config import Schedule
from pomona.train.config import Run, Stage, stage_of
from pomona.train.origin import check_dense, origin_of


def dense_parent(path: Path, step: int | None) -> tuple[Run, Origin]:
    """A run folder's configuration and the checkpoint that is meant, its newest by default.

    Raises:
        UserError: the folder is no run folder, has no such checkpoint, or its model is not dense.
    """
    parent = read_config(RunFolder(path), Run)
    check_dense(path)
    return parent, origin_of(path, step)


def stage_like_first(parent: Run, origin: Origin, name: str, share: float, least_steps: int) -> Stage:
    """A stage on the batches of the parent's first stage, a share of its length, at the parent's own rotary base.

    Its learning rate is a tenth of the first stage's, without weight decay.
    """
    first = parent.stages[0]
    steps = max(least_steps, round(share * first.steps))
    rate = 0.1 * first.schedule.peak_learning_rate
    schedule = Schedule(rate, weight_decay=0.0, warmup_steps=max(1, steps // 20), floor=0.1)
    rope_base = stage_of(parent, origin.step).rope_base
    return dataclasses.replace(first, name=name, steps=steps, schedule=schedule, rope_base=rope_base)

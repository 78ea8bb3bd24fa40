"""Recovery: a low-rank adapter, trained on a palettized base that stays as it is (afm-recipe section 8).

It is a run by the one loop, with `LowRank` as its objective: this file only says which run.
"""

import dataclasses
from pathlib import Path

from pomona.core.run_folder import RunFolder, read_config
from pomona.optim.config import Schedule
from pomona.train.config import Run, Stage, stage_of, total_tokens
from pomona.train.objective_config import LowRank
from pomona.train.origin import check_palettized, origin_of

TOKEN_SHARE = 0.0015
"""Of the tokens that the base was trained on (afm-recipe section 8)."""
LEAST_STEPS = 60
"""What a small model needs, whose 0.15 % are a step or two: docs/benchmarks/compress.md."""
PEAK_LEARNING_RATE = 3e-3
"""Of AdaStar: docs/adapters.md has what was tried."""


def recovery_run(source: Path, rank: int | None = None) -> Run:
    """The run that trains a recovery adapter for a palettized run folder.

    Data, mesh, rotary base and the shape of the batches are those of the stage that the palettized checkpoint ended in.
    There is no weight decay: it would pull the adapter towards zero, and so the model back to what palettizing lost.

    Raises:
        UserError: `source` is no palettized run folder.
    """
    run = read_config(RunFolder(source), Run)
    check_palettized(source, "recovery trains what palettizing has lost back into an adapter.")
    last = stage_of(run, origin_of(source).step)
    steps = max(LEAST_STEPS, round(TOKEN_SHARE * total_tokens(run) / last.batch_tokens))
    objective = LowRank() if rank is None else LowRank(rank=rank)
    return adapter_run(run, source, f"{source.name}-recovered", objective, adapter_stage(last, "recover", steps))


def adapter_stage(last: Stage, name: str, steps: int) -> Stage:
    """A stage of so many steps with the batches of another one: a short warm-up, then a cosine down to zero."""
    schedule = Schedule(PEAK_LEARNING_RATE, weight_decay=0.0, warmup_steps=max(1, steps // 10), floor=0.0)
    return dataclasses.replace(last, name=name, steps=steps, schedule=schedule)


def adapter_run(run: Run, source: Path, name: str, objective: LowRank, stage: Stage) -> Run:
    """A run like another one that trains an adapter from its folder in one stage, and keeps to its own disk."""
    checkpoint = dataclasses.replace(run.checkpoint, remote=None)  # that address is the source's own
    return dataclasses.replace(
        run, name=name, objective=objective, origin=origin_of(source), stages=(stage,), checkpoint=checkpoint
    )

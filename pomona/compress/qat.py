"""2-bit quantization-aware training: a run of the one loop that begins at a trained model and ends on the grid."""

import dataclasses
from pathlib import Path

from pomona.compress.parent import dense_parent, stage_like_first
from pomona.train.config import Run
from pomona.train.objective_config import BalancedGrid

STEPS_SHARE, LEAST_STEPS = 0.1, 100  # of the parent's first stage; Apple does not say how long it trained so


def grid_run(path: Path, step: int | None = None) -> Run:
    """The run that trains a model on the 2-bit grid; overrides change its fields.

    Raises:
        UserError: the folder is no run folder, has no such checkpoint, or its model is not dense.
    """
    parent, origin = dense_parent(path, step)
    return dataclasses.replace(
        parent,
        name=f"{parent.name}-2bit",
        stages=(stage_like_first(parent, origin, "2bit", STEPS_SHARE, LEAST_STEPS),),
        objective=BalancedGrid(),
        origin=origin,
        checkpoint=dataclasses.replace(parent.checkpoint, remote=None),
    )

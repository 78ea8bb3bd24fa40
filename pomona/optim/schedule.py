"""The shape of a stage's schedule: a multiplier in [0, 1] of the learning rate and of the weight decay."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomona.optim.config import Schedule


def multiplier(schedule: Schedule, step: Any, total_steps: int) -> Any:
    """The schedule at `step` of a stage of `total_steps` steps (afm-recipe section 5).

    Updates count from 1: the first of a stage uses step 1, the warm-up reaches 1 at `warmup_steps`, and the
    last, at `total_steps`, is exactly at the floor. Step 0 is where the warm-up rises from.

    Args:
        step: a number, or an array, traced or not.

    Returns:
        A number for a number, an array for an array.
    """
    xp: Any = jnp if isinstance(step, jax.Array) else np
    rise = xp.minimum(1.0, step / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    if schedule.shape == "constant":
        return rise * xp.ones_like(step, dtype=float)
    progress = xp.clip((step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps), 0.0, 1.0)
    cosine = 0.5 * (1.0 + xp.cos(math.pi * progress))
    # As a sum of two shares, so that the ends are the peak and the floor to the last bit.
    return rise * (cosine + schedule.floor * (1.0 - cosine))


def learning_rate(schedule: Schedule, step: Any, total_steps: int) -> Any:
    """The learning rate that update number `step` (from 1) of a stage uses."""
    return schedule.peak_learning_rate * multiplier(schedule, step, total_steps)

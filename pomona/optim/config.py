"""How a model is optimized: the schedule of a stage, and the constants of AdaStar or AdamW. No JAX."""

import dataclasses
import math
from typing import Literal

from pomona.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One stage's learning rate: a linear warm-up, then a cosine down to `floor`, or a constant.

    The defaults are AFM's core stage (afm-recipe section 4; AFM report, section 3.2).
    """

    peak_learning_rate: float = 0.01
    weight_decay: float = 3.16e-4
    """Decoupled: the share of itself that every parameter loses per step, times the schedule's shape."""
    warmup_steps: int = 5000
    floor: float = 0.005
    """Where the cosine ends, as a fraction of the peak. A constant schedule does not use it."""
    shape: Literal["cosine", "constant"] = "cosine"


@dataclasses.dataclass(frozen=True)
class AdaStar:
    """AFM's RMSProp with momentum (AFM report, section 3.2; constants as in AXLearn's public configs)."""

    kind: Literal["adastar"] = "adastar"
    first_moment_decay: float = 0.95
    second_moment_decay: float = 0.95
    squared_gradient_epsilon: float = 1e-30
    """Added to every squared gradient before it is averaged."""
    skip_norm: float = 100.0
    """A step whose gradient norm is not below this, or is not finite, is skipped whole."""
    clip_norm: float = 1.0
    """The largest global norm a gradient keeps."""
    clip_block_rms: float = 1.0
    """The largest root mean square that the normalized gradient of one layer's one tensor keeps."""
    mup_base_width: int = 768
    """Linear layers of wider models learn slower by this over the model's width."""


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, under the same schedule and width rule as AdaStar: the comparison.

    Weight decay follows the schedule's shape and not the learning rate, as Loshchilov and Hutter defined it
    ("Decoupled Weight Decay Regularization", algorithm 2), so that one `Schedule` means the same in both.
    """

    kind: Literal["adamw"] = "adamw"
    first_moment_decay: float = 0.9
    second_moment_decay: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    mup_base_width: int = 768


def check_schedule(schedule: Schedule, total_steps: int, path: str = "schedule") -> None:
    """Raises `UserError` for a schedule that a stage of `total_steps` cannot follow; `path` names it."""
    rate, decay = schedule.peak_learning_rate, schedule.weight_decay
    if not (math.isfinite(rate) and rate > 0):
        raise _wrong(path, "peak_learning_rate", rate, "a learning rate is a positive number.", "0.01")
    if not 0 <= decay < 1:
        raise _wrong(path, "weight_decay", decay, "it is a share of every weight: 0 to below 1.", "3.16e-4")
    if not 0 <= schedule.floor <= 1:
        raise _wrong(path, "floor", schedule.floor, "the floor is a fraction of the peak: 0 to 1.", "0.005")
    if not 0 <= schedule.warmup_steps < total_steps:
        rule = f"the warm-up is shorter than its stage of {total_steps} steps, and not negative."
        raise _wrong(path, "warmup_steps", schedule.warmup_steps, rule, str(max(0, total_steps // 10)))


def check_optimizer(optimizer: AdaStar | AdamW, path: str = "optimizer") -> None:
    """Raises `UserError` for constants that are no optimizer."""
    for field in dataclasses.fields(optimizer):
        name, value = field.name, getattr(optimizer, field.name)
        if name.endswith("_decay") and not 0 < value < 1:
            raise _wrong(path, name, value, "a moving average keeps a share between 0 and 1.", str(field.default))
        if not isinstance(value, str) and not value > 0:
            raise _wrong(path, name, value, "it is a positive number.", str(field.default))


def _wrong(path: str, field: str, value: float, rule: str, example: str) -> UserError:
    return UserError(f"{path}.{field} is {value}.", rule, f"--{path}.{field.replace('_', '-')} {example}")

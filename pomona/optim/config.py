"""Optimizers and schedules as data. No JAX."""

import dataclasses
from typing import Literal

from pomona.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine decay to a floor (AFM report, section 3.2)."""

    peak_learning_rate: float = 0.01
    warmup_steps: int = 5000
    floor: float = 0.005
    """The last step's multiplier, as a fraction of the peak."""
    weight_decay: float = 3.16e-4
    """Decoupled; scaled by the schedule, not by the learning rate."""
    shape: Literal["cosine", "constant"] = "cosine"


@dataclasses.dataclass(frozen=True)
class AdaStar:
    """Apple's RMSProp with momentum (AFM report, section 3.2; constants from AXLearn's public configs)."""

    kind: Literal["adastar"] = "adastar"
    momentum: float = 0.95
    second_moment: float = 0.95
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    skip_norm: float = 100.0
    """A step whose gradient norm reaches this, or is not finite, changes nothing."""
    update_rms: float = 1.0
    """Each layer's update of each tensor is scaled down to this root mean square."""
    mup_base_width: int = 768
    """Linear layers learn at base width / model width of the learning rate (muP, simple form)."""


@dataclasses.dataclass(frozen=True)
class AdamW:
    """The common optimizer, for comparison, with the same schedule and skip rule."""

    kind: Literal["adamw"] = "adamw"
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    skip_norm: float = 100.0


def check_schedule(schedule: Schedule, steps: int, name: str) -> None:
    """Raises `UserError` for a schedule that does not fit a stage of `steps` steps."""
    if not 0 <= schedule.warmup_steps <= steps:
        raise UserError(
            f"stage {name!r} warms up for {schedule.warmup_steps} of its {steps} steps.",
            "the warm-up is part of the stage.",
            f"a warm-up of {max(1, steps // 20)} steps, or a longer stage.",
        )
    if schedule.peak_learning_rate <= 0 or not 0 <= schedule.floor <= 1 or schedule.weight_decay < 0:
        raise UserError(
            f"stage {name!r}: learning rate {schedule.peak_learning_rate}, floor {schedule.floor}, "
            f"weight decay {schedule.weight_decay}.",
            "the learning rate is positive, the floor a fraction from 0 to 1, the decay not negative.",
            "the schedule of recipe tiny is a start: pomona recipes tiny",
        )

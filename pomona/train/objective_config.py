"""What a run trains, and by which loss, as data. No JAX.

`train.objectives` turns each kind into what the loop runs.
"""

import dataclasses
from typing import Literal

from pomona.core.errors import UserError
from pomona.core.run_folder import Origin
from pomona.model.config import Architecture


@dataclasses.dataclass(frozen=True)
class NextToken:
    """All weights of the decoder, by the cross-entropy of the next token: pre-training."""

    kind: Literal["next-token"] = "next-token"


@dataclasses.dataclass(frozen=True)
class SoftTopK:
    """Masks over the hidden units of every feed-forward block, by the cross-entropy of the next token: pruning.

    The budget falls from all units to `ffn`, then the temperature falls, then the masks are hard (afm-recipe section
    6). All shares are of the stage's updates.
    """

    ffn: int
    """Units that each layer keeps."""
    kind: Literal["soft-top-k"] = "soft-top-k"
    train_weights: bool = False
    """Whether the weights are trained along; otherwise they stay the origin's."""
    start: Literal["activation", "magnitude", "zeros"] = "activation"
    """What the scores begin with: the logarithm of a unit's importance, in standard deviations of its layer."""
    score_rate: float = 50.0
    """How much faster the scores move than their learning rate says, so that one stage can reorder units."""
    narrow_until: float = 0.5
    """From here on the budget is `ffn`."""
    cool_until: float = 0.9
    """From here on the masks are hard."""
    hot: float = 1.0
    """The temperature while the budget falls, in the scores' unit."""
    cold: float = 0.01
    """The temperature just before the masks are hard."""


@dataclasses.dataclass(frozen=True)
class BalancedGrid:
    """All weights of the decoder, the linear ones snapped to the 2-bit grid s * {-1.5, -0.5, 0.5, 1.5} wherever they
    are used: quantization-aware training (AFM 2025 report)."""

    kind: Literal["balanced-grid"] = "balanced-grid"
    first_factor: float = 1.0
    """A row's scale s is its root mean square times a factor that is learned; here is where it begins."""


ObjectiveConfig = NextToken | SoftTopK | BalancedGrid


def check_objective(objective: ObjectiveConfig, origin: Origin | None, architecture: Architecture) -> None:
    """Raises `UserError` for an objective that a decoder of this shape cannot be trained by."""
    if isinstance(objective, SoftTopK):
        _check_masks(objective, origin, architecture)
    if isinstance(objective, BalancedGrid):
        if origin is None:
            raise UserError(
                "the run trains on a 2-bit grid and has no origin.",
                "a model is trained in full precision first.",
                "pomona qat RUN",
            )
        if not 0 < objective.first_factor < 10:
            raise UserError(
                f"objective.first_factor is {objective.first_factor}.",
                "a scale begins at a row's root mean square times a factor above 0 and below 10.",
                "--objective.first-factor 1",
            )


def _check_masks(objective: SoftTopK, origin: Origin | None, architecture: Architecture) -> None:
    if origin is None:
        raise UserError(
            "the run learns masks and has no origin.",
            "a model is pruned that was trained before.",
            "pomona prune PARENT --ffn K",
        )
    if not 1 <= objective.ffn < architecture.ffn_dim:
        raise UserError(
            f"objective.ffn is {objective.ffn}.",
            f"a pruned model keeps at least 1 and fewer than the {architecture.ffn_dim} units of its parent.",
            f"--ffn {max(1, architecture.ffn_dim // 2)}",
        )
    shares = 0 < objective.narrow_until <= objective.cool_until <= 1
    if not shares or not 0 < objective.cold <= objective.hot or not objective.score_rate > 0:
        raise UserError(
            f"the masks narrow until {objective.narrow_until}, cool until {objective.cool_until} from {objective.hot} "
            f"to {objective.cold}, at a score rate of {objective.score_rate}.",
            "0 < narrow_until <= cool_until <= 1, 0 < cold <= hot, and the rate is positive.",
            "--objective.narrow-until 0.5 --objective.cool-until 0.9 --objective.hot 1 --objective.cold 0.01",
        )

"""What a run trains, and by which loss, as data. No JAX.

`train.objectives` turns each kind into what the loop runs.
"""

import dataclasses
from typing import Literal

from pomona.core.errors import UserError
from pomona.core.run_folder import Origin


@dataclasses.dataclass(frozen=True)
class NextToken:
    """All weights of the decoder, by the cross-entropy of the next token: pre-training."""

    kind: Literal["next-token"] = "next-token"


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Low-rank corrections of the seven linear weights of every layer; the base, the run's origin, is not changed."""

    kind: Literal["low-rank"] = "low-rank"
    rank: int = 16
    alpha: float = 16.0
    """The correction is alpha / rank * (x A) B, so that one learning rate suits every rank."""
    start: Literal["error", "zero", "adapter"] = "error"
    """error: the best correction of what palettizing the origin has lost. zero: B is zero, so that training begins at
    the origin itself. adapter: the origin's adapter, on the origin's base."""


ObjectiveConfig = NextToken | LowRank


def check_objective(objective: ObjectiveConfig, origin: Origin | None) -> None:
    """Raises `UserError` for an objective that cannot be meant."""
    if isinstance(objective, LowRank):
        if objective.rank < 1 or not objective.alpha > 0:
            raise UserError(
                f"the adapter has rank {objective.rank} and alpha {objective.alpha}.",
                "the rank is at least 1, and alpha is positive.",
                "--objective.rank 16 --objective.alpha 16",
            )
        if origin is None:
            raise UserError(
                "an adapter is trained without an origin.",
                "low-rank corrections belong to a model that is there already.",
                "pomona recover RUN, or pomona adapt RUN --data task.jsonl",
            )

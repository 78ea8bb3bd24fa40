"""What a run trains, and by which loss, as data. No JAX.

`train.objectives` turns each kind into what the loop runs.
"""

import dataclasses
from typing import Annotated, Literal

import tyro

from pomona.core.errors import UserError
from pomona.core.run_folder import Origin
from pomona.model.config import Architecture


@dataclasses.dataclass(frozen=True)
class NextToken:
    """All weights of the decoder, by the cross-entropy of the next token: pre-training."""

    kind: Literal["next-token"] = "next-token"


@dataclasses.dataclass(frozen=True)
class Distillation:
    """All weights of the decoder, by what a teacher expects: a second model with the same tokenizer."""

    teacher: Annotated[Origin | None, tyro.conf.AvoidSubcommands] = None
    """The checkpoint that teaches; `pomona distill --teacher RUN` names it."""
    target: Literal["top1", "logits"] = "top1"
    """top1: the teacher's most likely token, computed once and kept beside the text. logits: its whole distribution,
    for which the teacher computes along in every step."""
    share: float = 0.9
    """Of the target that is the teacher's; the label has the rest."""
    temperature: float = 1.0
    """At which both distributions are compared; of `logits` alone."""
    stages: int = 1
    """So many of the first stages are distilled; the later ones learn from the text alone."""
    kind: Literal["distillation"] = "distillation"


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


ObjectiveConfig = NextToken | Distillation | SoftTopK | BalancedGrid | LowRank


def check_objective(
    objective: ObjectiveConfig, origin: Origin | None, architecture: Architecture, num_stages: int
) -> None:
    """Raises `UserError` for an objective that a decoder of this shape cannot be trained by in so many stages."""
    if isinstance(objective, Distillation):
        _check_distillation(objective, num_stages)
    if isinstance(objective, SoftTopK):
        _check_masks(objective, origin, architecture)
    if isinstance(objective, LowRank):
        _check_low_rank(objective, origin)
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


def _check_distillation(objective: Distillation, num_stages: int) -> None:
    if not 0 < objective.share <= 1 or not objective.temperature > 0:
        raise UserError(
            f"objective.share is {objective.share}, objective.temperature {objective.temperature}.",
            "the teacher has a share of the target, above 0 and at most 1; a temperature is above 0.",
            "--objective.share 0.9 --objective.temperature 1",
        )
    if objective.temperature != 1 and objective.target == "top1":
        raise UserError(
            f"objective.temperature is {objective.temperature}, and the target is the teacher's most likely token.",
            "a temperature smooths distributions; the most likely token has none.",
            "--objective.target logits",
        )
    if not 1 <= objective.stages <= num_stages:
        raise UserError(
            f"objective.stages is {objective.stages}, and the run has {num_stages}.",
            "the teacher teaches in the first stage at least.",
            "--objective.stages 1",
        )


def _check_low_rank(objective: LowRank, origin: Origin | None) -> None:
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


def check_teacher(objective: ObjectiveConfig) -> None:
    """Raises `UserError` for a distillation without a teacher, as recipes state it: it can be planned, not trained."""
    if isinstance(objective, Distillation) and objective.teacher is None:
        raise UserError(
            "this run is distilled, and no teacher is named.",
            "a student learns from the checkpoint of another run.",
            "pomona distill RECIPE --teacher RUN",
        )


def label_teacher(objective: ObjectiveConfig) -> str | None:
    """The fingerprint of the teacher whose labels a batch carries; None where it carries none."""
    wanted = isinstance(objective, Distillation) and objective.target == "top1" and objective.teacher
    return wanted.fingerprint if wanted else None


def in_use(objective: ObjectiveConfig) -> ObjectiveConfig:
    """What a checkpoint is by, once nobody trains it: a distilled model no longer needs its teacher."""
    return NextToken() if isinstance(objective, Distillation) else objective


def in_stage(objective: ObjectiveConfig, index: int) -> ObjectiveConfig:
    """What is left of an objective in one stage of a run."""
    later = isinstance(objective, Distillation) and index >= objective.stages
    return NextToken() if later else objective

"""What a run trains, and by which loss, as data. No JAX.

`train.objectives` turns each kind into what the loop runs.
"""

import dataclasses
from typing import Annotated, Literal

import tyro

from pomona.core.errors import UserError
from pomona.core.run_folder import Origin


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


ObjectiveConfig = NextToken | Distillation


def check_distillation(objective: ObjectiveConfig, num_stages: int) -> None:
    """Raises `UserError` for an objective that cannot be meant."""
    if not isinstance(objective, Distillation):
        return
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

"""Distillation as an objective: pre-training whose targets are partly a teacher's (AFM report, section 3.2.1).

    top1     share * onehot(teacher's most likely token) + (1 - share) * onehot(label), as cross-entropy: the paper's
    logits   share * t^2 * KL(teacher || student, both at temperature t) + (1 - share) * cross-entropy of the label

Either with the z-loss. The teacher's most likely tokens come with the batch (`data.labels`); for its whole distribution
it is kept frozen beside the student, on the same mesh, and reads every batch too.
"""

from collections.abc import Callable
from typing import Any

import jax

from pomona.core.errors import UserError
from pomona.model.config import Execution
from pomona.model.decoder import Decoder, parameter_specs
from pomona.model.objective import LossSums, TokenBatch, next_token_loss
from pomona.model.taught import Reading, divergence_loss
from pomona.train.config import Run
from pomona.train.objective import Objective
from pomona.train.objective_config import Distillation
from pomona.train.origin import begin_at
from pomona.train.teacher import open_teacher


def distillation(run: Run, config: Distillation, objective_of: Callable[[Run], Objective]) -> Objective:
    """The objective of a stage that is distilled.

    Raises:
        UserError: `logits` and no teacher, or none that can be read.
    """
    specs = parameter_specs(run.architecture)
    begin = begin_at(run.origin, specs) if run.origin else None
    common: Any = {"trained": specs, "begin": begin, "model": lambda params, _, done: params}
    if config.target == "top1":

        def from_labels(
            params: Decoder, _: None, batch: TokenBatch, done: jax.Array, execution: Execution, rope_base: float
        ) -> LossSums:
            assert batch.labels is not None
            return next_token_loss(params, batch, run.architecture, execution, rope_base, config.share)

        return Objective(loss=from_labels, labels=True, **common)
    if config.teacher is None:
        raise UserError(
            "objective.target is 'logits', and no teacher is named.",
            "the teacher computes along, so nothing can be said of the run before it is known.",
            "pomona distill RECIPE --teacher RUN --objective.target logits",
        )
    teacher = open_teacher(config.teacher, objective_of)

    def from_logits(
        params: Decoder, frozen: Decoder, batch: TokenBatch, done: jax.Array, execution: Execution, rope_base: float
    ) -> LossSums:
        student = params, Reading(run.architecture, execution, rope_base)
        return divergence_loss(student, (frozen, teacher.reading(execution)), batch, config.share, config.temperature)

    return Objective(loss=from_logits, frozen=teacher.shapes(), load_frozen=teacher.load, **common)

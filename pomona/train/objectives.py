"""From what a run asks for to the `Objective` that the loop trains by."""

import jax

from pomona.model.config import Execution
from pomona.model.decoder import Decoder, parameter_specs
from pomona.model.objective import LossSums, TokenBatch, next_token_loss
from pomona.train.config import Run
from pomona.train.objective import Objective
from pomona.train.origin import begin_at


def objective_of(run: Run) -> Objective:
    """The objective of a run."""
    return next_token(run)


def next_token(run: Run) -> Objective:
    """Pre-training: the decoder is what is trained, from its origin where it has one."""

    def loss(
        params: Decoder, _: None, batch: TokenBatch, done: jax.Array, execution: Execution, rope_base: float
    ) -> LossSums:
        return next_token_loss(params, batch, run.architecture, execution, rope_base)

    specs = parameter_specs(run.architecture)
    begin = begin_at(run.origin, specs) if run.origin else None
    return Objective(trained=specs, model=lambda params, _, done: params, loss=loss, begin=begin)

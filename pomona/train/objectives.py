"""From what a run asks for to the `Objective` that the loop trains by."""

import jax

from pomona.model.config import Execution
from pomona.model.decoder import Decoder, parameter_specs
from pomona.model.objective import LossSums, TokenBatch, next_token_loss
from pomona.train.balanced_grid import on_grid
from pomona.train.config import Run
from pomona.train.distillation import distillation
from pomona.train.low_rank import low_rank
from pomona.train.objective import Objective
from pomona.train.objective_config import BalancedGrid, Distillation, LowRank, SoftTopK
from pomona.train.origin import begin_at
from pomona.train.soft_top_k import learned_masks


def objective_of(run: Run) -> Objective:
    """The objective of a run; of one of its stages, where `at_stage` gave it.

    Raises:
        UserError: it reads another run, which cannot be read.
    """
    if isinstance(run.objective, Distillation):
        return distillation(run, run.objective, objective_of)
    if isinstance(run.objective, SoftTopK):
        return learned_masks(run)
    if isinstance(run.objective, BalancedGrid):
        return on_grid(run)
    if isinstance(run.objective, LowRank):
        return low_rank(run, objective_of)
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

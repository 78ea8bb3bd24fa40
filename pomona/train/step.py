"""One optimizer step, and one evaluation step, as functions to be compiled.

Shapes: A micro-batches, B sequences of a micro-batch, T tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pomona.model.objective import LossSums, TokenBatch, next_token_loss
from pomona.optim.build import measure, stage_updates
from pomona.train.config import Run, Stage, at_stage
from pomona.train.objectives import objective_of
from pomona.train.state import TrainState, stage_optimizer


def train_step(run: Run, index: int) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The step of stage `index` of a decided run: (state, batch of [A, B, T], frozen) -> (new state, float32 scalars).

    `frozen` is what the objective only reads; most have nothing of the kind.
    """
    run, stage = at_stage(run, index), run.stages[index]
    optimizer, objective = stage_optimizer(run, index), objective_of(run)

    def step(state: TrainState, batch: TokenBatch, frozen: Any = None) -> tuple[TrainState, dict[str, jax.Array]]:
        done = share_done(state, stage)

        def loss(params: Any, batch: TokenBatch, total_tokens: jax.Array) -> tuple[jax.Array, LossSums]:
            sums = objective.loss(params, frozen, batch, done, run.execution, stage.rope_base)
            return sums.total / total_tokens, sums

        gradient = jax.grad(loss, has_aux=True)
        total_tokens = jnp.maximum(jnp.sum(batch.counts > 0), 1).astype(jnp.float32)
        if batch.tokens.shape[0] == 1:
            gradients, sums = gradient(state.params, jax.tree.map(lambda x: x[0], batch), total_tokens)
        else:

            def add(carry: Any, micro: TokenBatch) -> tuple[Any, None]:
                more = gradient(state.params, micro, total_tokens)
                return jax.tree.map(jnp.add, carry, more), None

            zeros = jax.tree.map(jnp.zeros_like, state.params), LossSums(*[jnp.zeros((), jnp.float32)] * 4)
            (gradients, sums), _ = jax.lax.scan(add, zeros, batch)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        about = {
            "loss": sums.nll / total_tokens,
            "z_loss": sums.z / total_tokens,
            "tokens": total_tokens,
            **measure(gradients, optimizer_state, run.optimizer, stage.schedule, stage.steps),
        }
        return TrainState(params, optimizer_state), about  # type: ignore[arg-type]

    return step


def share_done(state: TrainState, stage: Stage) -> jax.Array:
    """The share of a stage's updates that are in its state, a float32 scalar."""
    return stage_updates(state.optimizer).astype(jnp.float32) / stage.steps


def evaluation_step(run: Run, index: int) -> Callable[..., jax.Array]:
    """In stage `index`, a function (state, batch of [A, B, T], frozen) -> the sum of nats over the batch's targets."""
    run, stage = at_stage(run, index), run.stages[index]
    objective = objective_of(run)

    def step(state: TrainState, batch: TokenBatch, frozen: Any = None) -> jax.Array:
        params = objective.model(state.params, frozen, share_done(state, stage))

        def nats(micro: TokenBatch) -> jax.Array:
            return next_token_loss(params, micro, run.architecture, run.execution, stage.rope_base).nll

        return jnp.sum(jax.lax.map(nats, batch))

    return step

"""One optimizer step, and one evaluation step, as functions to be compiled.

Shapes: A micro-batches, B sequences of a micro-batch, T tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pomona.model.objective import LossSums, TokenBatch, next_token_loss
from pomona.optim.build import measure
from pomona.train.config import Run, at_stage
from pomona.train.state import TrainState, stage_optimizer

BATCH_AXES = (None, "batch", "tokens")  # of the arrays [A, B, T]


def train_step(run: Run, index: int) -> Callable[[TrainState, TokenBatch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step of stage `index` of a decided run: (state, batch of [A, B, T]) -> (new state, float32 scalars)."""
    run, stage = at_stage(run, index), run.stages[index]
    optimizer = stage_optimizer(run, index)

    def loss(params: Any, batch: TokenBatch, total_tokens: jax.Array) -> tuple[jax.Array, LossSums]:
        sums = next_token_loss(params, batch, run.architecture, run.execution, stage.rope_base)
        return sums.total / total_tokens, sums

    gradient = jax.grad(loss, has_aux=True)

    def step(state: TrainState, batch: TokenBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        total_tokens = jnp.maximum(jnp.sum(batch.segments > 0), 1).astype(jnp.float32)
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


def evaluation_step(run: Run, index: int) -> Callable[[Any, TokenBatch], jax.Array]:
    """In stage `index`, a function (parameters, batch of [A, B, T]) -> the sum of nats over the batch's targets."""
    run, stage = at_stage(run, index), run.stages[index]

    def step(params: Any, batch: TokenBatch) -> jax.Array:
        def nats(micro: TokenBatch) -> jax.Array:
            return next_token_loss(params, micro, run.architecture, run.execution, stage.rope_base).nll

        return jnp.sum(jax.lax.map(nats, batch))

    return step

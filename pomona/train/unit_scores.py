"""What a hidden unit of a feed-forward block contributes, at one look: what learned masks begin with, and the one-shot
ways of pruning that they are compared with.

Shapes: L layers, D model, F feed-forward, A micro-batches, B sequences, T tokens.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pomona.data.prepare import open_batches, prepare
from pomona.model.config import Execution
from pomona.model.decoder import Decoder
from pomona.model.objective import TokenBatch, unit_sums
from pomona.parallel import rules
from pomona.train.config import Run, at_stage
from pomona.train.feed import Feed
from pomona.train.objective_config import SoftTopK

BATCHES = 4
"""Batches of the stage's mixture that activations are averaged over."""


def scores_of(run: Run, weights: Decoder, mesh: Mesh) -> jax.Array:
    """The scores that a run's masks begin with, float32 [L, F], the same on every device."""
    assert isinstance(run.objective, SoftTopK)
    everywhere = rules.sharding(mesh, ("layers", None))
    if run.objective.start == "zeros":
        shape = run.architecture.num_layers, run.architecture.ffn_dim
        return jax.device_put(jnp.zeros(shape), everywhere)
    found = magnitude(weights, mesh) if run.objective.start == "magnitude" else activation(run, weights, mesh)
    return jax.jit(_standardized, out_shardings=everywhere)(found)


def magnitude(weights: Decoder, mesh: Mesh) -> jax.Array:
    """The product of the norms of a unit's gate, up and down vectors, float32 [L, F]."""
    ffn = weights.layers.ffn
    norms = lambda ffn: _norm(ffn.gate, 1) * _norm(ffn.up, 1) * _norm(ffn.down, 2)
    return jax.jit(norms, out_shardings=rules.sharding(mesh, ("layers", None)))(ffn)


def activation(run: Run, weights: Decoder, mesh: Mesh) -> jax.Array:
    """The mean absolute value of a unit over some batches, times the norm of its down vector, float32 [L, F].

    The batches are the first of the run's first stage, whatever the mesh.
    """
    stage, execution = run.stages[0], at_stage(run, 0).execution
    prepared = prepare(run.data, lambda _: None)
    batches = open_batches(prepared, stage.sequence_length, stage.batch_size, run.seed, stage.mixture)
    feed = Feed(mesh, stage)
    everywhere = rules.sharding(mesh, ("layers", None))
    with jax.set_mesh(mesh):
        sums = jax.jit(partial(_sums, run, execution, stage.rope_base), out_shardings=everywhere)
        total = sum(sums(weights, feed.put(batches.batch(step, feed.rows))) for step in range(BATCHES))
        return jax.jit(lambda s, down: s * _norm(down, 2), out_shardings=everywhere)(total, weights.layers.ffn.down)


def _sums(run: Run, execution: Execution, rope_base: float, weights: Decoder, batch: TokenBatch) -> jax.Array:
    one = lambda micro: unit_sums(weights, micro, run.architecture, execution, rope_base)
    return jnp.sum(jax.lax.map(one, batch), axis=0)


def _norm(weight: jax.Array, axis: int) -> jax.Array:
    return jnp.sqrt(jnp.sum(weight * weight, axis=axis))


def _standardized(importance_LF: jax.Array) -> jax.Array:
    logs = jnp.log(jnp.maximum(importance_LF, 1e-30))
    mean, deviation = jnp.mean(logs, -1, keepdims=True), jnp.std(logs, -1, keepdims=True)
    return (logs - mean) / jnp.maximum(deviation, 1e-6)

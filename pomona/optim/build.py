"""From an optimizer's configuration to an optax transformation, and what a loop asks about its state.

A run has one state through all its stages. Each stage builds its own transformation, since its schedule
differs, and calls `start_stage` on the state first.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pomona.optim.adamw import adamw
from pomona.optim.adastar import AdaStarState, adastar, global_norm
from pomona.optim.config import AdamW, AdaStar, Schedule, check_optimizer, check_schedule
from pomona.optim.schedule import learning_rate


def build(
    optimizer: AdaStar | AdamW, schedule: Schedule, total_steps: int, specs: Any, model_dim: int
) -> optax.GradientTransformation:
    """The transformation of one stage; `update(gradients, state, params)` returns what to add to `params`.

    Raises:
        UserError: a constant of the optimizer or of the schedule is impossible.
    """
    check_optimizer(optimizer)
    check_schedule(schedule, total_steps)
    if isinstance(optimizer, AdaStar):
        return adastar(optimizer, schedule, total_steps, specs, model_dim)
    return adamw(optimizer, schedule, total_steps, specs, model_dim)


def start_stage(state: Any) -> Any:
    """The same state at the start of a stage: the schedule begins again, moments and debiasing go on."""
    return _map_schedule(state, jnp.zeros_like)


def stage_updates(state: Any) -> jax.Array:
    """The number of updates applied in this stage, an int32 scalar: skipped steps do not count."""
    counts: list[jax.Array] = []

    def note(count: jax.Array) -> jax.Array:
        counts.append(count)
        return count

    _map_schedule(state, note)
    return counts[0]


def state_shardings(
    transformation: optax.GradientTransformation, params: Any, parameter_shardings: Any, replicated: Any
) -> Any:
    """The sharding of every leaf of `transformation.init(params)`: moments lie where their parameters lie.

    Args:
        params: arrays, or `ShapeDtypeStruct`s (`model.spec.abstract`).
        parameter_shardings: the parameters' tree with a sharding per leaf.
        replicated: the sharding of the counters.
    """
    state = jax.eval_shape(transformation.init, params)
    return optax.tree_utils.tree_map_params(
        transformation,
        lambda _, sharding: sharding,
        state,
        parameter_shardings,
        transform_non_params=lambda _: replicated,
    )


def measure(
    gradients: Any, state: Any, optimizer: AdaStar | AdamW, schedule: Schedule, total_steps: int
) -> dict[str, jax.Array]:
    """What the loop logs of an update, as scalars; call it in the update's jit with the state it returned.

    The norm is the same expression as in the update, so that XLA computes it once; the update's size is read
    off the stored momentum, which costs one read of it.

    Returns:
        gradient_norm: before clipping.
        learning_rate: of the last update that was applied.
        skipped: 1.0 if this step was skipped, else 0.0. AdaStar only.
        update_rms: root mean square of the update before learning rate and decay. AdaStar only.
    """
    norm = global_norm(gradients)
    rate = jnp.asarray(learning_rate(schedule, stage_updates(state), total_steps))
    measured = {"gradient_norm": norm, "learning_rate": rate}
    if isinstance(optimizer, AdaStar):
        count = sum(m.size for m in jax.tree.leaves(state.first_moment))
        measured["skipped"] = 1.0 - (norm < optimizer.skip_norm)
        measured["update_rms"] = global_norm(state.first_moment) * count**-0.5
    return measured


def _map_schedule(state: Any, function: Any) -> Any:
    """Applies `function` to the one counter in `state` that the schedule reads."""

    def visit(node: Any) -> Any:
        if isinstance(node, AdaStarState):
            return dataclasses.replace(node, stage_updates=function(node.stage_updates))
        if isinstance(node, optax.ScaleByScheduleState):
            return optax.ScaleByScheduleState(function(node.count))
        return node

    return jax.tree.map(visit, state, is_leaf=lambda node: isinstance(node, (AdaStarState, optax.ScaleByScheduleState)))

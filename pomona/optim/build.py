"""From an optimizer's config to an optax transformation, and the little the loop needs to know of its state."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pomona.model.spec import map_specs
from pomona.optim.adastar import adastar, global_norm
from pomona.optim.config import AdamW, AdaStar, Schedule
from pomona.optim.schedule import multiplier


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdamWState:
    """optax's Adam moments and the counters that AdaStar's state has too."""

    adam: optax.ScaleByAdamState
    stage_updates: jax.Array
    skipped: jax.Array
    gradient_norm: jax.Array


def build(
    config: AdaStar | AdamW, schedule: Schedule, total_steps: int, specs: Any, model_dim: int
) -> optax.GradientTransformation:
    """The optimizer of one stage of `total_steps` steps for parameters described by `specs`."""
    if isinstance(config, AdaStar):
        return adastar(config, schedule, total_steps, specs, model_dim)
    return adamw(config, schedule, total_steps)


def adamw(config: AdamW, schedule: Schedule, total_steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) as optax has it, with our schedule, its weight decay and the skip rule."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.epsilon)

    def init(params: Any) -> AdamWState:
        zero = jnp.zeros((), jnp.int32)
        state = adam.init(params)
        assert isinstance(state, optax.ScaleByAdamState)
        return AdamWState(state, zero, zero, jnp.zeros((), jnp.float32))

    def update(gradients: Any, state: AdamWState, params: Any = None) -> tuple[Any, AdamWState]:
        norm = global_norm(gradients)
        ok = jnp.isfinite(norm) & (norm < config.skip_norm)
        clip = jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, 1e-30))
        clipped = jax.tree.map(lambda g: jnp.where(ok, g * clip, 0.0), gradients)
        direction, new = adam.update(clipped, state.adam, params)
        rate = multiplier(schedule, total_steps, state.stage_updates + 1)
        change = jax.tree.map(
            lambda d, p: jnp.where(
                ok, -rate * (schedule.peak_learning_rate * d + schedule.weight_decay * p), 0.0
            ),
            direction,
            params,
        )
        kept = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state.adam)
        step = ok.astype(jnp.int32)
        assert isinstance(kept, optax.ScaleByAdamState)
        return change, AdamWState(kept, state.stage_updates + step, state.skipped + 1 - step, norm)

    return optax.GradientTransformation(init, update)


def start_stage(state: Any) -> Any:
    """The state at the start of a stage: moments and bias correction go on, the schedule begins again."""
    return dataclasses.replace(state, stage_updates=jnp.zeros_like(state.stage_updates))


def state_like(state: Any, specs: Any, per_parameter: Any, scalar: Any) -> Any:
    """A tree like an optimizer state with `per_parameter`'s leaf for every moment and `scalar` for every counter.

    Args:
        state: any tree like the state, for instance from `jax.eval_shape`.
        per_parameter: a tree like the parameters, for instance of shardings.
    """
    structure = jax.tree.structure(map_specs(lambda spec: 0, specs))
    like_params = lambda node: jax.tree.structure(node) == structure
    return jax.tree.map(
        lambda node: per_parameter if like_params(node) else scalar, state, is_leaf=like_params
    )

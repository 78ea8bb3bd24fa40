"""2-bit quantization-aware training as an objective: the decoder with its linear weights on the balanced grid.

The model of such a run is the one on the grid. Palettized at 2 bits on the balanced grid it does not change: a row's
scale is a float16, and the least-squares scale of a row that lies on the grid already is its own.

No moving average of the weights is kept: it would be one more copy of all weights, and the schedule's decay averages
over the last updates as well.

Shapes: L layers; a row is all inputs of one output.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pomona.model.config import Execution
from pomona.model.decoder import Decoder, parameter_specs
from pomona.model.objective import LossSums, TokenBatch, next_token_loss
from pomona.model.spec import Spec, is_spec, map_specs
from pomona.ops.balanced_grid import snap
from pomona.parallel import rules
from pomona.train.config import Run
from pomona.train.objective import Objective
from pomona.train.objective_config import BalancedGrid
from pomona.train.origin import begin_at


def on_grid(run: Run) -> Objective:
    """The objective of a run that trains on the grid.

    The trained tree is {"weights": Decoder, "factors": {"ffn.up": [L, F], ...}}: what a row's root mean square is
    multiplied by to give its scale.
    """
    config, specs = run.objective, parameter_specs(run.architecture)
    assert isinstance(config, BalancedGrid) and run.origin is not None, "check_run has seen it"
    parent, factors = begin_at(run.origin, specs), factor_specs(specs)

    def begin(mesh: Mesh) -> dict[str, Any]:
        place = lambda spec: jax.device_put(
            jnp.full(spec.shape, config.first_factor, jnp.float32), rules.sharding(mesh, spec.axes)
        )
        return {"weights": parent(mesh), "factors": map_specs(place, factors)}

    def model(trained: dict[str, Any], frozen: None, done: jax.Array) -> Decoder:
        return snapped(specs, trained["weights"], trained["factors"])

    def loss(
        trained: dict[str, Any],
        frozen: None,
        batch: TokenBatch,
        done: jax.Array,
        execution: Execution,
        rope_base: float,
    ) -> LossSums:
        return next_token_loss(model(trained, frozen, done), batch, run.architecture, execution, rope_base)

    return Objective(trained={"weights": specs, "factors": factors}, begin=begin, model=model, loss=loss)


def factor_specs(specs: Decoder) -> dict[str, Spec]:
    """A number for every row of every linear weight. Like the scales of norms they begin near one and have no width."""
    rows = {}
    for path, spec in jax.tree_util.tree_flatten_with_path(specs.layers, is_leaf=is_spec)[0]:
        if spec.role == "linear":
            keep = [axis for axis in range(len(spec.shape)) if axis not in _inputs(spec)]
            shape, axes = (tuple(each[axis] for axis in keep) for each in (spec.shape, spec.axes))
            rows[_name(path)] = Spec(shape, axes, "norm")
    return rows


def snapped(specs: Decoder, weights: Decoder, factors: dict[str, jax.Array]) -> Decoder:
    """The decoder with every linear weight on its rows' grids."""

    def one(path: Any, spec: Spec, weight: jax.Array) -> jax.Array:
        if spec.role != "linear":
            return weight
        size = jnp.sqrt(jnp.mean(jax.lax.stop_gradient(weight) ** 2, axis=_inputs(spec), keepdims=True))
        # A row of zeros, as pruning might leave, has a grid of the smallest float16 above zero.
        return snap(weight, jnp.maximum(size * jnp.expand_dims(factors[_name(path)], _inputs(spec)), 2.0**-24))

    layers = jax.tree_util.tree_map_with_path(one, specs.layers, weights.layers, is_leaf=is_spec)
    return dataclasses.replace(weights, layers=layers)


def _inputs(spec: Spec) -> tuple[int, ...]:
    """The dimensions of a stacked linear weight that are inputs: heads and their dimension, or the first."""
    return (1, 2) if spec.axes[1] == "heads" else (1,)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")

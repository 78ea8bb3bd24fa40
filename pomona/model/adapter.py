"""An adapter: low-rank corrections of the seven linear weights of every layer, as a tree beside the decoder's.

Shapes: L layers, I inputs, O outputs, R rank, N adapters at hand, B sequences.
"""

import dataclasses
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp

from pomona.model.config import PLACES, Architecture
from pomona.model.decoder import Decoder, Layer, parameter_specs
from pomona.model.projection import matrix_axes, matrix_shape
from pomona.model.spec import Spec, map_specs
from pomona.ops.low_rank import Adapted
from pomona.ops.palette import GROUP, Palettized, matrix

P = TypeVar("P")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factors(Generic[P]):
    """The correction of one projection: its input by A, then by B."""

    a: P  # L I R
    b: P  # L R O


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapter(Generic[P]):
    """The corrections of all seven projections; its fields are the names in `PLACES`."""

    query: Factors[P]
    key: Factors[P]
    value: Factors[P]
    output: Factors[P]
    gate: Factors[P]
    up: Factors[P]
    down: Factors[P]


def named(adapter: Adapter[P]) -> dict[str, P]:
    """Every leaf by its name in an adapter's bundle: `query.a`."""
    return {f"{name}.{side}": getattr(getattr(adapter, name), side) for name in PLACES for side in ("a", "b")}


def from_named(leaves: Mapping[str, P]) -> Adapter[P]:
    """The adapter of such leaves."""
    return Adapter(**{name: Factors(leaves[f"{name}.a"], leaves[f"{name}.b"]) for name in PLACES})


def projection(layers: Layer, name: str) -> Any:
    """The linear weight of a name."""
    return attrgetter(PLACES[name])(layers)


def map_projections(function: Callable[[str, Any], Any], params: Decoder) -> Decoder:
    """The decoder with another leaf in place of each linear weight: `function` of its name and the old one."""
    new = {name: function(name, projection(params.layers, name)) for name in PLACES}
    part = lambda block: {name: new[name] for name, place in PLACES.items() if place.startswith(f"{block}.")}
    attention = dataclasses.replace(params.layers.attention, **part("attention"))
    ffn = dataclasses.replace(params.layers.ffn, **part("ffn"))
    return dataclasses.replace(params, layers=dataclasses.replace(params.layers, attention=attention, ffn=ffn))


def adapter_specs(architecture: Architecture, rank: int) -> Adapter[Spec]:
    """An adapter as `Spec`s.

    A takes the model's width to the rank, so it is a linear layer to the optimizer and learns slower in wider models.
    B takes the rank to the width: what it adds up does not grow with the model, as in an embedding, whose role and
    learning rate it has (muP; Hayou et al. 2024, "LoRA+", find the same: B learns faster than A).
    """
    layers = parameter_specs(architecture).layers

    def both(name: str) -> Factors[Spec]:
        spec = projection(layers, name)
        (inputs, outputs), (in_axis, out_axis) = matrix_shape(spec), matrix_axes(spec)
        return Factors(
            a=Spec((architecture.num_layers, inputs, rank), ("layers", in_axis, None), "linear", inputs),
            b=Spec((architecture.num_layers, rank, outputs), ("layers", None, out_axis), "embedding", outputs),
        )

    return Adapter(**{name: both(name) for name in PLACES})


def attach(params: Decoder, adapter: Adapter, scale: float | jax.Array) -> Decoder:
    """A decoder that computes with an adapter; `scale` is alpha / rank."""

    def one(name: str, base: Any) -> Adapted:
        factors: Factors = getattr(adapter, name)
        return Adapted(base, factors.a, factors.b, jnp.full(factors.a.shape[0], scale, jnp.float32))

    return map_projections(one, params)


def attach_bank(params: Decoder, bank: Adapter, scales_N: jax.Array, choice_B: jax.Array) -> Decoder:
    """A decoder that computes every sequence of a batch with the adapter of its choice.

    Args:
        bank: leaves [L, N, I, R] and [L, N, R, O].
        scales_N: float32.
        choice_B: int32, 0 to N - 1, or -1 for none: the last scale, after those of the bank, is zero.
    """
    scales = jnp.append(scales_N, 0.0)

    def one(name: str, base: Any) -> Adapted:
        factors: Factors = getattr(bank, name)
        every = lambda x: jnp.broadcast_to(x, (factors.a.shape[0], *x.shape))
        return Adapted(base, factors.a, factors.b, every(scales), every(choice_B))

    return map_projections(one, params)


def at_hand(params: Decoder) -> int:
    """How many adapters a bank in the decoder has room for; 0 without one."""
    leaves = jax.tree.leaves(params.layers, is_leaf=lambda leaf: isinstance(leaf, Adapted))
    banks = (leaf for leaf in leaves if isinstance(leaf, Adapted) and leaf.choice is not None)
    return next((leaf.scale.shape[-1] - 1 for leaf in banks), 0)


def detach(params: Decoder) -> tuple[Decoder, Adapter]:
    """The base and the adapter of a decoder that `attach` has made."""
    pairs = {}

    def one(name: str, weight: Adapted) -> Any:
        assert isinstance(weight, Adapted), f"{name} has no adapter"
        pairs[name] = Factors(weight.a, weight.b)
        return weight.base

    base = map_projections(one, params)
    return base, Adapter(**pairs)


def densify(params: Decoder, architecture: Architecture) -> Decoder:
    """The decoder with arrays alone, float32: palettized weights unpacked, adapters added. For other formats, whose
    weights hold what palettes cannot."""
    layers = parameter_specs(architecture).layers

    def one(name: str, weight: Any) -> Any:
        spec = projection(layers, name)
        if not isinstance(weight, (Palettized, Adapted)):
            return weight
        return jax.jit(lambda weight: jax.lax.map(lambda layer: _dense(layer, spec), weight))(weight)

    return map_projections(one, params)


def _dense(weight: Any, spec: Spec) -> jax.Array:
    """One layer's weight of any kind as an array of its own shape."""
    if isinstance(weight, Palettized):
        return matrix(weight, jnp.float32).reshape(spec.shape[1:])
    if isinstance(weight, Adapted):
        assert weight.choice is None, "a batch with several adapters has no one weight"
        added = weight.scale * jnp.matmul(weight.a, weight.b, precision="highest")
        return _dense(weight.base, spec) + added.reshape(spec.shape[1:])
    return weight


def base_axes(architecture: Architecture, params: Decoder) -> Decoder:
    """The logical axes of every leaf of a decoder whose linear weights are arrays or palettized, as tuples.

    Outputs are the first dimension of a palettized weight, and 16 of them share a table.
    """

    def axes(spec: Spec, weight: Any) -> Any:
        if not isinstance(weight, Palettized):
            return spec.axes
        inputs, outputs = matrix_axes(spec)
        return Palettized(("layers", outputs, inputs), ("layers", outputs, None), ("layers", outputs))

    return map_specs(axes, parameter_specs(architecture), params)


def palettized_shapes(architecture: Architecture) -> Decoder:
    """A palettized decoder as `ShapeDtypeStruct`s; the embedding and the norms are float32."""

    def shapes(spec: Spec) -> Any:
        if spec.role != "linear":
            return jax.ShapeDtypeStruct(spec.shape, jnp.float32)
        L, (inputs, outputs) = spec.shape[0], matrix_shape(spec)
        return Palettized(
            jax.ShapeDtypeStruct((L, outputs, inputs // 2), jnp.uint8),
            jax.ShapeDtypeStruct((L, outputs // GROUP, 16), jnp.float16),
            jax.ShapeDtypeStruct((L, outputs), jnp.float16),
        )

    return map_specs(shapes, parameter_specs(architecture))

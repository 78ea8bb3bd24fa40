"""The linear layers of the decoder, for every kind of weight: an array, a palettized one, one with an adapter.

Shapes: B batch, T tokens, I inputs, O outputs, R rank (of several adapters side by side where they share an input),
N adapters at hand.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pomona.model.config import Execution
from pomona.model.spec import Spec
from pomona.ops.linear import linear
from pomona.ops.low_rank import Adapted
from pomona.ops.palette import Palettized, matrix
from pomona.parallel import rules

Axes = tuple[str | None, str | None]


@dataclasses.dataclass(frozen=True)
class _Packed:
    """A palettized weight of one layer, and the logical axes of its inputs and outputs."""

    palettized: Palettized
    axes: Axes


@dataclasses.dataclass(frozen=True)
class _Corrected:
    """A weight with its adapter; `inner_BTR` is the input times A and the scale, once `meet` has seen the input."""

    base: Any
    adapter: Adapted
    axes: Axes
    inner_BTR: jax.Array | None = None


def prepare(dtype: Any, spec: Spec, weight: Any) -> Any:
    """A layer's weight as `project` takes it; `spec` is that of the weight as an array, stacked over layers.

    An array becomes a matrix in the compute dtype, whole along `model`, if it is none yet. Heads and their dimension
    become one before the gather, while it is a shard: a product over two dimensions becomes a convolution, that takes
    on-chip memory.
    """
    if spec.role == "norm":
        return weight
    if isinstance(weight, Palettized):
        return _Packed(weight, matrix_axes(spec))
    if isinstance(weight, Adapted):
        return _Corrected(prepare(dtype, spec, weight.base), weight, matrix_axes(spec))
    of_layer = merged(spec)
    return rules.gather(weight.reshape(of_layer.shape[1:]), of_layer.axes[1:], dtype)


def merged(spec: Spec) -> Spec:
    """Heads and their dimension as one, if there are any."""
    if "head_dim" not in spec.axes:
        return spec
    at = spec.axes.index("head_dim")
    shape = (*spec.shape[: at - 1], spec.shape[at - 1] * spec.shape[at], *spec.shape[at + 1 :])
    return dataclasses.replace(spec, shape=shape, axes=(*spec.axes[:at], *spec.axes[at + 1 :]))


def matrix_axes(spec: Spec) -> Axes:
    """The logical axes of a layer's weight as a matrix: inputs, outputs. A head's dimension lies within `heads`."""
    inputs, outputs = (axis for axis in spec.axes if axis not in ("layers", "head_dim"))
    return inputs, outputs


def matrix_shape(spec: Spec) -> tuple[int, int]:
    """The inputs and outputs of a layer's weight as a matrix."""
    last = spec.axes[-1] == "head_dim"  # heads and their dimension are what goes out
    outputs = spec.shape[-1] * (spec.shape[-2] if last else 1)
    return spec.size // spec.shape[0] // outputs, outputs


def meet(x_BTI: jax.Array, weights: Sequence[Any]) -> list[Any]:
    """Prepared weights that share an input: the A's of their adapters become one product with it."""
    if not all(isinstance(weight, _Corrected) for weight in weights):
        return list(weights)
    adapters, axis = [weight.adapter for weight in weights], weights[0].axes[0]
    if adapters[0].choice is not None:
        chosen = [rules.pick(adapter.a, adapter.choice, (None, axis, None)) for adapter in adapters]
        a_BIR = jnp.concatenate(chosen, axis=-1).astype(x_BTI.dtype)
        inner_BTR = rules.project("bti,bir->btr", x_BTI, a_BIR, ("batch", "tokens", None))
    else:
        a_IR = rules.gather(jnp.concatenate([adapter.a for adapter in adapters], axis=-1), (axis, None), x_BTI.dtype)
        inner_BTR = rules.project("bti,ir->btr", x_BTI, a_IR, ("batch", "tokens", None))
    parts, met, first = [adapter.a.shape[-1] for adapter in adapters], [], 0
    for weight, rank in zip(weights, parts):
        adapter, own_BTR = weight.adapter, inner_BTR[..., first : first + rank]
        scale = adapter.scale if adapter.choice is None else adapter.scale[adapter.choice][:, None, None]
        met.append(dataclasses.replace(weight, inner_BTR=own_BTR * scale.astype(x_BTI.dtype)))
        first += rank
    return met


def project(execution: Execution, x_BTI: jax.Array, weight: Any, axis: str | None) -> jax.Array:
    """A linear layer by a prepared weight; `axis` is the logical axis of its outputs."""
    if isinstance(weight, _Corrected):
        return _corrected(execution, x_BTI, weight, axis)
    if isinstance(weight, _Packed):
        # The dense matrix is made again in the backward pass: keeping it would keep the whole model dense.
        return jax.checkpoint(partial(_unpacked, axes=weight.axes, axis=axis))(x_BTI, weight.palettized)
    if execution.weight_gradients == "transposed":
        return linear(x_BTI, weight)
    return rules.project("bti,io->bto", x_BTI, weight, ("batch", "tokens", axis))


def _corrected(execution: Execution, x_BTI: jax.Array, weight: _Corrected, axis: str | None) -> jax.Array:
    if weight.inner_BTR is None:
        (weight,) = meet(x_BTI, [weight])
    assert weight.inner_BTR is not None
    y_BTO, b, choice = project(execution, x_BTI, weight.base, axis), weight.adapter.b, weight.adapter.choice
    if choice is not None:
        b_BRO = rules.pick(b, choice, (None, None, weight.axes[1])).astype(x_BTI.dtype)
        return y_BTO + rules.project("btr,bro->bto", weight.inner_BTR, b_BRO, ("batch", "tokens", axis))
    b_RO = rules.gather(b, (None, weight.axes[1]), x_BTI.dtype)
    return y_BTO + rules.project("btr,ro->bto", weight.inner_BTR, b_RO, ("batch", "tokens", axis))


def dense_matrix(palettized: Palettized, spec: Spec, dtype: Any) -> jax.Array:
    """The weight_IO that one layer's palettized weight stands for, whole along `model`; `spec` as for `prepare`."""
    return _dense(palettized, matrix_axes(spec), dtype)


def _unpacked(x_BTI: jax.Array, palettized: Palettized, axes: Axes, axis: str | None) -> jax.Array:
    weight_IO = _dense(palettized, axes, x_BTI.dtype)
    return rules.project("bti,io->bto", x_BTI, weight_IO, ("batch", "tokens", axis))


def _dense(palettized: Palettized, axes: Axes, dtype: Any) -> jax.Array:
    """One layer's weight_IO, whole along `model`: what travels between devices is four bits a weight."""
    inputs, outputs = axes
    own = [(outputs, inputs), (outputs, None), (outputs,)]

    def local(*fields: jax.Array) -> jax.Array:
        whole = [rules.whole(x, own_axes, x.dtype) if "model" in own_axes else x for x, own_axes in zip(fields, own)]
        return matrix(Palettized(*whole), dtype)

    result = tuple(None if name == "model" else name for name in axes)
    return rules.on_shards(local, own, result)(palettized.indices, palettized.tables, palettized.scales)

"""How much each weight matters: h, such that 1/2 sum h (W - W^)^2 predicts what a change of the weights costs.

* `fisher`: the diagonal Fisher information, squared gradients of the loss of single sequences of the training mixture,
  summed and divided by the tokens; the prediction is in nats a token (Kim et al. 2023, SqueezeLLM, section 4).
* `activation`: the mean square of the weight's input, over the mean square of an output of its matrix; half the sum is
  the relative error of the matrix's outputs, whatever the layers after it make of it.

The sums are on disk, a file a layer, and only one layer's are in memory:

    importance/layers.03.npz    by projection a sum, float32 [I, O] or [I, 1], and what it is divided by in the end;
                                and `sequences`, how many are in it
    importance/inputs.03.npy    what went into the layer, for the sequences at hand

So many sequences go through a layer at once that reading and writing the sums costs little beside computing them:
forward layer by layer and, for `fisher`, back again. A start after a kill goes on after the last whole file, and ends
with the same sums.

Shapes: I inputs, O outputs, B batch (1), T tokens, D model.
"""

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pomona.core.files import disk_errors, whole_file
from pomona.data.loader import Batches
from pomona.model.config import PROJECTIONS, Architecture, Execution
from pomona.model.decoder import Decoder, Inputs, Layer, embed, layer, parameter_specs
from pomona.model.objective import TokenBatch, loss_of, self_attention
from pomona.model.projection import matrix_shape
from pomona.ops.norm import rms_norm
from pomona.ops.rope import rotation

Weights = Literal["fisher", "activation", "none"]

TOKENS_AT_ONCE = 32_768
"""With so many, a layer's inputs are as large on disk as its sums, at the size of AFM-on-device."""
Sums = dict[str, tuple[jax.Array, jax.Array]]
"""By projection: the sum, [I, O] or [I, 1], and what it is divided by."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A model and the sequences that it is measured on: the first `samples` of `batches`."""

    params: Decoder
    architecture: Architecture
    execution: Execution
    rope_base: float
    batches: Batches
    samples: int

    def sequence(self, index: int) -> TokenBatch:
        """One sequence; its fields are [1, T]."""
        batch = self.batches.batch(index)
        return TokenBatch(*map(jnp.asarray, (batch.tokens, batch.targets, batch.segments, batch.positions)))

    def layer(self, index: int) -> Layer:
        """The weights of one layer."""
        return jax.tree.map(lambda leaf: leaf[index], self.params.layers)


def measure(weights: Weights, measured: Measured, place: Path, report: Callable[[str], None]) -> None:
    """Writes the importance of all projections into a folder, or goes on where an earlier start was stopped.

    Raises:
        UserError: a full disk.
    """
    layers = range(measured.architecture.num_layers)
    done = min(_sequences(_file(place, index)) for index in layers)
    if done >= measured.samples:
        return
    report(f"measuring what each weight matters on {measured.samples} sequences ({weights})")
    place.mkdir(parents=True, exist_ok=True)
    at_once = max(1, TOKENS_AT_ONCE // measured.sequence(0).tokens.shape[1])
    visit = _fisher(measured, place) if weights == "fisher" else _activation(measured, place)
    with disk_errors(place):
        for first in range(done, measured.samples, at_once):
            visit(range(first, min(first + at_once, measured.samples)))
            report(f"{min(first + at_once, measured.samples)} of {measured.samples} sequences are measured")
        for path in place.glob("inputs.*.npy"):
            path.unlink()


def read(place: Path, projection: str, index: int) -> np.ndarray:
    """h of a layer's projection, float32 [I, O] or [I, 1]."""
    with np.load(_file(place, index)) as found:
        return found[projection] / np.maximum(found[f"{projection}.over"], np.float32(1e-30))


def _fisher(measured: Measured, place: Path) -> Callable[[range], None]:
    """What adds some sequences' squared gradients to the sums of every layer."""
    architecture, execution = measured.architecture, measured.execution

    def end(params: Decoder, x_BTD: jax.Array, batch: TokenBatch) -> jax.Array:
        norm = lambda x_BTD: rms_norm(x_BTD, params.final_norm, architecture.norm_epsilon)
        return jax.grad(lambda x_BTD: loss_of(norm(x_BTD), params.embedding, batch, execution).total)(x_BTD)

    def back(
        sums: Sums, new: Any, weights: Layer, x_BTD: jax.Array, out_BTD: jax.Array, batch: TokenBatch
    ) -> tuple[Sums, jax.Array]:
        _, pull = jax.vjp(lambda weights, x_BTD: _layer(measured, weights, x_BTD, batch)[0], weights, x_BTD)
        gradient, x_BTD = pull(out_BTD)
        tokens = jnp.sum((batch.segments > 0).astype(jnp.float32))
        squares = lambda name, like: jnp.square(attrgetter(name)(gradient)).reshape(like.shape)
        more = {name: (squares(name, old), tokens) for name, (old, _) in sums.items()}
        return _plus(sums, more, new), x_BTD

    forward = jax.jit(lambda weights, x_BTD, batch: _layer(measured, weights, x_BTD, batch)[0])
    end_jit, back_jit = jax.jit(end), jax.jit(back, donate_argnums=0)
    inputs = lambda index: place / f"inputs.{index:02}.npy"

    def visit(samples: range) -> None:
        batches, each = _begin(measured, samples)
        for index in range(architecture.num_layers):
            np.save(inputs(index), np.stack([np.asarray(x_BTD, np.float32) for x_BTD in each]))
            weights = measured.layer(index)
            each = [forward(weights, x_BTD, batch) for x_BTD, batch in zip(each, batches)]
            del weights
        each = [end_jit(measured.params, x_BTD, batch) for x_BTD, batch in zip(each, batches)]
        for index in reversed(range(architecture.num_layers)):
            weights, (sums, has) = measured.layer(index), _read(measured, _file(place, index), wide=True)
            before = np.load(inputs(index), mmap_mode="r")
            for row, batch in enumerate(batches):
                x_BTD = jnp.asarray(before[row], each[row].dtype)
                sums, each[row] = back_jit(sums, samples[row] >= has, weights, x_BTD, each[row], batch)
            _write(_file(place, index), sums, samples)
            del weights, sums  # before those of the next layer come

    return visit


def _activation(measured: Measured, place: Path) -> Callable[[range], None]:
    """What adds the squares of some sequences' inputs to the sums of every layer."""

    def forward(sums: Sums, new: Any, weights: Layer, x_BTD: jax.Array, batch: TokenBatch) -> tuple[Sums, jax.Array]:
        out_BTD, inputs = _layer(measured, weights, x_BTD, batch)
        more = {name: _squares(inputs.of(name), attrgetter(name)(weights), batch) for name in sums}
        return _plus(sums, more, new), out_BTD

    forward_jit = jax.jit(forward, donate_argnums=0)

    def visit(samples: range) -> None:
        batches, each = _begin(measured, samples)
        for index in range(measured.architecture.num_layers):
            weights, (sums, has) = measured.layer(index), _read(measured, _file(place, index), wide=False)
            for row, batch in enumerate(batches):
                sums, each[row] = forward_jit(sums, samples[row] >= has, weights, each[row], batch)
            _write(_file(place, index), sums, samples)
            del weights, sums

    return visit


def _squares(x_BTI: jax.Array, weight: jax.Array, batch: TokenBatch) -> tuple[jax.Array, jax.Array]:
    """The sums over the tokens of the squared inputs, [I, 1], and of the mean squared output."""
    x_BTI = jnp.where((batch.segments > 0)[..., None], x_BTI, 0)
    weight_IO = weight.reshape(x_BTI.shape[-1], -1)
    output_BTO = (x_BTI @ weight_IO.astype(x_BTI.dtype)).astype(jnp.float32)
    inputs_I = jnp.sum(jnp.square(x_BTI.astype(jnp.float32)), axis=(0, 1))
    return inputs_I[:, None], jnp.sum(jnp.square(output_BTO)) / weight_IO.shape[1]


def _plus(sums: Sums, more: Sums, new: Any) -> Sums:
    """The sums with one more sequence; not where an earlier start has added it: then `new` is false."""
    return jax.tree.map(lambda old, x: old + jnp.where(new, x, 0), sums, more)


def _layer(measured: Measured, weights: Layer, x_BTD: jax.Array, batch: TokenBatch) -> tuple[jax.Array, Inputs]:
    """One layer of the model, and what its projections multiply."""
    return layer(
        x_BTD,
        weights,
        None,
        attend=self_attention(batch, measured.execution),
        rotary=rotation(batch.positions, measured.architecture.head_dim, measured.rope_base),
        architecture=measured.architecture,
        execution=measured.execution,
        observe=lambda inputs: inputs,
    )


def _begin(measured: Measured, samples: range) -> tuple[list[TokenBatch], list[jax.Array]]:
    """Some sequences, and what goes into the first layer."""
    batches = [measured.sequence(index) for index in samples]
    begin, dtype = jax.jit(embed, static_argnums=2), jnp.dtype(measured.execution.compute_dtype)
    return batches, [begin(measured.params, batch.tokens, dtype) for batch in batches]


def _file(place: Path, index: int) -> Path:
    return place / f"layers.{index:02}.npz"


def _sequences(path: Path) -> int:
    """How many sequences are in a layer's sums."""
    if not path.exists():
        return 0
    with np.load(path) as found:
        return int(found["sequences"])


def _read(measured: Measured, path: Path, wide: bool) -> tuple[Sums, int]:
    """A layer's sums, and how many sequences are in them."""
    if path.exists():
        with np.load(path) as found:
            pair = lambda name: (jnp.asarray(found[name]), jnp.asarray(found[f"{name}.over"]))
            return {name: pair(name) for name in PROJECTIONS}, int(found["sequences"])
    specs = parameter_specs(measured.architecture).layers
    shapes = {name: matrix_shape(attrgetter(name)(specs)) for name in PROJECTIONS}
    zeros = lambda inputs, outputs: (jnp.zeros((inputs, outputs if wide else 1)), jnp.zeros(()))
    return {name: zeros(*shape) for name, shape in shapes.items()}, 0


def _write(path: Path, sums: Sums, samples: range) -> None:
    arrays = {name: np.asarray(total) for name, (total, _) in sums.items()}
    arrays |= {f"{name}.over": np.asarray(over) for name, (_, over) in sums.items()}
    with whole_file(path) as draft, draft.open("wb") as file:
        np.savez(file, allow_pickle=False, sequences=np.array(samples.stop), **arrays)

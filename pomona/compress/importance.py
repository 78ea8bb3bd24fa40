"""How much each weight matters: h, such that 1/2 sum h (W - W^)^2 predicts what a change of the weights costs.

* `fisher`: the diagonal Fisher information, squared gradients of the loss of single sequences of the training mixture,
  summed and divided by the tokens; the prediction is in nats a token (Kim et al. 2023, SqueezeLLM, section 4).
* `activation`: the mean square of the weight's input, over the mean square of an output of its matrix; half the sum is
  the relative error of the matrix's outputs, whatever the layers after it make of it.
* `none`: 1.

One sequence is in memory at a time. `fisher` keeps two float32 trees like the layers beside the weights: the sums, and
the gradients of one sequence.

Shapes: L layers, I inputs, O outputs, B batch (1), T tokens, D model.
"""

from functools import partial
from operator import attrgetter
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pomona.checkpoint.palettes import PROJECTIONS
from pomona.data.loader import Batches
from pomona.model.config import Architecture, Execution
from pomona.model.decoder import Decoder, Layer, embed, layer, parameter_specs
from pomona.model.objective import TokenBatch, next_token_loss
from pomona.model.projection import matrix_shape
from pomona.ops.attention import attention
from pomona.ops.norm import rms_norm
from pomona.ops.rope import rotation

Weights = Literal["fisher", "activation", "none"]


def fisher(
    params: Decoder, batches: Batches, samples: int, architecture: Architecture, execution: Execution, rope_base: float
) -> dict[str, Any]:
    """h_LIO of every projection by its name, float32, from the first `samples` sequences of `batches`."""

    def add(total: Layer, params: Decoder, batch: TokenBatch) -> Layer:
        def loss(layers: Layer) -> jax.Array:
            changed = Decoder(params.embedding, layers, params.final_norm)
            return next_token_loss(changed, batch, architecture, execution, rope_base).total

        return jax.tree.map(lambda old, g: old + g * g, total, jax.grad(loss)(params.layers))

    add_jit = jax.jit(add, donate_argnums=0)
    total: Layer = jax.tree.map(jnp.zeros_like, params.layers)
    tokens = 0
    for step in range(samples):
        batch = _sample(batches, step)
        total, tokens = add_jit(total, params, batch), tokens + int((np.asarray(batch.segments) > 0).sum())
    specs = parameter_specs(architecture).layers
    found = {}
    for name in PROJECTIONS:
        shape = matrix_shape(attrgetter(name)(specs))
        found[name] = attrgetter(name)(total).reshape(-1, *shape) / max(tokens, 1)
    return found


def activation(
    params: Decoder, batches: Batches, samples: int, architecture: Architecture, execution: Execution, rope_base: float
) -> dict[str, Any]:
    """h [L, I, 1] of every projection by its name, float32, from the first `samples` sequences of `batches`."""
    squares = jax.jit(partial(_squares, architecture=architecture, execution=execution, rope_base=rope_base))
    total: Any = None
    for step in range(samples):
        more = squares(params, _sample(batches, step))
        total = more if total is None else jax.tree.map(jnp.add, total, more)
    found = {}
    for name, (inputs_LI, output_L) in total.items():
        found[name] = (inputs_LI / jnp.maximum(output_L, 1e-30)[:, None])[:, :, None]
    return found


def _squares(
    params: Decoder, batch: TokenBatch, architecture: Architecture, execution: Execution, rope_base: float
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """By projection: the sums over the tokens of the squared inputs, [L, I], and of the mean squared output, [L]."""
    real_BT1 = (batch.segments > 0)[..., None]

    def attend(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        assert execution.attention != "auto", "resolve() the execution first"
        out_BTNH = attention(
            *(q_BTNH, k_BTKH, v_BTKH, batch.segments, batch.segments),
            q_offset=0,
            implementation=execution.attention,
            block_tokens=execution.attention_block_tokens,
        )
        return out_BTNH, out_BTNH

    rotary = rotation(batch.positions, architecture.head_dim, rope_base)
    whole: dict[str, Any] = {"attend": attend, "rotary": rotary, "architecture": architecture, "execution": execution}

    def one(x_BTD: jax.Array, weights: Layer) -> tuple[jax.Array, Any]:
        after_BTD, out_BTNH = layer(x_BTD, weights, None, **whole)
        # What `layer` multiplies, in its own order; the numbers that only it sees are computed once more.
        flat = lambda name: attrgetter(name)(weights).reshape(matrix_shape(attrgetter(name)(specs)))
        h_BTD = rms_norm(x_BTD, weights.attention_norm, architecture.norm_epsilon)
        inputs = dict.fromkeys(("attention.query", "attention.key", "attention.value"), h_BTD)
        inputs["attention.output"] = out_BTNH.reshape(*out_BTNH.shape[:2], -1)
        middle_BTD = x_BTD + inputs["attention.output"] @ flat("attention.output").astype(x_BTD.dtype)
        h_BTD = rms_norm(middle_BTD, weights.ffn_norm, architecture.norm_epsilon)
        gate_BTF, up_BTF = (h_BTD @ flat(name).astype(x_BTD.dtype) for name in ("ffn.gate", "ffn.up"))
        inputs |= {"ffn.gate": h_BTD, "ffn.up": h_BTD, "ffn.down": jax.nn.silu(gate_BTF) * up_BTF}
        return after_BTD, {name: _sums(inputs[name], flat(name), real_BT1) for name in PROJECTIONS}

    specs = parameter_specs(architecture).layers
    x_BTD = embed(params, batch.tokens, jnp.dtype(execution.compute_dtype))
    return jax.lax.scan(one, x_BTD, params.layers)[1]


def _sums(x_BTI: jax.Array, weight_IO: jax.Array, real_BT1: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BTI = jnp.where(real_BT1, x_BTI, 0)
    output_BTO = (x_BTI @ weight_IO.astype(x_BTI.dtype)).astype(jnp.float32)
    x_BTI = x_BTI.astype(jnp.float32)
    return jnp.sum(x_BTI * x_BTI, axis=(0, 1)), jnp.sum(output_BTO * output_BTO) / weight_IO.shape[1]


def _sample(batches: Batches, step: int) -> TokenBatch:
    batch = batches.batch(step)
    return TokenBatch(*map(jnp.asarray, (batch.tokens, batch.targets, batch.segments, batch.positions)))

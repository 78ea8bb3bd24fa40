"""The gated units of the feed-forward block, whose gradients are made once.

Two products each read the gradients of `gate` and `up`, and autodiff leaves XLA free to make these again inside every
product, for every tile: on TPU that takes longer than the memory traffic it saves (docs/benchmarks/fleet.md). Of the
forward pass only `gate` and `up` are kept.
"""

import jax


def _units(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * up


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, of any shape (Shazeer, "GLU Variants Improve Transformer", section 2). It has a gradient in
    reverse mode only."""
    return _units(gate, up)


def _forward(gate, up):
    return _units(gate, up), (gate, up)


def _backward(saved, d_units):
    _, transpose = jax.vjp(_units, *saved)
    return jax.lax.optimization_barrier(transpose(d_units))


swiglu.defvjp(_forward, _backward)

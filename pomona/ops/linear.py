"""A linear layer whose weight gradient suits XLA:CPU.

Autodiff contracts the tokens of two row-major matrices, x and dy, and XLA:CPU runs that product at about 50 GFLOP/s a
core where a plain product of the same size reaches 80 (docs/benchmarks/train-cpu.md). Here x is transposed first, in
memory, which costs little and makes the product a plain one. Other platforms have no such gap: use `jnp.einsum` there.

Shapes: M tokens, I inputs, O outputs.
"""

import jax
import jax.numpy as jnp


def linear(x: jax.Array, weight_IO: jax.Array) -> jax.Array:
    """Contracts the last dimension of `x`, which may have any number before it, with the first of the weight."""
    return _linear(x.reshape(-1, x.shape[-1]), weight_IO).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _linear(x_MI: jax.Array, weight_IO: jax.Array) -> jax.Array:
    return x_MI @ weight_IO


def _forward(x_MI, weight_IO):
    return x_MI @ weight_IO, (x_MI, weight_IO)


def _backward(saved, dy_MO):
    x_MI, weight_IO = saved
    x_IM = jax.lax.optimization_barrier(x_MI.T)  # without it, XLA folds the transpose into the product again
    return jnp.einsum("mo,io->mi", dy_MO, weight_IO), x_IM @ dy_MO


_linear.defvjp(_forward, _backward)

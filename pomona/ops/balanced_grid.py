"""The 2-bit grid s * {-1.5, -0.5, 0.5, 1.5}, and the gradient that trains through it (AFM 2025 report; on-device.md).

    W~ = s * (clamp(round(W / s + 1/2), -1, 2) - 1/2)

The rounding passes gradients on as if it were not there, the clamp as it is; so the gradient of the scale is that of
learned step sizes (Esser et al. 2020, equation 3): q - W / s where W is not clamped, q where it is, with q = W~ / s.
"""

import jax
import jax.numpy as jnp


def snap(weight: jax.Array, scale: jax.Array) -> jax.Array:
    """The nearest points of the grid, float32. `scale` is positive and broadcasts against the weight.

    It is first rounded to float16, as which it is stored; the result is exactly that scale times a point.
    """
    scale = _as_if_exact(scale, scale.astype(jnp.float16).astype(jnp.float32))
    ratio = weight / scale
    clamped = jnp.clip(ratio, -2.0, 2.0)
    return scale * _as_if_exact(clamped, jnp.clip(jnp.floor(ratio + 2), 0, 3) - 1.5)


@jax.custom_jvp
def _as_if_exact(value: jax.Array, rounded: jax.Array) -> jax.Array:
    """`rounded`, with the gradient of `value`."""
    return rounded


_as_if_exact.defjvp(lambda primals, tangents: (primals[1], tangents[0]))

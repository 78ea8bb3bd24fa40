"""Rotary positions: half-split pairs, as most open decoders and all exporters expect."""

import jax
import jax.numpy as jnp


def rope(x_BTNH: jax.Array, positions_BT: jax.Array, base: float) -> jax.Array:
    """Turns dimension pair (i, i + H/2) by position * base^(-2i/H) radians; angles in float32."""
    half = x_BTNH.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1C = positions_BT[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle_BT1C), jnp.sin(angle_BT1C)
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)

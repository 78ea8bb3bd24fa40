"""Rotary positions of normalised heads: half-split pairs, as most open decoders and all exporters expect.

Shapes: B batch, T tokens, N heads, H head, C = H / 2.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from pomona.ops import norm_rope_kernel
from pomona.ops.norm import rms_norm


def rotation(positions_BT: jax.Array, head_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """(cos_BTC, sin_BTC) of the angles position * base^(-2i/H), float32; made once, for all layers and heads."""
    frequency_C = base ** (-jnp.arange(head_dim // 2, dtype=jnp.float32) / (head_dim // 2))
    angle_BTC = positions_BT[..., None].astype(jnp.float32) * frequency_C
    return _stored(jnp.cos(angle_BTC)), _stored(jnp.sin(angle_BTC))


def norm_rope(
    x_BTNH: jax.Array,
    weight_H: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    epsilon: float,
    way: Literal["split", "kernel"],
) -> jax.Array:
    """`rms_norm` of every head, then each dimension pair (i, i + H/2) turned by its angle; float32 inside."""
    cos_BTC, sin_BTC = rotation
    if way == "kernel":
        cos_BTH = jnp.concatenate([cos_BTC, cos_BTC], axis=-1)
        sin_BTH = jnp.concatenate([-sin_BTC, sin_BTC], axis=-1)
        return norm_rope_kernel.norm_rope(x_BTNH, weight_H, cos_BTH, sin_BTH, epsilon)
    cos_BT1C, sin_BT1C = cos_BTC[:, :, None], sin_BTC[:, :, None]
    a, b = jnp.split(rms_norm(x_BTNH, weight_H, epsilon).astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([a * cos_BT1C - b * sin_BT1C, b * cos_BT1C + a * sin_BT1C], axis=-1)
    return turned.astype(x_BTNH.dtype)


def _stored(table_BTC: jax.Array) -> jax.Array:
    """The same values. XLA:CPU would compute the cosine again in every loop that reads it, for every head; a product
    is never made part of a loop, so there the table goes through one with the identity, which is exact."""
    identity = np.eye(table_BTC.shape[-1], dtype=np.float32)
    return jax.lax.platform_dependent(table_BTC, cpu=lambda x: x @ identity, default=lambda x: x)

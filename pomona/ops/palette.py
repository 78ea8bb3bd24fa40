"""Palettized weights: four bits an index, one table of values for every 16 outputs, one scale an output.

    W[o, i] = scales[o] * tables[o // 16, index[o, i]]

Afm-recipe section 8 (AFM report, section 5.1). A 2-bit tensor lies in memory as a 4-bit one that uses the first four
entries of its tables, so that all layers of one scan are alike; on disk it takes its two bits (checkpoint/palettes.py).

Shapes: L layers, O outputs, I inputs of the matrix that a layer multiplies by, G = O / 16 groups.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GROUP = 16
"""Outputs that share one table."""

BALANCED = (-1.5, -0.5, 0.5, 1.5)
"""The 2-bit grid s * (q - 1.5), q = 0 .. 3, that needs no learned table (AFM 2025 report, 2-bit QAT)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Palettized:
    """The weights of one projection in all layers; within a layer every field is without its L."""

    indices: Any  # uint8 [L, O, I // 2]: two a byte, the even input in the low half
    tables: Any  # float16 [L, G, 16]
    scales: Any  # float16 [L, O]


def matrix(palettized: Palettized, dtype: Any) -> jax.Array:
    """The dense weight_IO of one layer, inputs by outputs, as the decoder multiplies it.

    The product of scale and table entry is rounded once, from float32 to `dtype`.
    """
    indices_OI = unpack_nibbles(palettized.indices)
    outputs, inputs = indices_OI.shape
    entries_GX = indices_OI.reshape(outputs // GROUP, GROUP * inputs)
    values_GX = jnp.take_along_axis(palettized.tables.astype(jnp.float32), entries_GX.astype(jnp.int32), axis=1)
    weight_OI = values_GX.reshape(outputs, inputs) * palettized.scales.astype(jnp.float32)[:, None]
    return weight_OI.astype(dtype).T


def pack_nibbles(indices: Any) -> Any:
    """[..., I] of values below 16 to uint8 [..., I // 2]: the even input in the low half. NumPy or JAX; I is even."""
    assert indices.shape[-1] % 2 == 0, indices.shape
    return (indices[..., 0::2] | (indices[..., 1::2] << 4)).astype("uint8")


def unpack_nibbles(packed: Any) -> Any:
    """uint8 [..., I // 2] to uint8 [..., I], the inverse of `pack_nibbles`."""
    where = jnp if isinstance(packed, jax.Array) else np
    return where.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def narrow_rows(weight_OI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest int8 of -127 to 127 and a float32 scale for every row; zeros keep the scale zero."""
    scales_O = np.abs(weight_OI).max(axis=1).astype(np.float32) / np.float32(127)
    inverse_O = np.divide(1, scales_O, out=np.zeros_like(scales_O), where=scales_O > 0)
    integers_OI = np.empty(weight_OI.shape, np.int8)
    for first in range(0, len(scales_O), 4096):  # a part at a time, since the embedding may be the largest tensor
        rows = slice(first, first + 4096)
        integers_OI[rows] = np.rint(weight_OI[rows] * inverse_O[rows, None])
    return integers_OI, scales_O


def is_balanced(tables: np.ndarray) -> bool:
    """Whether all tables [..., 16] are the balanced grid, and zeros beyond it."""
    grid = np.zeros(tables.shape[-1], tables.dtype)
    grid[: len(BALANCED)] = BALANCED
    return bool(np.all(tables == grid))

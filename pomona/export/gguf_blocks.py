"""How a matrix lies in a GGUF file, in types of numbers and of blocks.

The balanced 2-bit grid has a bit-exact place among llama.cpp's K-quants: Q2_K holds (d s) q - (dmin m) with q of two
bits, so d = dmin = half of the row's scale, s = 2 and m = 3 make scale * (q - 1.5). A palette with free tables has no
such place.

Shapes: O outputs, I inputs, of which 256 make a block of Q2_K.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from pomona.core.errors import UserError
from pomona.export.grid import balanced
from pomona.model.decoder import Decoder

K_QUANT_BLOCK = 256
"""Weights of one block of llama.cpp's K-quants: only rows of a multiple of it can be stored so."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A type of matrices: its name in llama.cpp, `general.file_type`, and the weights and bytes of a block."""

    name: str
    file_type: int
    block: int
    bytes: int

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor."""
        return math.prod(shape) // self.block * self.bytes


KINDS = {
    "float32": Kind("F32", 0, 1, 4),
    "float16": Kind("F16", 1, 1, 2),
    "bfloat16": Kind("BF16", 32, 1, 2),
    "q8_0": Kind("Q8_0", 7, 32, 34),
    "q2_k": Kind("Q2_K", 10, K_QUANT_BLOCK, 84),
}


def check_rows(kind: Kind, name: str, shape: tuple[int, ...]) -> None:
    """Raises `UserError` where rows are not a multiple of a block."""
    if shape[-1] % kind.block:
        padded = "--pad-ffn" if "ffn_down" in name and kind.block == K_QUANT_BLOCK else "--dtype float16"
        raise UserError(
            f"{name} has rows of {shape[-1]} weights.",
            f"{kind.name} stores rows of a multiple of {kind.block} only.",
            padded,
        )


def q8_0(gguf: Any, array_OI: np.ndarray) -> np.ndarray:
    """Blocks of 32 int8 with a float16 scale, rounded as llama.cpp rounds: uint8 [O, I / 32 * 34]."""
    return gguf.quants.quantize(array_OI, gguf.GGMLQuantizationType.Q8_0)


def balanced_rows(params: Decoder, name: str, layer: int, shape: tuple[int, int]) -> np.ndarray:
    """One projection on the balanced grid, bit for bit, as Q2_K: uint8 [O, I / 256 * 84].

    Args:
        name: the projection's, as `pomona.model.config.PLACES` has it.
        shape: outputs and inputs in the file; what is beyond the weights there is zero.

    Raises:
        UserError: the weights are not on the balanced grid.
    """
    indices_OI, scales_O = balanced(params, name, layer, "q2_k", "q8_0")
    missing = shape[0] - len(indices_OI), shape[1] - indices_OI.shape[1]
    return q2_k(
        np.pad(indices_OI, [(0, missing[0]), (0, missing[1])]), np.pad(scales_O, (0, missing[0])), indices_OI.shape[1]
    )


def q2_k(indices_OI: np.ndarray, scales_O: np.ndarray, inputs: int) -> np.ndarray:
    """scale * (index - 1.5) as Q2_K, and zero from `inputs` on, where neither q nor the least of 16 count.

    Shapes: B blocks of a row. A block is 16 bytes of s and m, 64 bytes of q, d, dmin; byte l of the first (second) 32
    bytes of q holds the weights l, 32 + l, 64 + l, 96 + l of the first (second) half, the first in the lowest bits.
    """
    outputs, blocks = len(indices_OI), indices_OI.shape[1] // K_QUANT_BLOCK
    assert inputs % 16 == 0, "16 weights share s and m"
    there = np.arange(blocks * K_QUANT_BLOCK) < inputs
    q_OBhwl = np.where(there, indices_OI, 0).reshape(outputs, blocks, 2, 4, 32)
    packed = np.bitwise_or.reduce([q_OBhwl[:, :, :, part] << (2 * part) for part in range(4)])
    half_O = (scales_O.astype(np.float32) / 2).astype(np.float16)  # exact from 2 ** -13 on, and within 2 ** -25 below
    found = np.zeros((outputs, blocks, 84), np.uint8)
    found[:, :, :16] = np.where(there.reshape(blocks, 16, 16)[:, :, 0], 3 << 4 | 2, 0)
    found[:, :, 16:80] = packed.reshape(outputs, blocks, 64)
    found[:, :, 80:82] = found[:, :, 82:84] = half_O[:, None].view(np.uint8)[:, None]
    return found.reshape(outputs, -1)

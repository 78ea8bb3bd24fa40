"""How a matrix lies in a device file: as the kernels read it (native/kernels.h), 16 outputs side by side.

    W[o, i] = factors[o] * tables[o // 16, index[o, i]]            at 2 and 4 bits, tables of int8
    W[o, i] = factors[o] * index[o, i]                             at 8 bits, the index an int8 itself

For 16 outputs, from input i on, 64 bytes: byte 4 r + j holds the indices of the inputs i + j, i + 4 + j, ... of output
r, the first in the lowest bits. Inputs are padded to a multiple of 64; a padded vector is zero there.

Shapes: O outputs, I inputs, P inputs padded, G = O / 16 groups.
"""

import dataclasses

import numpy as np

GROUP = 16
BLOCK = 64
WIDTHS = (2, 4, 8)


@dataclasses.dataclass(frozen=True)
class DeviceMatrix:
    """One matrix as NumPy arrays."""

    bits: int
    inputs: int
    packed: np.ndarray  # uint8 [G, P * 16 * bits / 8]
    tables: np.ndarray | None  # int8 [G, 16]; none at 8 bits
    factors: np.ndarray  # float32 [O]

    @property
    def outputs(self) -> int:
        return len(self.factors)

    @property
    def nbytes(self) -> int:
        """What a product reads."""
        return self.packed.nbytes + self.factors.nbytes + (0 if self.tables is None else self.tables.nbytes)


def padded(inputs: int) -> int:
    """The next multiple of 64."""
    return -(-inputs // BLOCK) * BLOCK


def packed_bytes(inputs: int, bits: int) -> int:
    """Bytes of one group's indices."""
    return padded(inputs) * GROUP * bits // 8


def from_palette(indices_OI: np.ndarray, tables: np.ndarray, scales_O: np.ndarray, bits: int) -> DeviceMatrix:
    """A palettized matrix: indices uint8, tables float16 [G, 2 ** bits], scales float16.

    A table becomes integers times a factor of its own, the one of 64 to 127 steps to its largest entry that comes
    nearest to it: within 1/254 of that entry, and exactly on the balanced grid.
    """
    entries = tables.astype(np.float64)
    largest = np.abs(entries).max(axis=1)
    steps = np.arange(127, 63, -1, dtype=np.float64)
    unit = np.where(largest > 0, largest, 1)[:, None] / steps  # G, 64
    whole = np.rint(entries[:, None, :] / unit[..., None])
    error = np.sum((whole * unit[..., None] - entries[:, None, :]) ** 2, axis=2)
    best = np.argmin(error, axis=1)
    integers = np.zeros((len(tables), GROUP), np.int8)
    integers[:, : entries.shape[1]] = whole[np.arange(len(tables)), best]
    factors = scales_O.astype(np.float64) * np.repeat(unit[np.arange(len(tables)), best], GROUP)
    return DeviceMatrix(bits, indices_OI.shape[1], pack(indices_OI, bits), integers, factors.astype(np.float32))


def from_integers(integers_OI: np.ndarray, scales_O: np.ndarray) -> DeviceMatrix:
    """A matrix of int8 with a scale for every output; outputs are padded to a multiple of 16 with zeros."""
    outputs, inputs = integers_OI.shape
    rows = -(-outputs // GROUP) * GROUP
    wide, factors = np.zeros((rows, inputs), np.int8), np.zeros(rows, np.float32)
    wide[:outputs], factors[:outputs] = integers_OI, scales_O
    return DeviceMatrix(8, inputs, pack(wide.view(np.uint8), 8), None, factors)


def pack(indices_OI: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [O, I] to uint8 [G, P * 16 * bits / 8]."""
    outputs, inputs = indices_OI.shape
    assert outputs % GROUP == 0 and bits in WIDTHS, (indices_OI.shape, bits)
    parts = 8 // bits
    wide = np.zeros((outputs, padded(inputs)), np.uint8)
    wide[:, :inputs] = indices_OI
    each = wide.reshape(outputs // GROUP, GROUP, -1, parts, 4).transpose(0, 2, 1, 4, 3)
    together = np.bitwise_or.reduce([each[..., part] << (bits * part) for part in range(parts)])
    return np.ascontiguousarray(together).reshape(outputs // GROUP, -1)


def unpack(packed: np.ndarray, inputs: int, bits: int) -> np.ndarray:
    """What `pack` was given."""
    parts, groups = 8 // bits, len(packed)
    together = packed.reshape(groups, -1, GROUP, 4)
    each = np.stack([together >> (bits * part) & (2**bits - 1) for part in range(parts)], axis=3)
    return each.transpose(0, 2, 1, 3, 4).reshape(groups * GROUP, -1)[:, :inputs]


def integers(matrix: DeviceMatrix) -> np.ndarray:
    """The weights over their factors, int8 [O, I]."""
    indices_OI = unpack(matrix.packed, matrix.inputs, matrix.bits)
    if matrix.tables is None:
        return indices_OI.view(np.int8)
    return np.take_along_axis(np.repeat(matrix.tables, GROUP, axis=0), indices_OI.astype(np.int64), axis=1)

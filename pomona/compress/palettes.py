"""One weight matrix as indices into tables: a table for 16 outputs, a scale for every output.

What is minimised is the weighted squared error sum h (W - scale table[index])^2. The scale of an output is first the
root mean square of its weights; the tables come from k-means over the scaled weights of 16 outputs, with weights
h scale^2; then every scale becomes the best one for the indices found (least squares), and so on in turn. Everything is
rounded to what is stored before the next thing is fitted to it, and the error is that of what is stored. On-device.md,
palettization.

The floor of a round is two passes over the weights, for the histogram and for the indices. Groups are independent, so
they go through the caches in blocks, on all cores, and the result does not depend on how many there are.

Shapes: O outputs, I inputs, G = O / 16 groups, X bins, E entries of a table.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from pomona.checkpoint.palettes import Palette
from pomona.compress.kmeans import boundaries, kmeans, position
from pomona.core.errors import UserError
from pomona.ops.palette import BALANCED, GROUP

Grid = Literal["free", "balanced"]

BINS = 4096
BLOCK_GROUPS = 8
SHARE_AT_A_TIME = 5
"""At most a fifth of the outputs is worked on at a time, however many cores: a block takes up to five times its
weights, and all together are to take no more than the matrix does."""
TABLE_ROUNDS = 3
"""Rounds of tables and scales. The second and the third lower the error by 0.5 to 1.4 %, weighted by 1.2 to 2.4 %."""
SCALE_ROUNDS = 6
"""Rounds of indices and scales on the balanced grid; the error of Gaussian weights is final after three."""
SMALLEST = np.float32(2**-24)
"""The smallest float16 above zero: a scale below it is zero."""


def palettize(
    name: str, weight_IO: np.ndarray, importance: np.ndarray | None, bits: int, grid: Grid = "free"
) -> Palette:
    """The palette of one matrix.

    Args:
        name: of the tensor, for messages.
        weight_IO: float32, inputs by outputs, as the decoder multiplies it.
        importance: h, float32 [I, O], or [I, 1] where it is the same for all outputs; None: 1.
        grid: `balanced` takes the fixed entries of 2-bit tensors; 4-bit tensors always have tables of their own.

    Raises:
        UserError: weights that are not finite, or a shape that does not divide.
    """
    check_shape(name, weight_IO.shape, bits)
    inputs, outputs = weight_IO.shape
    indices = np.empty((outputs, inputs), np.uint8)
    tables = None if bits == 2 and grid == "balanced" else np.empty((outputs // GROUP, 2**bits), np.float16)
    scales = np.empty(outputs, np.float16)

    def block(first: int) -> np.ndarray:
        rows = slice(first, min(first + BLOCK_GROUPS * GROUP, outputs))
        part_OI = np.ascontiguousarray(weight_IO[:, rows].T)
        h_OI = None if importance is None else _rows(importance, rows, part_OI.shape)
        if not np.isfinite(np.vecdot(part_OI, part_OI)).all() or not (h_OI is None or np.isfinite(h_OI).all()):
            raise UserError(
                f"the weights of {name} are not all finite numbers.",
                "a palette is made of finite weights, whose squares have a sum and whose importance is finite.",
                "a checkpoint from before training diverged: pomona palettize RUN --step N",
            )
        if tables is None:
            return _fit_balanced(part_OI, h_OI, indices[rows], scales[rows])
        groups = slice(rows.start // GROUP, rows.stop // GROUP)
        return _fit_tables(part_OI, h_OI, indices[rows], tables[groups], scales[rows])

    firsts = range(0, outputs, BLOCK_GROUPS * GROUP)
    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, len(firsts) // SHARE_AT_A_TIME))) as pool:
        errors = list(pool.map(block, firsts))
    return Palette(bits, indices, tables, scales, *map(float, np.sum(errors, axis=0)))


def check_shape(name: str, shape: tuple[int, ...], bits: int) -> None:
    """Raises `UserError` for a matrix [inputs, outputs] that does not divide into groups and whole bytes."""
    inputs, outputs = shape
    if outputs % GROUP:
        raise UserError(
            f"{name} has {outputs} outputs.",
            f"{GROUP} outputs share a table, so their number is a multiple of {GROUP}.",
            f"a model whose sizes are multiples of {GROUP}.",
        )
    if inputs % (8 // bits):
        raise UserError(
            f"{name} has {inputs} inputs.",
            f"{8 // bits} indices of {bits} bits share a byte, so the inputs are a multiple of {8 // bits}.",
            "a model whose sizes are multiples of 16.",
        )


def _rows(importance: np.ndarray, rows: slice, shape: tuple[int, ...]) -> np.ndarray:
    """h_OI of some outputs, contiguous where it differs from output to output."""
    if importance.shape[1] == 1:
        return np.broadcast_to(importance[:, 0].astype(np.float32), shape)
    return np.ascontiguousarray(importance[:, rows].T, np.float32)


def _fit_tables(
    part_OI: np.ndarray, h_OI: np.ndarray | None, indices: np.ndarray, tables: np.ndarray, scales: np.ndarray
) -> np.ndarray:
    """Fills the palette of a block of outputs, by rounds as long as its error falls; returns its three errors."""
    scale = _float16(np.sqrt(np.vecdot(part_OI, part_OI) / part_OI.shape[1]))
    best, start = np.full(3, np.inf), None
    for _ in range(TABLE_ROUNDS):
        entries, values_GE, scale, errors = _round(part_OI, h_OI, scale, start, tables.shape[1])
        if errors[0] >= best[0]:
            break
        indices[:], tables[:], scales[:], best, start = entries, values_GE, scale, errors, values_GE
    return best


def _round(
    part_OI: np.ndarray, h_OI: np.ndarray | None, scale: np.ndarray, start: np.ndarray | None, entries: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tables for the scales, then indices for the tables, then scales for the indices; and the three errors.

    Args:
        start: tables to begin with; the best ones are searched for where there are none.
    """
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    largest_G = (np.abs(part_OI).max(axis=1) * inverse).reshape(-1, GROUP).max(axis=1)
    largest_G[largest_G == 0] = 1
    bins_OI, histogram = np.empty(part_OI.shape, np.int16), np.empty((len(largest_G), BINS))
    for group, rows in _groups(part_OI):
        shrink = (inverse[rows] / largest_G[group])[:, None]
        bins_OI[rows] = position(part_OI[rows] * shrink, BINS)
        # sum h (W - scale c)^2 = sum h scale^2 (W / scale - c)^2: larger outputs count more.
        weights = np.broadcast_to((scale[rows].astype(np.float64) ** 2)[:, None], bins_OI[rows].shape)
        if h_OI is not None and h_OI[rows].any():
            weights = weights * h_OI[rows]
        counted = np.bincount(bins_OI[rows].ravel().astype(np.intp), weights.ravel(), BINS)
        histogram[group] = counted if counted.any() else 1  # nothing but zeros: any table is right
    normal = None if start is None else start / largest_G[:, None]
    tables = (kmeans(histogram, entries, normal) * largest_G[:, None]).astype(np.float16)
    stored = tables.astype(np.float32)
    edges = np.clip(boundaries(stored / largest_G[:, None], BINS), 0, BINS)
    indices, scales, errors = np.empty(part_OI.shape, np.uint8), np.empty_like(scale), np.zeros(3)
    for group, rows in _groups(part_OI):
        entry_X = np.cumsum(np.bincount(edges[group], minlength=BINS + 1)[:BINS]).astype(np.uint8)
        np.take(entry_X, bins_OI[rows], out=indices[rows], mode="clip")
        values = np.take(stored[group], indices[rows], mode="clip")
        h = None if h_OI is None else h_OI[rows]
        scales[rows] = _best_scales(part_OI[rows], values, h, scale[rows])
        errors += _errors(part_OI[rows], values, h, scales[rows])
    return indices, tables, scales, errors


def _fit_balanced(part_OI: np.ndarray, h_OI: np.ndarray | None, indices: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """As `_fit_tables`, on the grid {-1.5, -0.5, 0.5, 1.5}: only the scales are fitted, in turn with the indices."""
    grid = np.array(BALANCED, np.float32)
    errors = np.zeros(3)
    for _, rows in _groups(part_OI):
        part, h = part_OI[rows], None if h_OI is None else h_OI[rows]
        scale = _float16(np.sqrt(np.vecdot(part, part) / part.shape[1]))
        best, least = scale, np.full(GROUP, np.inf)
        for _ in range(SCALE_ROUNDS):
            values = grid[_balanced_indices(part, scale)]
            found = _best_scales(part, values, h, scale)
            row_errors = _row_errors(part, values, h, found)
            best, least = np.where(row_errors < least, found, best), np.minimum(row_errors, least)
            scale = found
        indices[rows] = _balanced_indices(part, best)
        scales[rows] = best
        errors += _errors(part, grid[indices[rows]], h, scales[rows])
    return errors


def _groups(part_OI: np.ndarray) -> list[tuple[int, slice]]:
    return [(first // GROUP, slice(first, first + GROUP)) for first in range(0, len(part_OI), GROUP)]


def _balanced_indices(part: np.ndarray, scale: np.ndarray) -> np.ndarray:
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(np.floor(part * inverse[:, None] + 2), 0, 3).astype(np.uint8)


def _best_scales(part: np.ndarray, values: np.ndarray, h: np.ndarray | None, otherwise: np.ndarray) -> np.ndarray:
    """sum h W q / sum h q^2 of every output, as float16 in float32; `otherwise` where that is no positive number."""
    weighted = values if h is None else values * h
    over, under = np.vecdot(part, weighted), np.vecdot(values, weighted)
    best = np.divide(over, under, out=np.zeros_like(over), where=under > 0)
    return np.where(best > 0, _float16(best), otherwise)


def _row_errors(part: np.ndarray, values: np.ndarray, h: np.ndarray | None, scale: np.ndarray) -> np.ndarray:
    difference = part - values * scale.astype(np.float32)[:, None]
    return np.vecdot(difference, difference if h is None else difference * h)


def _errors(part: np.ndarray, values: np.ndarray, h: np.ndarray | None, scale: np.ndarray) -> np.ndarray:
    """The sums of the weighted squared errors, of the squared errors and of the squared weights."""
    difference = part - values * scale.astype(np.float32)[:, None]
    plain = np.vecdot(difference, difference).astype(np.float64).sum()
    weighted = plain if h is None else np.vecdot(difference, difference * h).astype(np.float64).sum()
    return np.array([weighted, plain, np.vecdot(part, part).astype(np.float64).sum()])


def _float16(scale: np.ndarray) -> np.ndarray:
    """float32 values that float16 holds exactly."""
    return np.where(scale < SMALLEST, 0, scale).astype(np.float16).astype(np.float32)

"""A weight with a low-rank correction beside it: y = x W + scale * (x A) B, and A, B from the error they correct.

Hu et al. 2021, "LoRA", section 4.1, with A and B as the decoder multiplies them: inputs by rank, rank by outputs. The
product A B is never added to W: a palettized W could not hold it.

Shapes: L layers, I inputs, O outputs, R rank, N adapters at hand, B sequences.
"""

import dataclasses
from typing import Any, Generic, TypeVar

import jax
import numpy as np

P = TypeVar("P")  # the kind of leaf, as in model.decoder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted(Generic[P]):
    """The weights of one projection in all layers, and their correction; within a layer every field is without its L.

    With `choice` there are several adapters at hand, and every sequence of the batch has its own: contents and choice
    are data, so that neither compiles anything anew.
    """

    base: Any  # any kind of weight that the decoder takes
    a: P  # [L, I, R], or [L, N, I, R] where there is a choice
    b: P  # [L, R, O], or [L, N, R, O]
    scale: P  # float32 [L], or [L, N + 1] where there is a choice; the last is zero
    choice: P | None = None  # int32 [L, B], the same in every layer; -1 for no adapter


def factors(error_IO: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The A_IR and B_RO whose product is nearest to a matrix: its truncated SVD, each side with the root of the
    singular values (Eckart and Young 1936), so that both begin with weights of one size.

    A rank above that of the matrix fills up with zeros. The SVD is by the eigenvectors of the smaller Gram matrix, in
    float64: a singular value below 1e-8 of the largest is noise to it, far below what float32 weights say.
    """
    error = error_IO.astype(np.float64)
    inputs, outputs = error.shape
    tall = inputs >= outputs
    gram = error.T @ error if tall else error @ error.T
    values, vectors = np.linalg.eigh(gram)
    kept = min(rank, len(values))
    squares, near = np.maximum(values[::-1][:kept], 0), vectors[:, ::-1][:, :kept]
    roots = squares**0.25
    far = (error if tall else error.T) @ near  # singular vectors of the longer side, times the singular values
    floor = 1e-8 * (np.sqrt(squares[:1]) if kept else 1)
    real = np.sqrt(squares) > floor
    long = np.where(real, far / np.where(real, roots, 1), 0)
    short = np.where(real, near * roots, 0)
    a, b = (long, short.T) if tall else (short, long.T)
    pad = rank - kept
    return np.pad(a, ((0, 0), (0, pad))).astype(np.float32), np.pad(b, ((0, pad), (0, 0))).astype(np.float32)

"""An adapter as the kernels take it: both factors int8, the first a matrix like the model's own.

    y += factors * B (A x)          A one scale a rank, B one scale an output, times alpha / rank

What it adds is small beside the product, so is what rounding it to int8 loses, and decoding reads a byte a weight.
Shapes: L layers, I inputs, O outputs, R rank, padded to a multiple of 16.
"""

import dataclasses
from pathlib import Path

import numpy as np

from pomona.adapters.bundle import read_bundle
from pomona.core.errors import UserError
from pomona.device.file import DeviceFile
from pomona.device.layout import GROUP, DeviceMatrix, from_integers
from pomona.model.config import PLACES

LARGEST_RANK = 256  # POMONA_LARGEST_RANK


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The correction of one projection of one layer."""

    a: DeviceMatrix  # R outputs, I inputs, 8 bits
    b: np.ndarray  # int8 [O / 16, R, 16]
    factors: np.ndarray  # float32 [O]

    @property
    def nbytes(self) -> int:
        """What a token reads."""
        return self.a.nbytes + self.b.nbytes + self.factors.nbytes


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceAdapter:
    """An adapter in memory, for the sessions of one model."""

    name: str
    base: str
    layers: tuple[dict[str, LowRank], ...]

    @property
    def nbytes(self) -> int:
        """What a token reads."""
        return sum(each.nbytes for layer in self.layers for each in layer.values())


def read_adapter(path: Path, file: DeviceFile) -> DeviceAdapter:
    """Reads a bundle (`pomona export RUN --format adapter`) for a model.

    Raises:
        UserError: it belongs to another base, is damaged, or its rank is above 256.
    """
    bundle = read_bundle(path, file.about["fingerprint"], file.architecture)
    if bundle.rank > LARGEST_RANK:
        raise UserError(
            f"the adapter {path} has rank {bundle.rank}.",
            f"the device runtime computes ranks of at most {LARGEST_RANK}.",
            "an adapter that was trained with a lower --rank.",
        )
    weights = bundle.weights
    layers = (
        {name: low_rank(weights[f"{name}.a"][layer], weights[f"{name}.b"][layer], bundle.scale) for name in PLACES}
        for layer in range(file.architecture.num_layers)
    )
    return DeviceAdapter(bundle.name, bundle.base, tuple(layers))


def low_rank(a_IR: np.ndarray, b_RO: np.ndarray, scale: float) -> LowRank:
    """One correction, rounded; `scale` is alpha / rank."""
    a_RI, a_scales = _rounded(a_IR.T)
    b_OR, b_scales = _rounded(b_RO.T)
    a = from_integers(a_RI, a_scales)
    wide = np.zeros((len(b_OR), a.outputs), np.int8)
    wide[:, : b_OR.shape[1]] = b_OR
    b = np.ascontiguousarray(wide.reshape(-1, GROUP, a.outputs).transpose(0, 2, 1))
    return LowRank(a, b, (b_scales * scale).astype(np.float32))


def _rounded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 and float32 scales of rows."""
    scales = np.abs(rows).max(axis=1) / 127
    whole = np.rint(rows / np.where(scales > 0, scales, 1)[:, None])
    return whole.astype(np.int8), scales.astype(np.float32)

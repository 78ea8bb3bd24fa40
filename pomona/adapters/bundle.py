"""The adapter bundle: one adapter as a folder, tied to the base it was trained on.

    adapter.json          name, rank, alpha, projections, the base's fingerprint, the metric, a checksum of the weights
    adapter.safetensors   PROJECTION.a [L, I, R] and PROJECTION.b [L, R, O] for each of the seven projections

An adapter corrects the error of one base, so it is refused on any other. Shapes: L layers, I inputs, O outputs, R rank.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pomona.core.errors import UserError
from pomona.core.files import new_folder, read_json, write_json
from pomona.model.config import PLACES, Architecture, projection_shapes

FORMAT = 1
ABOUT, WEIGHTS = "adapter.json", "adapter.safetensors"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An adapter with what is known of it."""

    name: str
    weights: dict[str, np.ndarray]
    """float32, by name: `query.a` [L, I, R] and `query.b` [L, R, O], for each of the seven projections."""
    rank: int
    alpha: float
    base: str
    """The fingerprint of the base: of its palettes, or of its checkpoint."""
    metric: dict[str, float]
    """What was measured with it, such as bits_per_byte on held-out text."""

    @property
    def scale(self) -> float:
        """What the correction is multiplied by."""
        return self.alpha / self.rank


def write_bundle(target: Path, bundle: Bundle, dtype: str = "float32") -> None:
    """Writes a bundle, whole or not at all.

    Raises:
        UserError: the folder exists already, the disk is full, or a weight is not finite.
    """
    tensors = {name: array.astype(DTYPES[dtype]) for name, array in bundle.weights.items()}
    for name, array in tensors.items():
        if not np.isfinite(array.astype(np.float32)).all():
            raise UserError(
                f"the adapter's {name} has values that are not finite in {dtype}.",
                "an adapter's weights are finite, also in the type they are written in.",
                "--dtype float32; if that fails too, export an earlier checkpoint with --step.",
            )
    with new_folder(target) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / WEIGHTS).chmod(0o644)  # safetensors makes private files
        about = {
            "format": FORMAT,
            "name": bundle.name,
            "rank": bundle.rank,
            "alpha": bundle.alpha,
            "projections": list(PLACES),
            "base": bundle.base,
            "metric": bundle.metric,
            "dtype": dtype,
            "sha256": _digest(folder / WEIGHTS),
        }
        write_json(folder / ABOUT, about)


def read_bundle(path: Path, base: str, architecture: Architecture) -> Bundle:
    """Reads a bundle for a base.

    Args:
        base: the base's fingerprint.

    Raises:
        UserError: it belongs to another base, is damaged, or has other shapes.
    """
    about = read_about(path)
    if about["base"] != base:
        raise UserError(
            f"the adapter {path} belongs to the base {about['base']}, and this base is {base}.",
            "an adapter corrects the weights it was trained on, and no others.",
            f"give it the base it was trained on, or recover or adapt this one and export that adapter to {path}-new.",
        )
    return Bundle(
        name=about["name"],
        weights=_weights(path, about, architecture),
        rank=about["rank"],
        alpha=about["alpha"],
        base=about["base"],
        metric=about["metric"],
    )


def read_about(path: Path) -> dict[str, Any]:
    """What a bundle says about itself.

    Raises:
        UserError: there is no bundle, or it is not of this format.
    """
    if not (path / ABOUT).exists():
        raise UserError(
            f"{path} is no adapter: it has no {ABOUT}.",
            f"an adapter is a folder with {ABOUT} and {WEIGHTS}.",
            f"pomona export RUN --format adapter --output {path}",
        )
    about = read_json(path / ABOUT)
    kinds = {"name": str, "rank": int, "alpha": float, "base": str, "metric": dict, "sha256": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(about.get(name), kind)]
    if about.get("format") != FORMAT or about.get("projections") != list(PLACES) or wrong:
        raise UserError(
            f"{path / ABOUT} is not of this format"
            + (f": {wrong[0]} is {about.get(wrong[0])!r}." if wrong else f": format {about.get('format')!r}."),
            f"a bundle of format {FORMAT} states " + ", ".join(kinds) + " and all seven projections.",
            "export the adapter again with this version of Pomona.",
        )
    return about


def weight_shapes(architecture: Architecture, rank: int) -> dict[str, tuple[int, int, int]]:
    """The shape of every array of a bundle, by name."""
    L = architecture.num_layers
    shapes: dict[str, tuple[int, int, int]] = {}
    for name, (inputs, outputs) in projection_shapes(architecture).items():
        shapes |= {f"{name}.a": (L, inputs, rank), f"{name}.b": (L, rank, outputs)}
    return shapes


def _weights(path: Path, about: dict[str, Any], architecture: Architecture) -> dict[str, np.ndarray]:
    file = path / WEIGHTS
    if not file.exists() or _digest(file) != about["sha256"]:
        raise UserError(
            f"{file} is {'damaged' if file.exists() else 'missing'}.",
            f"the weights are those that {ABOUT} has a checksum of.",
            "copy the folder again.",
        )
    expected = weight_shapes(architecture, about["rank"])
    try:
        with safe_open(file, framework="numpy") as handle:
            found = {name: handle.get_tensor(name).astype(np.float32) for name in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read: {error}.", "it is a safetensors file.", "copy it again.") from error
    for name, shape in expected.items():
        if name not in found or found[name].shape != shape:
            raise UserError(
                f"{file} has {name} of the shape {found[name].shape if name in found else None}.",
                f"this base with rank {about['rank']} needs {shape}.",
                "an adapter that was exported from a run on this base.",
            )
    return {name: found[name] for name in expected}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

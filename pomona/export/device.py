"""A run as one device file: the palettes' own indices, packed as the kernels read them; 8 bits where there are none.

Tables become int8 with a factor of their own (device/layout.py); everything else is what the run folder holds.
"""

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from pomona.checkpoint.palettes import REST, read_about, stored_tensors, unpack_to_nibbles
from pomona.core.config import to_json
from pomona.core.errors import UserError
from pomona.core.files import check_new_file
from pomona.core.run_folder import RunFolder, read_config
from pomona.data.tokenizer import MODEL_FILE
from pomona.device.file import check_device_shape, matrix_shapes, norm_shapes, write_file
from pomona.device.layout import DeviceMatrix, from_integers, from_palette
from pomona.model.config import NORMS, Architecture
from pomona.ops.palette import BALANCED, GROUP, narrow_rows, unpack_nibbles
from pomona.train.config import Run, stage_of
from pomona.train.objective_config import LowRank
from pomona.train.origin import is_palettized

Part = tuple[str, DeviceMatrix | np.ndarray]
"""A matrix or a norm, by its name in the file."""


def export_device(path: Path, target: Path, step: int | None = None) -> dict[str, float]:
    """Writes the device file of a run folder: its palettes, or 8 bits for every weight where it has none. Returns its
    bits a weight and its size in bytes.

    Args:
        step: of a run with checkpoints; the newest by default.

    Raises:
        UserError: the run has changed bytes, no checkpoint, or a shape that the kernels do not compute; a file that
            exists already, or a full disk.
    """
    check_new_file(target)
    run = read_config(RunFolder(path), Run)
    if isinstance(run.objective, LowRank) and run.origin is not None:
        raise UserError(
            f"{path} holds an adapter for {run.origin.run}.",
            "a device file holds weights, and an adapter is a folder beside it.",
            f"pomona export {run.origin.run} --format pomona; the adapter: pomona export {path} --format adapter",
        )
    check_device_shape(run.architecture)
    tokenizer = (RunFolder(path).tokenizer / MODEL_FILE).read_bytes()
    about, tensors = _palettized(path, run, step) if is_palettized(path) else _rounded(path, run, step)
    write_file(target, about, _ordered(tensors, tokenizer))
    return {"bits_per_weight": about["bits_per_weight"], "bytes": float(target.stat().st_size)}


def _palettized(path: Path, run: Run, step: int | None) -> tuple[dict[str, Any], Iterator[Part]]:
    assert run.origin is not None, "a palettized model was made from a run"
    if step is not None:
        raise UserError(f"{path} has no step {step}.", "its palettes are one model.", "leave --step out.")
    palettes = RunFolder(path).palettes
    told = read_about(palettes)
    bits = {each["name"]: each["bits"] for each in told["tensors"] if each["name"] != REST} | {"embedding": 8}

    def parts() -> Iterator[Part]:
        for written, arrays in stored_tensors(palettes):
            if written.name != REST:
                yield written.name, _matrix(written.bits, arrays)
                continue
            yield "embedding", from_integers(arrays["embedding"], arrays["embedding_scales"])
            yield from _norms({name: arrays[name] for name in (*NORMS, "final_norm")}, run.architecture)

    own = {name: told[name] for name in ("bits_per_weight", "fingerprint")}
    return _about(run, stage_of(run, run.origin.step).rope_base, bits) | own, parts()


def _rounded(path: Path, run: Run, step: int | None) -> tuple[dict[str, Any], Iterator[Part]]:
    """A model that was not palettized, each output's weights rounded to 8 bits: nearly what it is, to compare with."""
    from pomona.train.load import load_model
    from pomona.train.origin import origin_of

    model = load_model(path, step)
    layers, shapes = model.params.layers, matrix_shapes(run.architecture)

    def parts() -> Iterator[Part]:
        for name in shapes:
            if name == "embedding":
                yield name, from_integers(*narrow_rows(np.asarray(model.params.embedding, np.float32)))
                continue
            _, layer, place = name.split(".", 2)
            weight = np.asarray(attrgetter(place)(layers)[int(layer)], np.float32)
            outputs, inputs = shapes[name]
            yield name, from_integers(*narrow_rows(np.ascontiguousarray(weight.reshape(inputs, outputs).T)))
        norms = {name: np.asarray(attrgetter(name)(layers), np.float32) for name in NORMS}
        yield from _norms(norms | {"final_norm": np.asarray(model.params.final_norm, np.float32)}, run.architecture)

    own = {"bits_per_weight": 8.0, "fingerprint": origin_of(path, model.step).fingerprint}
    return _about(run, model.stage.rope_base, dict.fromkeys(shapes, 8)) | own, parts()


def _about(run: Run, rope_base: float, bits: dict[str, int]) -> dict[str, Any]:
    architecture = to_json(run.architecture)
    return {"name": run.name, "architecture": architecture, "rope_base": rope_base, "bits": bits}


def _norms(arrays: dict[str, np.ndarray], architecture: Architecture) -> Iterator[Part]:
    norms = {name if name == "final_norm" else f"layers.{name}": array for name, array in arrays.items()}
    assert {name: array.shape for name, array in norms.items()} == norm_shapes(architecture)
    yield from norms.items()


def _ordered(parts: Iterator[Part], tokenizer: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """Everything in the file's order: matrices, which are long, then what is short."""
    short: list[tuple[str, np.ndarray]] = []
    for name, part in parts:
        if isinstance(part, np.ndarray):
            short.append((name, part))
            continue
        yield f"{name}.packed", part.packed
        if part.tables is not None:
            short.append((f"{name}.tables", part.tables))
        short.append((f"{name}.factors", part.factors))
    yield from short
    yield "tokenizer", np.frombuffer(tokenizer, np.uint8)


def _matrix(bits: int, arrays: dict[str, np.ndarray]) -> DeviceMatrix:
    indices_OI = unpack_nibbles(unpack_to_nibbles(arrays["indices"], bits))
    balanced = np.tile(np.array(BALANCED, np.float16), (len(indices_OI) // GROUP, 1))
    return from_palette(indices_OI, arrays.get("tables", balanced), arrays["scales"], bits)

"""A palettized run as one device file: the palettes' own indices, packed as the kernels read them.

Tables become int8 with a factor of their own (device/layout.py); everything else is what the run folder holds.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pomona.checkpoint.palettes import REST, read_about, stored_tensors, unpack_to_nibbles
from pomona.core.config import to_json
from pomona.core.errors import UserError
from pomona.core.files import check_new_file
from pomona.core.run_folder import RunFolder, read_config
from pomona.data.tokenizer import MODEL_FILE
from pomona.device.file import check_device_shape, norm_shapes, write_file
from pomona.device.layout import DeviceMatrix, from_integers, from_palette
from pomona.model.config import NORMS
from pomona.ops.palette import BALANCED, GROUP, unpack_nibbles
from pomona.train.config import Run, stage_of
from pomona.train.objective_config import LowRank
from pomona.train.origin import check_palettized


def export_device(path: Path, target: Path) -> dict[str, float]:
    """Writes the device file of a palettized run folder. Returns its bits a weight and its size in bytes.

    Raises:
        UserError: the run is not palettized or has changed bytes, a shape that the kernels do not compute, a file
            that exists already, or a full disk.
    """
    check_new_file(target)
    run = read_config(RunFolder(path), Run)
    if isinstance(run.objective, LowRank) and run.origin is not None:
        raise UserError(
            f"{path} holds an adapter for {run.origin.run}.",
            "a device file holds palettes, and an adapter is a folder beside it.",
            f"pomona export {run.origin.run} --format pomona; the adapter: pomona export {path} --format adapter",
        )
    check_palettized(path, "a device file holds palettes.")
    assert run.origin is not None, "a palettized model was made from a run"
    check_device_shape(run.architecture)
    palettes, told = RunFolder(path).palettes, read_about(RunFolder(path).palettes)
    bits = {each["name"]: each["bits"] for each in told["tensors"] if each["name"] != REST} | {"embedding": 8}
    about = {
        "name": run.name,
        "architecture": to_json(run.architecture),
        "rope_base": stage_of(run, run.origin.step).rope_base,
        "bits": bits,
        "bits_per_weight": told["bits_per_weight"],
        "fingerprint": told["fingerprint"],
    }
    write_file(target, about, _tensors(palettes, (RunFolder(path).tokenizer / MODEL_FILE).read_bytes(), run))
    return {"bits_per_weight": told["bits_per_weight"], "bytes": float(target.stat().st_size)}


def _tensors(palettes: Path, tokenizer: bytes, run: Run) -> Iterator[tuple[str, np.ndarray]]:
    """Everything in the file's order: matrices, which are long, then what is short."""
    short: list[tuple[str, np.ndarray]] = []
    for written, arrays in stored_tensors(palettes):
        if written.name != REST:
            matrix, name = _matrix(written.bits, arrays), written.name
        else:
            matrix, name = from_integers(arrays["embedding"], arrays["embedding_scales"]), "embedding"
            norms = {f"layers.{norm}": arrays[norm] for norm in NORMS} | {"final_norm": arrays["final_norm"]}
            assert {norm: array.shape for norm, array in norms.items()} == norm_shapes(run.architecture)
            short += norms.items()
        yield f"{name}.packed", matrix.packed
        if matrix.tables is not None:
            short.append((f"{name}.tables", matrix.tables))
        short.append((f"{name}.factors", matrix.factors))
    yield from short
    yield "tokenizer", np.frombuffer(tokenizer, np.uint8)


def _matrix(bits: int, arrays: dict[str, np.ndarray]) -> DeviceMatrix:
    indices_OI = unpack_nibbles(unpack_to_nibbles(arrays["indices"], bits))
    balanced = np.tile(np.array(BALANCED, np.float16), (len(indices_OI) // GROUP, 1))
    return from_palette(indices_OI, arrays.get("tables", balanced), arrays["scales"], bits)

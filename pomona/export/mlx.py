"""A folder for MLX, Apple's own array library: config and safetensors as `mlx_lm.load` reads them.

It is the Hugging Face folder (export/hf.py) whose matrices may be stored in MLX's affine groups: 64 weights of a row
share a scale and a bias, w = scale * q + bias, and q are packed into uint32, the first in the lowest bits.

    affine8     8 bits for any model: scale and bias from the least and the largest of the 64, in float16
    affine2     the balanced 2-bit grid with scale = the row's and bias = -1.5 times it, in float32 so that both are
                exact; the embedding at 8 bits with bias = -128 times its row's scale

Shapes: O outputs, I inputs, of which 64 make a group.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pomona.adapters.bundle import DTYPES
from pomona.core.errors import UserError
from pomona.core.files import new_folder, write_json
from pomona.data.tokenizer import MODEL_FILE
from pomona.export.grid import balanced
from pomona.export.hf import EMBEDDING, PROJECTION_NAMES, qwen3_config, tensors, write_tokenizer, write_weights
from pomona.model.adapter import densify
from pomona.model.decoder import Decoder
from pomona.train.load import Model

GROUP = 64
EXACT = {"group_size": GROUP, "bits": 2, EMBEDDING.removesuffix(".weight"): {"group_size": GROUP, "bits": 8}}
QUANTIZATIONS: dict[str, dict[str, Any]] = {"affine8": {"group_size": GROUP, "bits": 8}, "affine2": EXACT}


def export_mlx(model: Model, target: Path, dtype: str = "bfloat16") -> None:
    """Writes a folder that `mlx_lm.load` loads.

    Args:
        dtype: a type of numbers, `affine8` or `affine2`.

    Raises:
        UserError: the folder exists already, the disk is full, rows are not a multiple of 64, or the weights are not
            on the grid that `affine2` holds.
    """
    a, stage = model.run.architecture, model.stage
    numbers = {"affine8": "float16", "affine2": "float32"}.get(dtype, dtype)
    config = qwen3_config(a, stage.rope_base, stage.sequence_length, numbers)
    if dtype in QUANTIZATIONS:
        config["quantization"] = config["quantization_config"] = QUANTIZATIONS[dtype]
    with new_folder(target) as folder:
        write_weights(folder, _stored(model, dtype))
        write_json(folder / "config.json", config)
        write_tokenizer(folder, model.tokenizer, stage.sequence_length)
        shutil.copyfile(model.tokenizer.path, folder / MODEL_FILE)


def _stored(model: Model, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of everything in the folder, one layer in memory at a time."""
    params = densify(model.params, model.run.architecture)
    if dtype in DTYPES:
        yield from tensors(params, DTYPES[dtype])
        return
    numbers = np.dtype(np.float16) if dtype == "affine8" else np.dtype(np.float32)
    for name, array in tensors(params, np.dtype(np.float32)):
        if array.ndim == 1:
            yield name, array.astype(numbers)
            continue
        if array.shape[1] % GROUP:
            raise UserError(
                f"{name} has rows of {array.shape[1]} weights.",
                f"MLX stores groups of {GROUP} weights of a row.",
                "--dtype bfloat16",
            )
        if dtype == "affine8":
            parts = affine8(array, numbers)
        elif name == EMBEDDING:
            parts = affine_rows(array)
        else:
            parts = affine2(model.params, name)
        for ending, part in zip(("weight", "scales", "biases"), parts):
            yield f"{name.removesuffix('weight')}{ending}", part


def affine8(array_OI: np.ndarray, numbers: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Any weights in 256 steps between the least and the largest of 64: packed, scales and biases [O, I / 64]."""
    groups = array_OI.reshape(len(array_OI), -1, GROUP)
    biases = groups.min(axis=2).astype(numbers)
    scales = ((groups.max(axis=2) - biases) / 255).astype(numbers)
    steps = np.where(scales > 0, scales, 1).astype(np.float32)[..., None]
    whole = np.rint((groups - biases.astype(np.float32)[..., None]) / steps).clip(0, 255).astype(np.uint8)
    return pack(whole.reshape(array_OI.shape), 8), scales, biases


def affine_rows(array_OI: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of int8 times one scale, as a palettized embedding's are: the same numbers again."""
    scales_O = (np.abs(array_OI).max(axis=1) / 127).astype(np.float32)
    whole = np.rint(array_OI / np.where(scales_O > 0, scales_O, 1)[:, None]).astype(np.int16) + 128
    scales = np.repeat(scales_O[:, None], array_OI.shape[1] // GROUP, axis=1)
    return pack(whole.astype(np.uint8), 8), scales, scales * np.float32(-128)


def affine2(params: Decoder, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One projection on the balanced grid, bit for bit; raises `UserError` where it is not."""
    layer, own = int(name.split(".")[2]), PROJECTION_NAMES[name.split(".")[4]]
    indices_OI, scales_O = balanced(params, own, layer, "affine2", "affine8")
    scales = np.repeat(scales_O.astype(np.float32)[:, None], indices_OI.shape[1] // GROUP, axis=1)
    return pack(indices_OI, 2), scales, scales * np.float32(-1.5)


def pack(whole_OI: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [O, I] below 2 ** bits to uint32 [O, I * bits / 32], the first in the lowest bits."""
    parts = 32 // bits
    each = whole_OI.reshape(len(whole_OI), -1, parts).astype(np.uint32)
    return np.bitwise_or.reduce([each[..., part] << np.uint32(bits * part) for part in range(parts)])

"""The device file, `.pom`: a whole model in one safetensors container, used where it lies, without a copy.

    8 bytes     the length of the header, little-endian
    header      JSON: {"__metadata__": {"pomona": ABOUT}, NAME: {"dtype", "shape", "data_offsets"}, ...}, padded with
                spaces so that the data begins at a multiple of 64
    data        packed matrices first (device/layout.py), each a multiple of 64 bytes long

    layers.03.ffn.gate.packed, .tables, .factors      one matrix; every projection of every layer, and `embedding`
    layers.attention_norm, layers.attention.query_norm, ...    float32, stacked over layers; final_norm
    tokenizer                                         the SentencePiece model, uint8

ABOUT is JSON text: format, name, architecture, rope_base, bits by matrix, bits_per_weight, the fingerprint of the
palettes, and the CRC-32 of every tensor. Opening a file checks everything that could make a reader leave its memory,
and that the tokenizer, which another library reads, is as it was written; `verify` checks every byte.
"""

import dataclasses
import json
import math
import mmap
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pomona.core.config import from_json
from pomona.core.errors import UserError
from pomona.core.files import new_file
from pomona.device.layout import GROUP, WIDTHS, DeviceMatrix, packed_bytes
from pomona.model.config import NORMS, PLACES, Architecture, check_architecture, projection_shapes

FORMAT = 1
ALIGNMENT = 64
DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype(np.uint8), "I8": np.dtype(np.int8), "F32": np.dtype(np.float32)}
LARGEST_HEADER = 100_000_000
ROOM, ROOM_PER_MATRIX = 8192, 1024
"""Bytes left for the header: what a matrix's three arrays say of themselves takes under 800."""


@dataclasses.dataclass(frozen=True)
class DeviceFile:
    """An open file; its arrays are read from the disk when they are first used."""

    path: Path
    about: dict[str, Any]
    architecture: Architecture
    rope_base: float
    matrices: dict[str, DeviceMatrix]
    norms: dict[str, np.ndarray]  # float32 [L, D], [L, H]; final_norm [D]
    tokenizer: bytes
    arrays: dict[str, np.ndarray]
    """All of them by their names in the file."""

    @property
    def weight_bytes(self) -> int:
        """What a token reads: all matrices once, the embedding as the output layer."""
        return sum(matrix.nbytes for matrix in self.matrices.values())


def matrix_shapes(a: Architecture) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every matrix by name; the embedding's outputs are padded to a multiple of 16."""
    each = {PLACES[name]: (outputs, inputs) for name, (inputs, outputs) in projection_shapes(a).items()}
    found = {f"layers.{layer:02}.{name}": shape for layer in range(a.num_layers) for name, shape in each.items()}
    return found | {"embedding": (-(-a.vocab_size // GROUP) * GROUP, a.model_dim)}


def norm_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    """Shapes of the norms by name."""
    width = lambda name: a.head_dim if name.startswith("attention.") else a.model_dim
    return {f"layers.{name}": (a.num_layers, width(name)) for name in NORMS} | {"final_norm": (a.model_dim,)}


def check_device_shape(a: Architecture) -> None:
    """Raises `UserError` for a shape that the kernels do not compute."""
    for name, size in (("model_dim", a.model_dim), ("head_dim", a.head_dim), ("ffn_dim", a.ffn_dim)):
        if size % GROUP:
            raise UserError(
                f"architecture.{name} is {size}.",
                f"the device runtime computes {GROUP} numbers at once, so {name} is a multiple of {GROUP}.",
                f"a model with --architecture.{name.replace('_', '-')} {-(-size // GROUP) * GROUP}",
            )


def write_file(path: Path, about: dict[str, Any], tensors: Iterator[tuple[str, np.ndarray]]) -> None:
    """Writes a file, whole or not at all, tensor by tensor as they come; `about` is everything but the checksums.

    The header comes last, into room that was left for it.

    Raises:
        UserError: the file exists already, or the disk is full.
    """
    room = -(-(ROOM + len(json.dumps(about)) + ROOM_PER_MATRIX * len(about["bits"])) // ALIGNMENT) * ALIGNMENT
    listed: dict[str, dict[str, Any]] = {}
    checksums: dict[str, int] = {}
    codes = {dtype: code for code, dtype in DTYPES.items()}
    with new_file(path) as draft, draft.open("wb") as file:
        file.seek(room)
        end = 0
        for name, array in tensors:
            content = np.ascontiguousarray(array).data.cast("B")
            file.write(content)
            entry = {"dtype": codes[array.dtype], "shape": list(array.shape), "data_offsets": [end, end + len(content)]}
            listed[name], checksums[name] = entry, zlib.crc32(content)
            end += len(content)
        metadata = {"pomona": json.dumps({"format": FORMAT, **about, "crc32": checksums})}
        header = json.dumps({"__metadata__": metadata, **listed}).encode()
        assert len(header) + 8 <= room, (len(header), room)
        file.seek(0)
        file.write((room - 8).to_bytes(8, "little") + header.ljust(room - 8))


def read_file(path: Path) -> DeviceFile:
    """Opens a file in milliseconds, whatever its size.

    Raises:
        UserError: not there, not a device file, of a newer format, cut short, or inconsistent.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise _unreadable(path, str(error)) from error
    try:
        about, arrays = _parse(content)
        architecture = from_json(Architecture, about["architecture"], f"{path}: architecture")
        check_architecture(architecture)
        check_device_shape(architecture)
        if architecture.num_layers > len(arrays):  # names of a billion layers would be made before one is missed
            raise ValueError(f"it has {len(arrays)} tensors for {architecture.num_layers} layers")
        matrices = {
            name: _matrix(arrays, name, about["bits"].get(name), *shape)
            for name, shape in matrix_shapes(architecture).items()
        }
        norms = {name: _array(arrays, name, np.float32, shape) for name, shape in norm_shapes(architecture).items()}
        tokenizer = arrays["tokenizer"].tobytes()
        if zlib.crc32(tokenizer) != about["crc32"].get("tokenizer"):
            raise ValueError("its tokenizer is damaged")
        rope_base = float(about["rope_base"])
        if not math.isfinite(rope_base) or rope_base <= 1:
            raise ValueError(f"the rotary base is {rope_base}")
        for name, array in [*norms.items(), *((name, m.factors) for name, m in matrices.items())]:
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise _unreadable(path, f"{error.args[0] if error.args else error} {type(error).__name__}") from error
    return DeviceFile(path, about, architecture, rope_base, matrices, norms, tokenizer, arrays)


def verify(file: DeviceFile) -> None:
    """Reads every byte.

    Raises:
        UserError: a tensor has other bytes than were written.
    """
    with ThreadPoolExecutor(4) as pool:  # zlib lets other threads run
        found = pool.map(lambda item: (item[0], zlib.crc32(item[1].data.cast("B"))), file.arrays.items())
        wrong = [name for name, crc in found if file.about["crc32"].get(name) != crc]
    if wrong:
        raise UserError(
            f"{file.path} is damaged: {', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}.",
            "every tensor of a device file has the checksum it was written with.",
            "copy the file again, or export the run again.",
        )


def _parse(content: mmap.mmap) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """ABOUT and the arrays, none of which reaches outside the file."""
    length = int.from_bytes(content[:8], "little")
    begin = 8 + length
    if len(content) < 8 or length > min(LARGEST_HEADER, len(content) - 8):
        raise ValueError("its header is longer than the file")
    header = json.loads(content[8:begin].decode())
    about = json.loads(header.pop("__metadata__")["pomona"])
    if about["format"] != FORMAT:
        raise UserError(
            f"the file has the format {about['format']!r}.",
            f"this version of Pomona reads format {FORMAT}.",
            "a version of Pomona as new as the one that wrote it, or export the run again.",
        )
    kinds = {"bits": dict, "crc32": dict, "fingerprint": str, "name": str}
    for name, kind in kinds.items():
        if not isinstance(about[name], kind):
            raise ValueError(f"its {name} is {about[name]!r}")
    arrays, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        whole = all(type(size) is int and size >= 0 for size in (*shape, first, last))
        if not whole or first != end or last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} has a wrong place or size")
        if begin + last > len(content):
            raise ValueError(f"it ends within {name}")
        arrays[name] = np.frombuffer(content, dtype, math.prod(shape), begin + first).reshape(shape)
        end = last
    if begin + end != len(content):
        raise ValueError("it goes on after its last tensor")
    return about, arrays


def _matrix(arrays: dict[str, np.ndarray], name: str, bits: Any, outputs: int, inputs: int) -> DeviceMatrix:
    if bits not in WIDTHS or type(bits) is not int:
        raise ValueError(f"{name} has {bits!r} bits")
    groups = outputs // GROUP
    packed = _array(arrays, f"{name}.packed", np.uint8, (groups, packed_bytes(inputs, bits)))
    tables = None if bits == 8 else _array(arrays, f"{name}.tables", np.int8, (groups, GROUP))
    return DeviceMatrix(bits, inputs, packed, tables, _array(arrays, f"{name}.factors", np.float32, (outputs,)))


def _array(arrays: dict[str, np.ndarray], name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    found = arrays[name]
    if found.dtype != dtype or found.shape != shape:
        raise ValueError(f"{name} is {found.dtype} {found.shape}, not {np.dtype(dtype)} {shape}")
    return found


def _unreadable(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path} is no device file that can be read: {problem}.",
        "a device file is what pomona export --format pomona wrote, whole.",
        "pomona export RUN --format pomona, or copy the file again.",
    )

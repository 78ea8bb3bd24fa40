"""A palettized model on disk: `palettes/` of a run folder, truly packed, every byte under a checksum.

    palettes/layers.03.ffn.gate.2.safetensors   one projection of one layer at 2 (or 4) bits: `indices` uint8
                                                [O, I * bits / 8], the first input in the lowest bits; `tables` float16
                                                [G, 2 ** bits], none on the balanced grid; `scales` float16 [O]
    palettes/rest.safetensors                   `embedding` int8 [V, D], `embedding_scales` float32 [V], norms float32
    palettes/palettes.json                      bits, errors and checksum of every tensor; written last

A tensor's file is written whole or not at all. A folder without palettes.json is not finished.

Shapes: L layers, O outputs, I inputs, G = O / 16 groups, V vocabulary, D model.
"""

import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pomona.core.errors import UserError
from pomona.core.files import read_json, write_bytes, write_json
from pomona.model.config import NORMS, PROJECTIONS, Architecture
from pomona.model.decoder import Attention, Decoder, FeedForward, Layer, parameter_specs
from pomona.model.projection import matrix_shape
from pomona.model.spec import Spec
from pomona.ops.palette import BALANCED, GROUP, Palettized, narrow_rows, pack_nibbles

FORMAT = 1
NAME = "palettes.json"
REST = "rest"


@dataclasses.dataclass(frozen=True)
class Palette:
    """One palettized matrix as NumPy arrays. `tables` is None on the balanced grid, `ops.palette.BALANCED`.

    `error` is sum h (W - W^)^2 with the h that the palette was fitted to; `squared_error` and `squared` are sums of the
    squares of W - W^ and of W.
    """

    bits: int
    indices: np.ndarray  # uint8 [O, I], below 2 ** bits
    tables: np.ndarray | None  # float16 [G, 2 ** bits]
    scales: np.ndarray  # float16 [O]
    error: float
    squared_error: float
    squared: float


@dataclasses.dataclass(frozen=True)
class Written:
    """What palettes.json says of one tensor. `stored_bits` counts all that its file holds: indices, tables, scales."""

    name: str
    bits: int
    shape: tuple[int, ...]  # inputs, outputs; of the rest: parameters
    stored_bits: int
    crc32: int
    error: float = 0.0
    squared_error: float = 0.0
    squared: float = 0.0

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def projection_names(architecture: Architecture) -> Iterator[tuple[str, int, str]]:
    """(name, layer, projection) of every palettized matrix: ("layers.03.ffn.gate", 3, "ffn.gate")."""
    for layer in range(architecture.num_layers):
        for projection in PROJECTIONS:
            yield f"layers.{layer:02}.{projection}", layer, projection


def write_palette(folder: Path, name: str, palette: Palette) -> Written:
    """Writes one matrix, whole or not at all.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    arrays = {"indices": pack(palette.indices, palette.bits), "scales": palette.scales}
    if palette.tables is not None:
        arrays["tables"] = palette.tables
    outputs, inputs = palette.indices.shape
    about = {name: getattr(palette, name) for name in ("error", "squared_error", "squared")}
    return _write(folder, Written(name, palette.bits, (inputs, outputs), 0, 0, **about), arrays)


def write_rest(folder: Path, params: Decoder) -> Written:
    """Writes the embedding, as int8 with a scale a row, and the norms, as they are."""
    integers_VD, scales_V = narrow_rows(np.asarray(params.embedding, np.float32))
    arrays = {"embedding": integers_VD, "embedding_scales": scales_V}
    arrays |= {name: np.asarray(attrgetter(name)(params.layers), np.float32) for name in NORMS}
    arrays["final_norm"] = np.asarray(params.final_norm, np.float32)
    parameters = sum(array.size for name, array in arrays.items() if name != "embedding_scales")
    return _write(folder, Written(REST, 8, (parameters,), 0, 0), arrays)


def written(folder: Path, name: str, bits: int) -> Written | None:
    """What an earlier start has written of a tensor; None where there is nothing, or nothing whole."""
    try:
        about, arrays = _read(_path(folder, name, bits))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return about if _crc32(arrays) == about.crc32 else None


def finish(folder: Path, tensors: list[Written], about: dict[str, Any]) -> None:
    """Writes palettes.json over these tensors, then removes what else was tried; the folder is finished."""
    listed = [dataclasses.asdict(each) for each in tensors]
    digest = hashlib.sha256(json.dumps([[t.name, t.bits, t.crc32] for t in tensors]).encode()).hexdigest()[:16]
    write_json(folder / NAME, {"format": FORMAT, "fingerprint": digest, **about, "tensors": listed})
    kept = {_path(folder, each.name, each.bits) for each in tensors}
    for path in set(folder.glob("*.safetensors")) - kept:
        path.unlink()


def read_about(folder: Path) -> dict[str, Any]:
    """What palettes.json says: averages, settings, fingerprint, tensors.

    Raises:
        UserError: it is not there, or of another version.
    """
    about = read_json(folder / NAME)
    if about.get("format") != FORMAT:
        raise UserError(
            f"{folder / NAME} has the format {about.get('format')!r}.",
            f"this version of Pomona reads format {FORMAT}.",
            "palettize the run again with this version.",
        )
    return about


def read_palettes(folder: Path, architecture: Architecture) -> Decoder:
    """The palettized decoder: its linear leaves are `Palettized`, everything else is float32.

    Raises:
        UserError: not finished, damaged, or of other shapes.
    """
    listed = _listed(folder)
    rest = _arrays(folder, listed, REST)
    specs = parameter_specs(architecture)
    layers: dict[str, Any] = {name: _fitting(rest, name, attrgetter(name)(specs.layers).shape) for name in NORMS}
    for projection in PROJECTIONS:
        layers[projection] = _stacked(folder, listed, projection, attrgetter(projection)(specs.layers))
    inside = lambda part: {name.split(".")[1]: leaf for name, leaf in layers.items() if name.startswith(part + ".")}
    embedding_VD = _fitting(rest, "embedding", specs.embedding.shape).astype(jnp.float32)
    return Decoder(
        embedding=embedding_VD * rest["embedding_scales"][:, None],
        layers=Layer(
            attention_norm=layers["attention_norm"],
            attention=Attention(**inside("attention")),
            ffn_norm=layers["ffn_norm"],
            ffn=FeedForward(**inside("ffn")),
        ),
        final_norm=_fitting(rest, "final_norm", specs.final_norm.shape),
    )


def stored_tensors(folder: Path) -> Iterator[tuple[Written, dict[str, np.ndarray]]]:
    """Every tensor with its arrays as they lie in its file, one after the other.

    Raises:
        UserError: not finished, or damaged.
    """
    listed = _listed(folder)
    for name, written in listed.items():
        yield written, _arrays(folder, listed, name)


def pack(indices: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [O, I] to uint8 [O, I * bits / 8]: the first input in the lowest bits of a byte."""
    if bits == 4:
        return pack_nibbles(indices)
    assert bits == 2 and indices.shape[-1] % 4 == 0, (bits, indices.shape)
    return np.bitwise_or.reduce([indices[:, place::4] << (2 * place) for place in range(4)])


def unpack_to_nibbles(packed: np.ndarray, bits: int) -> np.ndarray:
    """What `pack` gave as two indices a byte, whatever the bits."""
    if bits == 4:
        return packed
    halves = [(packed >> shift & 3) | ((packed >> (shift + 2) & 3) << 4) for shift in (0, 4)]
    return np.stack(halves, axis=-1).reshape(len(packed), -1)


def _listed(folder: Path) -> dict[str, Written]:
    return {each["name"]: Written(**each | {"shape": tuple(each["shape"])}) for each in read_about(folder)["tensors"]}


def _stacked(folder: Path, listed: dict[str, Written], projection: str, spec: Spec) -> Palettized:
    """One projection of all layers."""
    num_layers, (inputs, outputs) = spec.shape[0], matrix_shape(spec)
    indices = np.empty((num_layers, outputs, inputs // 2), np.uint8)
    tables = np.zeros((num_layers, outputs // GROUP, 16), np.float16)
    scales = np.empty((num_layers, outputs), np.float16)
    for layer in range(num_layers):
        name = f"layers.{layer:02}.{projection}"
        arrays = _arrays(folder, listed, name)
        if listed[name].shape != (inputs, outputs):
            raise _other_shape(name, listed[name].shape, (inputs, outputs))
        bits = listed[name].bits
        indices[layer] = unpack_to_nibbles(arrays["indices"], bits)
        tables[layer, :, : 2**bits] = arrays.get("tables", np.array(BALANCED, np.float16))
        scales[layer] = arrays["scales"]
    return Palettized(*map(jnp.asarray, (indices, tables, scales)))


def _fitting(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> jax.Array:
    if arrays[name].shape != shape:
        raise _other_shape(name, arrays[name].shape, shape)
    return jnp.asarray(arrays[name])


def _other_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> UserError:
    return UserError(
        f"{name} has the shape {found}.",
        f"by the run's config.json it is {expected}.",
        "a folder whose config.json belongs to its palettes.",
    )


def _arrays(folder: Path, listed: dict[str, Written], name: str) -> dict[str, np.ndarray]:
    """The arrays of a listed tensor, checked against its checksum."""
    problem = "is not listed in palettes.json"
    if name in listed:
        try:
            _, arrays = _read(_path(folder, name, listed[name].bits))
            if _crc32(arrays) == listed[name].crc32:
                return arrays
            problem = "has changed bytes"
        except FileNotFoundError:
            problem = "is missing"
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            problem = f"cannot be read: {error}"
    raise UserError(
        f"{name} of {folder} {problem}.",
        "a palettized model is used only if all its files are as they were written.",
        "restore the folder from a copy, or palettize the run again into a new folder.",
    )


def _path(folder: Path, name: str, bits: int) -> Path:
    return folder / (f"{name}.safetensors" if name == REST else f"{name}.{bits}.safetensors")


def _write(folder: Path, about: Written, arrays: dict[str, np.ndarray]) -> Written:
    stored_bits = 8 * sum(array.nbytes for array in arrays.values())
    about = dataclasses.replace(about, stored_bits=stored_bits, crc32=_crc32(arrays))
    # One key, since several are written in no order, and the same palette has to give the same file.
    content = save(arrays, {"about": json.dumps(dataclasses.asdict(about))})
    write_bytes(_path(folder, about.name, about.bits), content)
    return about


def _read(path: Path) -> tuple[Written, dict[str, np.ndarray]]:
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["about"])
        return Written(**about | {"shape": tuple(about["shape"])}), {
            name: file.get_tensor(name) for name in list(file.keys())
        }


def _crc32(arrays: dict[str, np.ndarray]) -> int:
    crc = 0
    for name, array in sorted(arrays.items()):
        crc = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return crc

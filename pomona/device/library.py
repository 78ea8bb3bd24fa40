"""The native library of the device runtime, as Python sees it (native/device.h).

It is compiled when Pomona is installed (pyproject.toml) and is an optional part of it: without a C++ compiler
`available()` is false, and device/portable.py computes the same in NumPy.
"""

import ctypes
import functools
import weakref
from ctypes import POINTER, c_char_p, c_double, c_float, c_int8, c_int32, c_int64, c_uint8, c_void_p
from pathlib import Path

import numpy as np

from pomona.device.adapter import DeviceAdapter
from pomona.device.file import DeviceFile
from pomona.device.layout import DeviceMatrix, padded
from pomona.model.config import PLACES

floats = POINTER(c_float)
FOLDER = Path(__file__).parent
"""Where the library lies."""


class Matrix(ctypes.Structure):
    """PomonaMatrix."""

    _fields_ = (
        ("packed", POINTER(c_uint8)),
        ("tables", POINTER(c_int8)),
        ("factors", floats),
        ("bits", c_int32),
        ("inputs", c_int32),
        ("outputs", c_int32),
    )


class Layer(ctypes.Structure):
    """PomonaLayer."""

    _fields_ = (
        *((name, floats) for name in ("attention_norm", "query_norm", "key_norm", "ffn_norm")),
        *((name, Matrix) for name in ("query", "key", "value", "output", "gate", "up", "down")),
    )


class Architecture(ctypes.Structure):
    """PomonaArchitecture."""

    _fields_ = (
        *((name, c_int32) for name in ("vocab_size", "model_dim", "num_layers", "num_heads", "num_kv_heads")),
        *((name, c_int32) for name in ("head_dim", "ffn_dim")),
        ("norm_epsilon", c_float),
        ("rope_base", c_double),
    )


class Model(ctypes.Structure):
    """PomonaModel."""

    _fields_ = (
        ("architecture", Architecture),
        ("embedding", Matrix),
        ("layers", POINTER(Layer)),
        ("final_norm", floats),
    )


class LowRank(ctypes.Structure):
    """PomonaLowRank."""

    _fields_ = (("a", Matrix), ("b", POINTER(c_int8)), ("factors", floats))


class AdapterLayer(ctypes.Structure):
    """PomonaAdapterLayer."""

    _fields_ = (("places", LowRank * len(PLACES)),)


LAST, EVERY, HIDDEN = range(3)
"""What a part is run for, as device.h has it."""


class Part(ctypes.Structure):
    """PomonaPart."""

    _fields_ = (
        ("sequence", c_void_p),
        ("adapter", POINTER(AdapterLayer)),
        ("tokens", POINTER(c_int32)),
        ("count", c_int32),
        ("wanted", c_int32),
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    found = sorted(FOLDER.glob("_native*.so")) + sorted(FOLDER.glob("_native*.pyd"))
    if not found:
        return None
    library = ctypes.CDLL(str(found[0]))
    for name, result, arguments in (
        ("pomona_instruction_sets", c_char_p, ()),
        ("pomona_engine", c_void_p, (POINTER(Model), c_int32, c_char_p)),
        ("pomona_close_engine", None, (c_void_p,)),
        ("pomona_sequence", c_void_p, (c_void_p, c_int32)),
        ("pomona_close_sequence", None, (c_void_p,)),
        ("pomona_advance", None, (c_void_p, POINTER(Part), c_int32, floats, floats)),
        ("pomona_forget", None, (c_void_p, c_int32)),
        ("pomona_product", c_int32, (POINTER(Matrix), floats, c_int32, c_int32, c_char_p, floats)),
        ("pomona_read_seconds", c_double, (c_void_p, c_int64, c_int32, c_int32)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def available() -> bool:
    """Whether the native library was compiled."""
    return _library() is not None


def native() -> ctypes.CDLL:
    """The library."""
    library = _library()
    assert library is not None, "ask available() first"
    return library


def instruction_sets() -> tuple[str, ...]:
    """What this processor runs, best first; nothing where the library was not compiled."""
    return tuple(native().pomona_instruction_sets().decode().split(",")) if available() else ()


def pointer(array: np.ndarray, kind: type) -> ctypes._Pointer:
    """To an array, which has to live as long."""
    return array.ctypes.data_as(POINTER(kind))  # type: ignore[arg-type]


def as_matrix(matrix: DeviceMatrix) -> Matrix:
    """A matrix as the library takes it."""
    tables = None if matrix.tables is None else pointer(matrix.tables, c_int8)
    return Matrix(
        pointer(matrix.packed, c_uint8),
        tables,
        pointer(matrix.factors, c_float),
        matrix.bits,
        padded(matrix.inputs),
        matrix.outputs,
    )


def as_model(file: DeviceFile) -> Model:
    """A file's model as the library takes it; both have to live as long as the sessions."""
    a = file.architecture
    layers = (Layer * a.num_layers)()
    for index, layer in enumerate(layers):
        for name, norms in file.norms.items():
            if name != "final_norm":
                setattr(layer, name.split(".")[-1], pointer(norms[index], c_float))
        for name, matrix in file.matrices.items():
            if name.startswith(f"layers.{index:02}."):
                setattr(layer, name.split(".")[-1], as_matrix(matrix))
    sizes = (a.vocab_size, a.model_dim, a.num_layers, a.num_heads, a.num_kv_heads, a.head_dim, a.ffn_dim)
    architecture = Architecture(*sizes, a.norm_epsilon, file.rope_base)
    return Model(
        architecture, as_matrix(file.matrices["embedding"]), layers, pointer(file.norms["final_norm"], c_float)
    )


_adapters: "weakref.WeakKeyDictionary[DeviceAdapter, ctypes.Array]" = weakref.WeakKeyDictionary()


def as_adapter(adapter: DeviceAdapter) -> ctypes.Array:
    """An adapter as the library takes it; both have to live as long as they are used."""
    if adapter in _adapters:
        return _adapters[adapter]
    layers = (AdapterLayer * len(adapter.layers))()
    for layer, own in zip(layers, adapter.layers):
        for place, name in zip(layer.places, PLACES):
            place.a = as_matrix(own[name].a)
            place.b, place.factors = pointer(own[name].b, c_int8), pointer(own[name].factors, c_float)
    _adapters[adapter] = layers
    return layers


def product(matrix: DeviceMatrix, x_TI: np.ndarray, instruction_set: str = "") -> np.ndarray:
    """float32 [T, O]: the vectors, rounded as in a model, times a matrix, on one thread."""
    x_TI = np.ascontiguousarray(x_TI, np.float32)
    out = np.empty((len(x_TI), matrix.outputs), np.float32)
    own, size = as_matrix(matrix), (x_TI.shape[1], len(x_TI))
    failed = native().pomona_product(
        own, pointer(x_TI, c_float), *size, instruction_set.encode(), pointer(out, c_float)
    )
    assert not failed, f"{instruction_set} is none of {instruction_sets()}"
    return out


def read_seconds(data: np.ndarray, threads: int, times: int = 5) -> float:
    """How long so many threads take to read an array, at best."""
    return native().pomona_read_seconds(data.ctypes.data, data.nbytes, threads, times)

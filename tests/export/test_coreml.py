"""A Core ML package read back by coremltools and computed by an interpreter of its operations, since only Apple's
machines run it: the same weights, bit for bit, and our decoder's logits token by token."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))  # small_palettes.py is a module of the tests there
from small_palettes import unpack, write_dense

from pomona.cli.main import main
from pomona.compress.palettize import Settings, palettize_run
from pomona.model.config import PLACES
from pomona.train.load import load_model

sys.path.insert(0, str(Path(__file__).parent))
from reference_models import our_logits

CONTEXT = 16
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its temporary folder


@pytest.fixture(scope="module")
def palettized(cache, tmp_path_factory):
    path = tmp_path_factory.mktemp("coreml")
    write_dense(path / "dense", cache)
    palettize_run(path / "dense", path / "small", Settings(3.5, "free", "none"), None, lambda text: None)
    return path / "small"


def test_bad_requests_are_one_clear_error(palettized, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    for words, problem in (
        ([str(palettized), "--output", str(tmp_path / "m")], "name ends in .mlpackage"),
        ([str(palettized), "--output", str(tmp_path / "m.mlpackage"), "--context", "0"], "a context of 0"),
        ([str(palettized.with_name("dense")), "--output", str(tmp_path / "m.mlpackage")], "is not palettized"),
        ([str(palettized), "--output", str(tmp_path / "m.mlpackage")], "coremltools is not installed"),
        ([str(palettized), "--dtype", "float16"], "--dtype float16 with --format coreml"),
    ):
        assert main(["export", *words, "--format", "coreml"]) == 2
        assert problem in capsys.readouterr().err
    assert main(["export", str(palettized), "--format", "hf", "--context", "5"]) == 2
    assert "--context 5 with --format hf" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def function(palettized, tmp_path_factory):
    """The package's one function, read back."""
    pytest.importorskip("coremltools")
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.models.utils import load_spec

    target = tmp_path_factory.mktemp("package") / "m.mlpackage"
    words = ["export", str(palettized), "--format", "coreml", "--output", str(target), "--context", str(CONTEXT)]
    assert main(words) == 0
    spec = load_spec(str(target))
    weights = str(target / "Data" / "com.apple.CoreML" / "weights")
    return load(spec, spec.specificationVersion, weights).functions["main"]


def slices(begin, size):
    return tuple(slice(int(b), int(b) + int(n)) for b, n in zip(begin, size))


def softmax(x, axis):
    shares = np.exp(x - x.max(axis=axis, keepdims=True))
    return shares / shares.sum(axis=axis, keepdims=True)


NUMPY = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32}
OPERATIONS = {
    "gather": lambda x, indices, axis, **_: np.take(x, indices, axis=axis),
    "cast": lambda x, dtype: np.asarray(x).astype(NUMPY[dtype]),
    "greater": lambda x, y: np.greater(x, y),
    "select": lambda cond, a, b: np.where(cond, a, b),
    "mul": lambda x, y: x * y,
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "rsqrt": lambda x, epsilon: 1 / np.sqrt(x + epsilon),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(axis=tuple(axes), keepdims=bool(keep_dims)),
    "matmul": lambda x, y, transpose_x, transpose_y: x @ (np.swapaxes(y, -1, -2) if transpose_y else y),
    "reshape": lambda x, shape: x.reshape(shape),
    "slice_by_size": lambda x, begin, size: x[slices(begin, size)],
    "concat": lambda values, axis, interleave: np.concatenate(values, axis=axis),
    "slice_update": lambda x, update, begin, end, **_: change(x, update, begin, end),
    "softmax": softmax,
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def change(x, update, begin, end):
    out = x.copy()
    out[tuple(slice(int(b), int(e)) for b, e in zip(begin, end))] = update
    return out


def compute(function, states, token, position):
    """One call: every operation in order, in the types that the program says."""
    known = {"token": np.array([token], np.int32), "position": np.array([position], np.int32)}

    def value(var):
        if isinstance(var, (tuple, list)):
            return [value(each) for each in var]
        if var.name in known:
            return known[var.name]
        if var.op is not None and var.op.op_type.startswith("constexpr"):
            known[var.name] = var.op.materialized_val_inference()
            return known[var.name]
        return var.val

    for op in function.operations:
        if op.op_type == "const" or op.op_type.startswith("constexpr"):
            continue
        given = {name: var for name, var in op.inputs.items() if var is not None}
        if op.op_type == "read_state":
            known[op.outputs[0].name] = states[given["input"].name]
        elif op.op_type == "coreml_update_state":
            states[given["state"].name] = known[op.outputs[0].name] = value(given["value"])
        else:
            found = OPERATIONS[op.op_type](**{name: value(var) for name, var in given.items()})
            assert tuple(op.outputs[0].shape) == np.shape(found), op
            known[op.outputs[0].name] = found
    return known[function.outputs[0].name]


@pytest.mark.peers
def test_the_tables_are_those_of_the_run_bit_for_bit(function, palettized):
    layers = load_model(palettized).params.layers
    dense = {name: unpack_without_scales(layers, place) for name, place in PLACES.items()}
    weights = [op for op in function.operations if op.op_type == "constexpr_lut_to_dense"]
    assert len(weights) == 2 * len(PLACES)
    found = [op.materialized_val_inference() for op in weights]
    expected = [dense[name][layer] for layer in range(2) for name in PLACES]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def unpack_without_scales(layers, place):
    block, name = place.split(".")
    weight = getattr(getattr(layers, block), name)
    bare = dataclasses.replace(weight, scales=np.ones(np.shape(weight.scales), np.float16))
    return unpack(bare).transpose(0, 2, 1)


@pytest.mark.peers
def test_token_by_token_it_has_our_logits(function, palettized):
    one = load_model(palettized)
    tokens = one.tokenizer.encode("the quick brown fox waits")[:CONTEXT]
    a = one.run.architecture
    empty = lambda: np.zeros((a.num_layers * a.num_kv_heads, CONTEXT, a.head_dim), np.float16)
    states = {"keys": empty(), "values": empty()}
    found = np.stack([compute(function, states, token, place)[0] for place, token in enumerate(tokens)])
    expected = our_logits(one, tokens)
    assert np.abs(found - expected).max() < 2e-2 * np.abs(expected).max(), "float16 beside float32"
    ours, theirs = (jax.nn.log_softmax(np.asarray(x, np.float32)) for x in (expected, found))
    assert float(np.mean(np.sum(np.exp(ours) * (ours - theirs), axis=-1))) < 1e-3

"""Compressed GGUF files read back by llama.cpp's own package: the balanced grid bit for bit, adapters beside it."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))  # small_palettes.py is a module of the tests there
from small_palettes import write_dense

from pomona.adapters.bundle import Bundle, weight_shapes
from pomona.cli.main import main
from pomona.compress.palettize import Settings, palettize_run
from pomona.export.gguf import PROJECTION_NAMES, export_gguf, tensor_shapes
from pomona.export.gguf_blocks import q2_k
from pomona.model.adapter import densify, projection
from pomona.model.config import Architecture
from pomona.train.load import load_model

WIDE = Architecture(400, 256, 2, 4, 2, 64, 208)


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    """Palettized on the balanced grid, and with free tables."""
    path = tmp_path_factory.mktemp("runs")
    write_dense(path / "dense", cache, architecture=WIDE)
    for name, settings in (("grid", Settings(2.0, "balanced", "none")), ("free", Settings(2.0, "free", "none"))):
        palettize_run(path / "dense", path / name, settings, None, lambda text: None)
    return path


def read(path):
    """{name: float32 array [out, in]} and {name: type}, as llama.cpp would compute with them."""
    tensors = gguf.GGUFReader(path).tensors
    values = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in tensors}
    return {t.name: values[t.name].reshape(t.shape[::-1]) for t in tensors}, {
        t.name: t.tensor_type.name for t in tensors
    }


@pytest.mark.parametrize("inputs", [256, 512, 768, 16, 304])
def test_blocks_are_the_grid(inputs):
    rng, wide = np.random.default_rng(inputs), -(-inputs // 256) * 256
    indices = rng.integers(0, 4, (32, wide)).astype(np.uint8)
    scales = np.maximum(rng.random(32) * 10.0 ** rng.integers(-3, 3, 32), 2.0**-13).astype(np.float16)
    found = gguf.quants.dequantize(q2_k(indices, scales, inputs), gguf.GGMLQuantizationType.Q2_K)
    expected = scales.astype(np.float32)[:, None] * (indices - np.float32(1.5))
    expected[:, inputs:] = 0
    np.testing.assert_array_equal(found, expected)


def test_a_balanced_run_comes_back_bit_for_bit(runs, tmp_path):
    one = load_model(runs / "grid")
    export_gguf(one, tmp_path / "m.gguf", "q2_k", pad_ffn=True)
    arrays, types = read(tmp_path / "m.gguf")
    assert {kind for name, kind in types.items() if "norm" not in name} == {"Q2_K", "Q8_0"}
    params = densify(one.params, one.run.architecture)
    for layer in range(2):
        for there, name in PROJECTION_NAMES.items():
            own = np.asarray(projection(params.layers, name)[layer])
            matrix = own.reshape(-1, own.shape[-1]) if name == "output" else own.reshape(own.shape[0], -1)
            found = arrays[f"blk.{layer}.{there}.weight"].T
            np.testing.assert_array_equal(found[: matrix.shape[0], : matrix.shape[1]], matrix, err_msg=name)
            assert not found[matrix.shape[0] :].any() and not found[:, matrix.shape[1] :].any()
    table, step = np.asarray(params.embedding), np.abs(params.embedding).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(arrays["token_embd.weight"] - table) <= 0.55 * step)


def test_q8_0_is_within_half_a_step(runs, tmp_path):
    export_gguf(load_model(runs / "free"), tmp_path / "m.gguf", "q8_0", pad_ffn=True)
    arrays, types = read(tmp_path / "m.gguf")
    assert {kind for name, kind in types.items() if "norm" not in name} == {"Q8_0"}
    own = np.asarray(densify(load_model(runs / "free").params, WIDE).layers.ffn.gate[1]).T
    blocks = own.reshape(len(own), -1, 32)
    step = np.abs(blocks).max(axis=2, keepdims=True) / 127
    error = np.abs(arrays["blk.1.ffn_gate.weight"][: len(own)].reshape(blocks.shape) - blocks)
    assert np.all(error <= 0.55 * step)


def test_what_has_no_place_there_is_refused_and_leaves_nothing(runs, tmp_path, capsys):
    for words, problem in (
        ([str(runs / "free"), "--dtype", "q2_k", "--pad-ffn"], "not on the balanced 2-bit grid"),
        ([str(runs / "dense"), "--dtype", "q2_k", "--pad-ffn"], "not on the balanced 2-bit grid"),
        ([str(runs / "grid"), "--dtype", "q2_k"], "blk.0.ffn_down.weight has rows of 208"),
    ):
        assert main(["export", *words, "--format", "gguf", "--output", str(tmp_path / "m.gguf")]) == 2
        assert problem in capsys.readouterr().err
    assert main(["export", str(runs / "grid"), "--dtype", "q2_k", "--output", str(tmp_path / "m")]) == 2
    assert "this is for --format gguf" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_the_same_correction(runs, tmp_path, monkeypatch, capsys):
    """By llama.cpp's rule: alpha / rank, the rank being the rows of a; padded as its base is."""
    rng, output = np.random.default_rng(0), str(tmp_path / "a.gguf")
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in weight_shapes(WIDE, 5).items()}
    bundle = Bundle("task", weights, 5, 8.0, "base", {})
    monkeypatch.setattr("pomona.export.gguf_adapter.adapter_of", lambda path, step: bundle)
    monkeypatch.setattr("pomona.export.gguf_adapter.adapted_run", lambda path: load_model(runs / "grid").run)
    assert main(["export", "any", "--format", "gguf-adapter", "--pad-ffn", "--output", output]) == 0
    assert "--lora" in capsys.readouterr().out
    reader = gguf.GGUFReader(output)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert (fields["general.type"], fields["adapter.type"], fields["general.architecture"]) == (
        "adapter",
        "lora",
        "qwen3",
    )
    arrays, base = read(output)[0], dict(tensor_shapes(WIDE, 256))
    for layer in range(2):
        for there, name in PROJECTION_NAMES.items():
            a, b = (arrays[f"blk.{layer}.{there}.weight.lora_{side}"].astype(np.float64) for side in "ab")
            expected = weights[f"{name}.a"][layer].astype(np.float64) @ weights[f"{name}.b"][layer] * bundle.scale
            found = (b @ a).T * fields["adapter.lora.alpha"] / len(a)
            assert found.T.shape == base[f"blk.{layer}.{there}.weight"]
            rows, columns = expected.shape
            np.testing.assert_allclose(found[:rows, :columns], expected, rtol=1e-12)
            assert not found[rows:].any() and not found[:, columns:].any()

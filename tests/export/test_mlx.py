"""Folders for MLX: by its documented layout here, and live in MLX's own CPU build where that is installed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))  # small_palettes.py is a module of the tests there
from reference_models import our_logits
from small_palettes import write_dense

from pomona.cli.main import main
from pomona.compress.palettize import Settings, palettize_run
from pomona.export.hf import export_hf
from pomona.export.mlx import affine8, export_mlx, pack
from pomona.model.config import Architecture
from pomona.train.load import load_model

SHAPE = Architecture(400, 128, 2, 4, 2, 32, 192)
BITS = {"affine8": {"embed": 8, "else": 8}, "affine2": {"embed": 8, "else": 2}}


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    """Palettized on the balanced grid, and with free tables."""
    path = tmp_path_factory.mktemp("runs")
    write_dense(path / "dense", cache, architecture=SHAPE)
    for name, settings in (("grid", Settings(2.0, "balanced", "none")), ("free", Settings(3.0, "free", "none"))):
        palettize_run(path / "dense", path / name, settings, None, lambda text: None)
    return path


def unpacked(weight, bits):
    """MLX's rule: element i of a row is in word i * bits // 32, from bit i * bits % 32 on."""
    places = np.arange(weight.shape[1] * 32 // bits)
    return weight[:, places * bits // 32] >> np.uint32(places * bits % 32) & np.uint32(2**bits - 1)


def test_the_first_is_in_the_lowest_bits():
    assert pack(np.array([[1, 2, 3, 4]], np.uint8), 8).tolist() == [[0x04030201]]
    whole = np.random.default_rng(0).integers(0, 4, (3, 64)).astype(np.uint8)
    np.testing.assert_array_equal(unpacked(pack(whole, 2), 2), whole)


@pytest.mark.parametrize("dtype", ["affine8", "affine2"])
def test_scale_times_q_plus_bias_is_the_weight(runs, tmp_path, dtype):
    one = load_model(runs / "grid")
    export_mlx(one, tmp_path / "mlx", dtype)
    export_hf(one, tmp_path / "hf")
    mlx, hf = (load_file(tmp_path / name / "model.safetensors") for name in ("mlx", "hf"))
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert config["quantization"]["group_size"] == 64 and config["model_type"] == "qwen3"
    for name, weight in hf.items():
        if weight.ndim == 1:
            np.testing.assert_allclose(mlx[name].astype(np.float32), weight, rtol=2**-11)
            continue
        stem = name.removesuffix(".weight")
        own = config["quantization"].get(stem, config["quantization"])
        assert own["bits"] == BITS[dtype]["embed" if "embed" in name else "else"]
        q = unpacked(mlx[name], own["bits"]).reshape(len(weight), -1, 64)
        scales, biases = (mlx[f"{stem}.{part}"][..., None].astype(np.float32) for part in ("scales", "biases"))
        found = (scales * q + biases).reshape(weight.shape)
        if dtype == "affine2":
            np.testing.assert_allclose(found, weight, rtol=0 if own["bits"] == 2 else 1e-5, atol=1e-8)
        else:
            assert np.all(np.abs(found - weight) <= np.repeat(scales[..., 0], 64, axis=1) * 0.75)
    assert (tmp_path / "mlx" / "tokenizer.json").exists()


def test_steps_go_from_the_least_to_the_largest():
    rng = np.random.default_rng(1)
    weight = np.concatenate([rng.normal(size=(8, 128)), np.zeros((1, 128)), np.full((1, 128), 0.3)]).astype(np.float32)
    packed, scales, biases = affine8(weight, np.dtype(np.float16))
    q = unpacked(packed, 8).reshape(10, 2, 64)
    found = (scales[..., None].astype(np.float32) * q + biases[..., None].astype(np.float32)).reshape(weight.shape)
    assert np.abs(found - weight).max() < np.abs(weight).max() / 100
    assert not found[8].any() and q[:8].min() == 0 and q[:8].max() == 255


def test_what_has_no_place_there_is_refused(runs, tmp_path, capsys):
    for words, problem in (
        ([str(runs / "free"), "--dtype", "affine2"], "not on the balanced 2-bit grid"),
        ([str(runs / "free"), "--dtype", "q2_k"], "--dtype q2_k with --format mlx"),
        ([str(runs / "free"), "--pad-ffn"], "--pad-ffn with --format mlx"),
    ):
        assert main(["export", *words, "--format", "mlx", "--output", str(tmp_path / "m")]) == 2
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
    assert main(["export", str(runs / "free"), "--format", "mlx", "--output", str(tmp_path / "m")]) == 0
    assert "mlx_lm.generate" in capsys.readouterr().out


@pytest.mark.peers
@pytest.mark.parametrize(("name", "dtype"), [("grid", "float32"), ("grid", "affine2"), ("free", "affine8")])
def test_mlx_computes_our_logits_live(runs, tmp_path, name, dtype):
    mx = pytest.importorskip("mlx.core")
    from mlx_lm import load

    one = load_model(runs / name)
    export_mlx(one, tmp_path / "mlx", dtype)
    theirs, tokenizer = load(str(tmp_path / "mlx"))
    tokens = one.tokenizer.encode("the quick brown fox waits for many numbers")
    assert tokenizer.encode("the quick brown fox waits for many numbers", add_special_tokens=False) == tokens
    found = np.array(theirs(mx.array([tokens]))[0].astype(mx.float32))
    expected = our_logits(one, tokens)
    if dtype == "affine8":
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    else:
        np.testing.assert_allclose(found, expected, atol=1e-3)

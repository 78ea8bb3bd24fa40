"""2-bit quantization-aware training: on the grid, better than rounding, resumed exactly, and nothing lost on the way to
palettes."""

import dataclasses

import jax
import numpy as np
import pytest
from compress_runs import ALL_AXES, grid, killed_at, start

from pomona.cli.train_verb import resolve
from pomona.compress.distill import student_run
from pomona.compress.palettes import palettize
from pomona.compress.qat import grid_run
from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder
from pomona.metrics.records import read_records
from pomona.ops.palette import BALANCED
from pomona.train.config import check_run
from pomona.train.load import load_model
from pomona.train.objective_config import BalancedGrid


@pytest.fixture(scope="module")
def trained(parent, tmp_path_factory):
    """A folder trained on the grid, on 8 devices of all kinds."""
    folder = tmp_path_factory.mktemp("grid") / "run"
    done = start("qat", parent, folder, ALL_AXES, devices=8)
    assert done.returncode == 0, done.stderr
    return folder


def bits(folder):
    """Every evaluation of a run, in bits per byte."""
    return [r["bits_per_byte"] for r in read_records(RunFolder(folder).metrics) if "bits_per_byte" in r]


def rows(model):
    """(name, W [outputs, inputs]) of every linear weight of every layer."""
    layers = model.params.layers
    for part in (layers.attention, layers.ffn):
        for field in dataclasses.fields(part):
            if field.name.endswith("norm"):
                continue
            for weight in np.asarray(getattr(part, field.name)):
                inputs = weight.shape[0] * (weight.shape[1] if field.name == "output" else 1)
                yield field.name, weight.reshape(inputs, -1).T


def test_every_row_of_the_model_lies_on_a_grid_with_a_float16_scale(trained):
    seen = set()
    for name, weight_OI in rows(load_model(trained)):
        seen.add(name)
        sizes = np.abs(weight_OI)
        scale = np.where((sizes.max(1) - sizes.min(1)) > 0, sizes.min(1) * 2, sizes.min(1))[:, None]
        np.testing.assert_array_equal(scale, scale.astype(np.float16).astype(np.float32))
        assert np.isin(weight_OI / scale, [-1.5, -0.5, 0.5, 1.5]).all(), name
    assert seen == {"query", "key", "value", "output", "gate", "up", "down"}


def test_it_mends_what_rounding_breaks(trained, parent):
    """Before the first step the model is the parent rounded at once."""
    before, *_, after = bits(trained)
    assert bits(parent)[-1] < before and after < before


def test_scales_are_learned_beside_the_weights(trained, parent):
    from pomona.checkpoint.store import restore
    from pomona.model.spec import abstract
    from pomona.train.objectives import objective_of

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    specs = objective_of(load_model(trained).run).trained
    shapes = jax.tree.map(lambda x: x.update(sharding=here), abstract(specs))
    tree = restore(RunFolder(trained).checkpoints, lambda _: {"params": shapes}).trees["params"]
    for name, factors in tree["factors"].items():
        moved = np.abs(np.asarray(factors) - 1)
        assert 1e-4 < moved.max() < 0.5, name
    # The learned factor is in the stored weights: the scale of a row is its factor times its root mean square.
    down = np.asarray(tree["weights"].layers.ffn.down[1], np.float64)
    scale = np.sqrt((down**2).mean(0)) * np.asarray(tree["factors"]["ffn.down"][1])
    on_grid = np.asarray(load_model(trained).params.layers.ffn.down[1])
    np.testing.assert_allclose(np.abs(on_grid).min(0) * 2, scale, rtol=1e-3)


def test_palettized_at_two_bits_nothing_changes(trained):
    for name, weight_OI in rows(load_model(trained)):
        palette = palettize(name, np.ascontiguousarray(weight_OI.T), None, 2, "balanced")
        values = np.array(BALANCED, np.float32)[palette.indices] * palette.scales.astype(np.float32)[:, None]
        np.testing.assert_array_equal(values, weight_OI)


@pytest.mark.slow
def test_a_killed_run_makes_its_last_steps_again(parent, trained, tmp_path):
    """Weights, factors and moments come back from a checkpoint, bit for bit."""
    out = tmp_path / "run"
    assert start("qat", parent, out, ALL_AXES, killed_at(20), devices=8).returncode == -9
    again = start("qat", parent, out, ALL_AXES, devices=8)
    assert again.returncode == 0 and "resuming after step 1" in again.stdout, again.stderr
    assert bits(out) == bits(trained)
    same = jax.tree.map(np.array_equal, load_model(trained).params, load_model(out).params)
    assert all(jax.tree.leaves(same))


def test_bad_starts_are_one_clear_error(parent, trained):
    for changes, problem in (
        ({"origin": None}, "has no origin"),
        ({"objective": BalancedGrid(first_factor=0.0)}, "first_factor is 0.0"),
    ):
        with pytest.raises(UserError, match=problem):
            check_run(grid(parent, **changes))
    for begin in (
        lambda: grid_run(trained),
        lambda: student_run(trained, parent),
        lambda: resolve("tiny", ["--from", str(trained)]),
    ):
        with pytest.raises(UserError, match="trains 'balanced-grid', which is not the plain weights"):
            begin()

"""Recovery: where it begins, against singular values in float64; what it trains and what it leaves alone."""

import dataclasses

import jax
import numpy as np
import pytest
from small_palettes import unpack, write_dense, write_palettized

from pomona.compress.recover import recovery_run
from pomona.model.adapter import PROJECTIONS, projection
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.train.load import load_model
from pomona.train.loop import train
from pomona.train.objectives import objective_of


@pytest.fixture(scope="module")
def folders(cache, tmp_path_factory):
    """A dense run folder and its palettized sibling, with what is in them."""
    path = tmp_path_factory.mktemp("life")
    dense = write_dense(path / "dense", cache)
    return path / "palettized", dense[1], write_palettized(path / "palettized")


def begin(folder, mesh=None, devices=1, **changes):
    run = recovery_run(folder)
    run = dataclasses.replace(run, objective=dataclasses.replace(run.objective, **changes))
    mesh = build_mesh(mesh or MeshConfig(), jax.devices()[:devices])
    return jax.tree.map(np.asarray, objective_of(run).begin(mesh))


def errors(dense, palettized, name):
    """W - W^ of a projection, float64 [L, I, O]."""
    there = unpack(projection(palettized.layers, name))
    return projection(dense.layers, name).reshape(there.shape).astype(np.float64) - there


def test_it_begins_with_the_largest_singular_values_of_the_error(folders):
    folder, dense, palettized = folders
    adapter = begin(folder, rank=4, alpha=8.0)
    for name in PROJECTIONS:
        error, pair = errors(dense, palettized, name), getattr(adapter, name)
        left = error - 2.0 * pair.a.astype(np.float64) @ pair.b.astype(np.float64)
        for each, rest in zip(error, left):
            singular = np.linalg.svd(each, compute_uv=False)
            assert np.linalg.norm(rest) == pytest.approx(np.linalg.norm(singular[4:]), rel=1e-4)
            assert np.linalg.norm(rest, 2) == pytest.approx(singular[4], rel=1e-3)


def test_the_full_rank_is_the_dense_model(folders):
    folder, dense, palettized = folders
    adapter = begin(folder, rank=64, alpha=64.0)
    for name in PROJECTIONS:
        pair = getattr(adapter, name)
        whole = unpack(projection(palettized.layers, name)) + pair.a @ pair.b
        np.testing.assert_allclose(whole, projection(dense.layers, name).reshape(whole.shape), atol=1e-6)


def test_it_begins_alike_on_every_mesh(folders):
    folder = folders[0]
    alone, spread = begin(folder), begin(folder, MeshConfig(data=2, fsdp=2, tensor=2), 8)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), alone, spread)


def test_training_lowers_the_loss_and_not_one_bit_of_the_base_changes(folders, tmp_path):
    folder = folders[0]
    contents = lambda: {path.name: path.read_bytes() for path in (folder / "palettes").iterdir()}
    before, run = contents(), recovery_run(folder)
    assert [stage.steps for stage in run.stages] == [20]
    mesh = MeshConfig(data=4, fsdp=2)
    result = train(dataclasses.replace(run, mesh=mesh), tmp_path / "recovered")
    assert result["bits_per_byte"] < result["bits_per_byte_before"] - 0.05
    assert contents() == before
    model = load_model(tmp_path / "recovered")
    base = load_model(folder)
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params.layers.ffn.up.base, base.params.layers.ffn.up))

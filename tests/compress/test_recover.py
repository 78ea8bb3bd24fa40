"""Recovery: where it begins, against singular values in float64; what it trains and what it leaves alone."""

import dataclasses

import jax
import numpy as np
import pytest
from small_palettes import unpack

from pomona.checkpoint.palettes import _crc32, _read, read_about
from pomona.compress.recover import recovery_run
from pomona.core.errors import UserError
from pomona.model.adapter import detach, projection
from pomona.model.config import PLACES
from pomona.model.projection import matrix_shape
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.train.load import load_model
from pomona.train.loop import train
from pomona.train.objectives import objective_of


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
    for name in PLACES:
        error, pair = errors(dense, palettized, name), getattr(adapter, name)
        left = error - 2.0 * pair.a.astype(np.float64) @ pair.b.astype(np.float64)
        for each, rest in zip(error, left):
            singular = np.linalg.svd(each, compute_uv=False)
            assert np.linalg.norm(rest) == pytest.approx(np.linalg.norm(singular[4:]), rel=1e-4)
            assert np.linalg.norm(rest, 2) == pytest.approx(singular[4], rel=1e-3)


def test_the_full_rank_is_the_dense_model(folders):
    folder, dense, palettized = folders
    adapter = begin(folder, rank=64, alpha=64.0)
    for name in PLACES:
        pair = getattr(adapter, name)
        whole = unpack(projection(palettized.layers, name)) + pair.a @ pair.b
        np.testing.assert_allclose(whole, projection(dense.layers, name).reshape(whole.shape), atol=1e-6)


def test_where_nothing_was_lost_it_begins_as_the_base_and_can_still_learn(folders, monkeypatch):
    monkeypatch.setattr(
        "pomona.train.low_rank._error", lambda spec: lambda *_: np.zeros(matrix_shape(spec), np.float32)
    )
    adapter = begin(folders[0])
    for name in PLACES:
        pair = getattr(adapter, name)
        assert not pair.b.any() and pair.a.std() == pytest.approx(pair.a.shape[1] ** -0.5, rel=0.1), name


def test_it_begins_alike_on_every_mesh(folders):
    folder = folders[0]
    alone, spread = begin(folder), begin(folder, MeshConfig(data=2, fsdp=2, tensor=2), 8)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), alone, spread)


def test_training_lowers_the_loss_and_not_one_bit_of_the_base_changes(folders, recovered):
    folder, (path, result) = folders[0], recovered
    assert [stage.steps for stage in recovery_run(folder).stages] == [60]
    assert result["bits_per_byte"] < result["bits_per_byte_before"] - 0.05
    listed = {each["name"]: each for each in read_about(folder / "palettes")["tensors"]}
    for file in (folder / "palettes").glob("*.safetensors"):
        _, arrays = _read(file)
        assert _crc32(arrays) == listed[file.name.split(".safe")[0].removesuffix(".4")]["crc32"]
    base, model = load_model(folder), load_model(path)
    detached, _ = detach(model.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, detached, base.params))


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("dense", {}, "is not palettized"),
        ("palettized", {"rank": 0}, "rank 0"),
        ("palettized", {"alpha": -1.0}, "alpha -1"),
        ("gone", {}, "is not a run folder"),
    ],
)
def test_what_cannot_be_recovered_is_refused(folders, tmp_path, source, changes, message):
    with pytest.raises(UserError, match=message):
        run = recovery_run(folders[0].with_name(source))
        train(dataclasses.replace(run, objective=dataclasses.replace(run.objective, **changes)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_not_where_it_was_is_said_to_be_missing(recovered, tmp_path, monkeypatch):
    """A run that was made with a path as seen from one folder, used in another."""
    run = recovery_run(recovered[0].with_name("palettized"))
    monkeypatch.chdir(tmp_path)
    run = dataclasses.replace(run, origin=dataclasses.replace(run.origin, run="lives/palettized"))
    with pytest.raises(UserError, match="lives/palettized is not there, as seen from this folder"):
        objective_of(run)


def test_another_base_in_its_place_is_noticed(folders, recovered, tmp_path):
    """The recovered run names its base by fingerprint: palettes that were made anew are not it."""
    run = recovery_run(folders[0])
    run = dataclasses.replace(run, origin=dataclasses.replace(run.origin, fingerprint="0" * 16))
    with pytest.raises(UserError, match=f"has changed \\({'0' * 16} -> {recovery_run(folders[0]).origin.fingerprint}"):
        objective_of(run).load_frozen(build_mesh(MeshConfig(), jax.devices()[:1]))

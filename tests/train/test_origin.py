"""A run that begins with the model of another one."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from small_run import changed, small_run, start

from pomona.core.errors import UserError
from pomona.core.run_folder import Origin, RunFolder
from pomona.metrics.records import read_records
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.train.config import decide
from pomona.train.load import load_model
from pomona.train.origin import check_origin, origin_of
from pomona.train.state import first_state


def from_origin(origin):
    return "from pomona.core.run_folder import Origin\n" + changed(f"origin={origin!r}")


@pytest.fixture(scope="module")
def origin(uninterrupted):
    return origin_of(uninterrupted)


def test_an_origin_is_the_newest_checkpoint_or_one_step(uninterrupted, origin, tmp_path):
    assert origin == Origin(str(uninterrupted), 14, origin.fingerprint) and len(origin.fingerprint) == 16
    assert origin_of(uninterrupted, 9).fingerprint != origin.fingerprint
    for folder, step in ((uninterrupted, 10), (tmp_path, None)):
        with pytest.raises(UserError, match="has no checkpoint"):
            origin_of(folder, step)


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_the_state_begins_with_the_weights_of_the_origin_on_any_mesh(cache, uninterrupted, origin, shape):
    devices = jax.devices()[: shape[0] * shape[1]]
    run = dataclasses.replace(small_run(cache), origin=origin, mesh=MeshConfig(data=shape[0], fsdp=shape[1]))
    state = first_state(decide(run, "cpu", len(devices)), build_mesh(run.mesh, devices))
    expected = load_model(uninterrupted).params
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), state.params, expected))
    assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(state.optimizer)), "a new optimizer"
    assert len(state.params.layers.ffn.gate.sharding.device_set) == len(devices)


def test_it_goes_on_from_where_the_other_ended_and_resumes(cache, uninterrupted, origin, tmp_path):
    hook = from_origin(origin)
    assert start(tmp_path / "run", cache, hook=hook).returncode == 0
    records, before = (read_records(RunFolder(path).metrics) for path in (tmp_path / "run", uninterrupted))
    # the first stage of the new run has other sequences than the last of the old one, so not the same number
    assert records[0]["bits_per_byte"] < before[0]["bits_per_byte"] - 0.3
    assert records[-1]["bits_per_byte"] < before[-1]["bits_per_byte"]
    again = start(tmp_path / "run", cache, hook=hook)
    assert again.returncode == 0 and "are done already" in again.stdout


def test_another_model_in_its_place_is_refused_before_anything_is_trained(cache, uninterrupted, origin, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "parent")
    moved = dataclasses.replace(origin, run=str(tmp_path / "parent"))
    check_origin(moved)
    with pytest.raises(UserError, match="has changed"):
        check_origin(dataclasses.replace(moved, fingerprint="0" * 16))
    shutil.rmtree(tmp_path / "parent" / "checkpoints" / "14")
    refused = start(tmp_path / "run", cache, hook=from_origin(moved))
    assert refused.returncode == 2 and "is not there" in refused.stderr and "put " in refused.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_origin_of_another_shape_is_refused(cache, origin, tmp_path):
    hook = from_origin(origin) + changed("architecture=dataclasses.replace(old(cache).architecture, ffn_dim=64)")
    refused = start(tmp_path / "run", cache, hook=hook)
    assert refused.returncode == 2 and "architecture.ffn_dim is 64" in refused.stderr, refused.stderr
    assert "--architecture.ffn-dim 128" in refused.stderr

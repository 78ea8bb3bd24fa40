"""Stages with meshes and policies of their own: the same curve as on one mesh, and bitwise itself after any death."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import LOOP, at_log, changed, losses, small_run, start

from pomona.core.errors import UserError
from pomona.launch.job import check_fits
from pomona.model.objective import TokenBatch
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.train.config import at_stage, check_stage_mesh, decide, stage_after
from pomona.train.loop import train
from pomona.train.state import abstract_state
from pomona.train.step import train_step

MESHES = MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(fsdp=4, seq=2)
HOOK = (
    LOOP
    + "from pomona.parallel.config import MeshConfig\n"
    + f"MESHES = {MESHES!r}\n"
    + changed(
        "stages=tuple(dataclasses.replace(stage, mesh=mesh, remat=remat, micro_batches=1) "
        "for stage, mesh, remat in zip(old(cache).stages, MESHES, ('none', 'full')))"
    )
)
DIE = "(session.store.seal(), os.kill(os.getpid(), 9))"  # once the last checkpoint is whole


def on_meshes(cache, *meshes):
    """The small run with these meshes of its stages."""
    run = small_run(cache)
    stages = zip(run.stages, meshes, strict=True)
    return dataclasses.replace(run, stages=tuple(dataclasses.replace(stage, mesh=mesh) for stage, mesh in stages))


@pytest.fixture(scope="module")
def moved(cache, tmp_path_factory):
    """The folder of a run on two meshes that nothing befell; to be read only."""
    folder = tmp_path_factory.mktemp("moved") / "run"
    done = start(folder, cache, devices=8, hook=HOOK)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_curve_is_that_of_one_mesh(moved, uninterrupted):
    np.testing.assert_allclose(losses(moved), losses(uninterrupted), atol=2e-5)


@pytest.mark.parametrize(
    ("killed_at", "resumed_after"),
    [pytest.param(7, 6, marks=pytest.mark.slow), (9, 8), pytest.param(11, 9, marks=pytest.mark.slow)],
)
def test_a_kill_before_at_and_after_the_boundary_changes_no_bit(cache, tmp_path, moved, killed_at, resumed_after):
    killed = start(tmp_path / "run", cache, devices=8, hook=HOOK + at_log(killed_at, DIE))
    assert killed.returncode == -9, killed.stderr
    resumed = start(tmp_path / "run", cache, devices=8, hook=HOOK)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming after step {resumed_after}" in resumed.stdout
    assert losses(tmp_path / "run") == losses(moved)


@pytest.mark.slow
def test_a_checkpoint_is_read_straight_onto_the_mesh_of_the_next_step(cache, tmp_path):
    """A state is moved at a boundary, and never after a restore."""
    watch = (
        "elsewhere = lambda state, mesh: state.params.final_norm.sharding.mesh != mesh\n"
        "loop.move = lambda state, run, mesh, move=loop.move: ("
        "print('moved', elsewhere(state, mesh), flush=True), move(state, run, mesh))[1]\n"
    )
    whole = start(tmp_path / "run", cache, devices=8, hook=HOOK + watch + at_log(9, DIE))
    assert "moved False\n" in whole.stdout and "moved True\n" in whole.stdout
    resumed = start(tmp_path / "run", cache, devices=8, hook=HOOK + watch)
    assert resumed.returncode == 0 and "resuming after step 8" in resumed.stdout
    assert "moved False\n" in resumed.stdout and "moved True\n" not in resumed.stdout


@pytest.mark.parametrize(
    ("mesh", "problem", "advice"),
    [
        (MeshConfig(tensor=3), "does not fit 8 devices", "--stages.1.mesh.data 1"),
        (MeshConfig(tensor=4), "'kv_heads', which does not divide over 4", "--stages.1.mesh.tensor N"),
        (MeshConfig(fsdp=1, data=1, seq=3), "does not fit 8 devices", "--stages.1.mesh.fsdp -1"),
    ],
)
def test_a_later_stage_that_cannot_run_is_found_before_anything_is_written(cache, tmp_path, mesh, problem, advice):
    with pytest.raises(UserError) as caught:
        train(on_meshes(cache, None, mesh), tmp_path / "run")
    assert problem in caught.value.what and advice in caught.value.fix
    assert not (tmp_path / "run").exists()


def test_a_batch_is_cut_and_checked_by_its_own_stage_s_mesh(cache):
    run = on_meshes(cache, MeshConfig(data=1, fsdp=1, seq=8), None)
    wide = dataclasses.replace(run.stages[0], batch_size=64, sequence_length=512, micro_batches=None)
    run = dataclasses.replace(run, stages=(wide, dataclasses.replace(wide, mesh=None)))
    # 64 sequences on each device, or 8; two sequences have the 1024 tokens that a part has at least.
    assert [stage.micro_batches for stage in decide(run, "cpu", 8).stages] == [32, 4]
    odd = dataclasses.replace(wide, batch_size=12, micro_batches=1)
    run = dataclasses.replace(run, stages=(odd, dataclasses.replace(odd, mesh=MeshConfig(data=8, fsdp=1))))
    check_stage_mesh(run, 0, 8)
    with pytest.raises(UserError, match="12 along 'batch'"):
        check_stage_mesh(run, 1, 8)
    with pytest.raises(UserError, match="share 12 sequences") as caught:
        check_fits(run, 8, "{mesh}.seq {seq}, or {devices} devices")
    assert caught.value.fix == "--stages.1.mesh.seq 2, or 4 devices"


def test_a_step_recomputes_what_its_own_stage_says(cache):
    run = small_run(cache)
    stages = (run.stages[0], dataclasses.replace(run.stages[1], remat="full"))
    run = decide(dataclasses.replace(run, stages=stages, mesh=MeshConfig(fsdp=1)), "cpu", 1)
    mesh = build_mesh(run.mesh, jax.devices()[:1])
    tokens = jax.ShapeDtypeStruct((1, 8, 32), jnp.int32)
    with jax.set_mesh(mesh):
        batch = TokenBatch(tokens, tokens, tokens, tokens)
        programs = [str(jax.make_jaxpr(train_step(run, i))(abstract_state(run, mesh), batch)) for i in (0, 1)]
    assert ["checkpoint" in program or "remat" in program for program in programs] == [False, True]
    assert [at_stage(run, i).execution.remat for i in (0, 1)] == ["none", "full"]


def test_the_stage_after_a_step(cache):
    run = small_run(cache)  # 8 steps and 6
    assert [stage_after(run, step) for step in (0, 7, 8, 13, 14)] == [0, 0, 1, 1, 1]

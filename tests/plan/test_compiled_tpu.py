"""Small steps through the real TPU compiler: `make test-tpu`, which puts libtpu on the path. Seconds each, not minutes.

Two layers, four heads of 128, a model of 256; two copies in four shards on eight chips.
"""

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from test_verify import KEYS

from pomona.core.errors import UserError
from pomona.core.fleet import parse_fleet
from pomona.model.config import Architecture, Execution
from pomona.optim.config import Schedule
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.plan import compiled
from pomona.plan.compiled import compile_stage
from pomona.plan.topology import prepare_environment, topology_devices
from pomona.plan.verify import communications, to_record, verify
from pomona.train.config import Run, Stage
from pomona.train.state import create_state, state_shardings

pytestmark = pytest.mark.tpu

ROOT = Path(__file__).parents[2]
LAYERS, GIB = 2, 2**30
SHAPE = Architecture(1024, 256, LAYERS, 4, 2, 128, 512)


@pytest.fixture(scope="module", autouse=True)
def quiet_libtpu():
    prepare_environment()


def run_of(batch_size=8, sequence_length=256, remat="full"):
    """A run of one stage."""
    stage = Stage("core", 100, batch_size, sequence_length, Schedule(1e-3, warmup_steps=10))
    return Run("small", SHAPE, (stage,), execution=Execution(remat=remat), mesh=MeshConfig(2, 4))


@pytest.fixture(scope="module", params=["v4:2x2x2", "v5p:2x2x2"])
def fleet(request):
    return parse_fleet(request.param)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def verified(fleet, cache):
    """The step of the run, verified; each chip's is compiled once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "default_cache", lambda: cache)
        return verify(run_of(), run_of().stages[0], fleet, 2.0)


def shard_bytes(run):
    """What one device holds of the state and the batch, each array rounded up to 512 bytes as the TPU allocates it."""
    mesh = build_mesh(run.mesh)  # of eight CPU devices
    state, shardings = jax.eval_shape(lambda: create_state(run)), state_shardings(run, mesh)
    total = 0
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        axes = [a for part in sharding.spec if part for a in ((part,) if isinstance(part, str) else part)]
        size = leaf.size * leaf.dtype.itemsize // math.prod(mesh.shape[axis] for axis in axes)
        total += math.ceil(size / 512) * 512
    stage = run.stages[0]
    return total + 4 * 4 * stage.batch_size * stage.sequence_length // 8  # four int32 arrays of rows, over all devices


def test_it_fits_and_the_arguments_are_the_shards_of_the_state(verified, fleet):
    assert verified.fits and to_record(verified)["fits"]
    assert verified.compiled.argument_bytes == shard_bytes(run_of())
    assert verified.compiled.alias_bytes >= verified.compiled.argument_bytes - 4096 * 4, "the state is given back"
    assert 0 < verified.compiled.temporary_bytes < GIB and verified.compiled.code_bytes > 0
    assert (verified.compiled.mesh, verified.compiled.places.fleet) == (
        {"data": 2, "fsdp": 4, "seq": 1, "tensor": 1},
        fleet,
    )
    assert sorted(map(tuple, verified.compiled.places.table.tolist())) == [
        (0, x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)
    ]


def test_collectives_are_named_by_the_axes_that_they_run_along(verified):
    rows = {(row.kind, row.axes): row for row in communications(verified)}
    assert {("all-gather", ("fsdp",)), ("reduce-scatter", ("fsdp",)), ("all-reduce", ("data",))} <= set(rows)
    assert {axis for _, axes in rows for axis in axes} == {"data", "fsdp"}
    matrices = 2 * 256 * (4 + 2) * 128 + 3 * 256 * 512
    gathered = 2 * (2 * LAYERS * matrices + 1024 * 256)  # bfloat16: there and back, the embedding once
    assert rows["all-gather", ("fsdp",)].size_bytes == gathered
    assert all(row.exposed_seconds >= 0 and row.seconds > 0 for row in rows.values())


def test_the_prediction_reads_the_real_program(verified):
    prediction = verified.prediction
    assert math.fsum(cost.seconds for cost in prediction.costs) == pytest.approx(verified.step_seconds)
    assert {cost.trips for cost in prediction.costs} == {1, LAYERS}
    assert {"product", "kernel", "elementwise", "collective"} <= set(prediction.by_kind())
    splash = [cost for cost in prediction.costs if cost.kind == "kernel" and "splash" in cost.name]
    assert {cost.trips for cost in splash} == {LAYERS}
    assert 0 < verified.mfu()[0] < verified.mfu()[1] < 1


def test_the_second_time_the_program_comes_from_the_cache(verified, fleet, cache, monkeypatch):
    def fails(*arguments):
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiled, "_compile", fails)
    again = compile_stage(run_of(), 0, fleet, cache)
    assert again.text == verified.compiled.text and again.hbm_bytes == verified.compiled.hbm_bytes
    with pytest.raises(AssertionError, match="compiled again"):
        compile_stage(run_of(remat="none"), 0, fleet, cache)
    monkeypatch.setattr(compiled, "_source_fingerprint", lambda traced: "another")
    with pytest.raises(AssertionError, match="compiled again"):
        compile_stage(run_of(), 0, fleet, cache)


def test_a_truncated_file_is_compiled_again_to_the_same_program(tmp_path):
    fleet = parse_fleet("v5p:2x2x2")
    first = compile_stage(run_of(), 0, fleet, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:10_000])
    again = compile_stage(run_of(), 0, fleet, tmp_path)
    assert (again.argument_bytes, again.temporary_bytes) == (first.argument_bytes, first.temporary_bytes)
    assert len(json.loads(gzip.decompress(kept.read_bytes()))["text"]) == len(again.text)


def test_a_step_larger_than_hbm_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="the compiler refuses the step: RESOURCE_EXHAUSTED") as caught:
        compile_stage(run_of(16384, 1024, "none"), 0, parse_fleet("v4:2x2x2"), tmp_path)
    assert "fit into HBM" in caught.value.rule and "--execution.remat full" in caught.value.fix
    assert list(tmp_path.iterdir()) == [], "what was refused is not kept"


def test_a_mesh_or_a_batch_that_does_not_divide_is_said_before_compiling(tmp_path):
    with pytest.raises(UserError, match="does not fit 4 devices"):
        compile_stage(run_of(), 0, parse_fleet("v5p:2x2x1"), tmp_path)
    with pytest.raises(UserError, match="the batch has 12 along 'batch'"):
        compile_stage(run_of(12), 0, parse_fleet("v5p:2x2x2"), tmp_path)


def test_slices_are_a_coordinate_of_their_own():
    fleet = parse_fleet("v4:2x2x2", 2)
    devices = topology_devices(fleet)
    assert len(devices) == 16 == fleet.devices and {device.slice_index for device in devices} == {0, 1}
    assert {device.device_kind for device in devices} == {"TPU v4"}


def test_a_topology_that_libtpu_does_not_know():
    with pytest.raises(UserError, match="libtpu does not know one slice of 1x1"):
        topology_devices(parse_fleet("v5e:1x1"))


def test_the_command_line_answers_with_the_documented_keys(tmp_path):
    command = [sys.executable, "-m", "pomona.cli.main", "plan", "tiny", "--chips", "v5p:2x2x1", "--verify", "--json"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    assert set(record) == KEYS and done.stderr == ""
    assert (record["name"], record["stage"], record["chips"], record["fits"]) == ("tiny", "core", 4, True)
    assert 0 < record["step_seconds"] < 1 and record["usd"] > 0
    assert {tuple(row["axes"]) for row in record["collectives"]} == {("fsdp",)}
    assert len(list((tmp_path / "pomona" / "programs").iterdir())) == 1

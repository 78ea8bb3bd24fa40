"""Two processes that share a run: the same numbers as one, and one fate in preemption, death and mistakes."""

import socket

import jax
import numpy as np
import pytest
from poison import POISON, SHIFTED
from small_run import (
    LOOP,
    at_log,
    begin,
    changed,
    events,
    finish,
    losses,
    small_run,
    start,
    whole_events,
    with_faults,
    write_text,
)

from pomona.checkpoint.remote import Remote
from pomona.checkpoint.store import restore
from pomona.metrics.records import read_records
from pomona.parallel.mesh import build_mesh
from pomona.train.state import abstract_state

SECOND = "os.environ['JAX_PROCESS_ID'] == '1' and "
ONE_STAGE = changed("stages=(dataclasses.replace(old(cache).stages[0], steps=14),)")


@pytest.fixture(scope="module")
def one(cache, tmp_path_factory):
    """The run by one process with two devices."""
    folder = tmp_path_factory.mktemp("one") / "run"
    done = start(folder, cache, devices=2, hook=ONE_STAGE)
    assert done.returncode == 0, done.stderr
    return folder


def begin_two(folder, cache, hook=""):
    """Starts two processes with a device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [begin(folder, cache, hook=ONE_STAGE + hook, JAX_PROCESS_ID=str(index), **job) for index in (0, 1)]


def start_two(*arguments):
    return [finish(process) for process in begin_two(*arguments)]


def state(folder, cache, step):
    """Every array of a checkpoint, whoever wrote it."""
    run = small_run(cache)
    mesh = build_mesh(run.mesh, jax.devices()[:2])
    trees = restore(folder / "checkpoints", lambda _: abstract_state(run, mesh).trees(), step).trees
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(trees)}


@pytest.mark.slow
def test_two_processes_stop_together_go_on_and_make_the_run_of_one(cache, tmp_path, one):
    run = tmp_path / "run"
    both = start_two(run, cache, at_log(4, SECOND + "os.kill(os.getpid(), signal.SIGTERM)"))
    assert [process.returncode for process in both] == [75, 75], both[0].stderr + both[1].stderr
    assert all("stopped after step 6" in process.stderr for process in both), "the next step at which they ask"
    assert '"signal": "SIGTERM"' in (run / "events.jsonl").read_text()
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [3, 6]

    first, second = start_two(run, cache)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "resuming after step 6" in first.stdout and "step 14/14" in first.stdout
    assert "step" not in second.stdout, "only the first one speaks"
    stopped = events(run).index("preempted")
    assert events(run)[:stopped] + events(run)[stopped + 2 :] == events(one), "only the first one writes"
    np.testing.assert_allclose(losses(run), losses(one), atol=1e-5)
    ours, expected = state(run, cache, 14), state(one, cache, 14)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


TWO_STAGES = changed(
    "stages=tuple(dataclasses.replace(old(cache).stages[0], steps=7, mesh=mesh) for mesh in "
    "(MeshConfig(), MeshConfig(data=2, fsdp=1)))"
)


@pytest.mark.slow
def test_a_later_mesh_takes_shards_from_other_processes(cache, tmp_path):
    """From halves of each weight to copies: each process gets what the other has."""
    hook = "from pomona.parallel.config import MeshConfig\n" + TWO_STAGES
    alone = start(tmp_path / "alone", cache, devices=2, hook=hook)
    first, second = start_two(tmp_path / "run", cache, hook)
    assert [each.returncode for each in (alone, first, second)] == [0, 0, 0], first.stderr + second.stderr
    ours, expected = state(tmp_path / "run", cache, 14), state(tmp_path / "alone", cache, 14)
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.slow
def test_after_the_death_of_one_of_two_another_mesh_goes_on(cache, tmp_path, one):
    first, second = begin_two(tmp_path / "run", cache, at_log(7, SECOND + "os.kill(os.getpid(), 9)"))
    assert finish(second).returncode == -9
    first.kill()  # JAX would end it, after its time-out for lost processes
    finish(first)
    alone = start(tmp_path / "run", cache, devices=2, hook=ONE_STAGE)
    assert alone.returncode == 0 and "resuming after step" in alone.stdout, alone.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one), atol=1e-5)


SLEEPY = """
def sleepy(self, *rest, old=loop.Feed.stream):
    for batch in old(self, *rest):
        os.environ["JAX_PROCESS_ID"] == "1" and time.sleep(0.3)
        yield batch
loop.Feed.stream = sleepy
"""


# The first computation of step 5 is wrong on the second process: in one bit, behind the last collective.
WRONG_BIT = """
import jax, numpy as np
def wrong(function, calls=[]):
    def step(state, batch):
        state, about = function(state, batch)
        calls.append(None)
        if len(calls) == 5 and jax.process_index() == 1:
            leaves, shape = jax.tree.flatten(state)
            (shard,) = leaves[0].addressable_shards
            value = np.array(shard.data)
            value.view(np.uint32).reshape(-1)[0] ^= 1
            place = leaves[0].shape, leaves[0].sharding
            leaves[0] = jax.make_array_from_single_device_arrays(*place, [jax.device_put(value, shard.device)])
            state = jax.tree.unflatten(shape, leaves)
        return state, about
    return step
def compiled(*arguments, old=loop._compiled):
    function, check = old(*arguments)
    return wrong(function), check
loop._compiled = compiled
"""


@pytest.mark.slow
def test_two_processes_bear_faults_and_name_the_one_that_is_slow_or_wrong(cache, tmp_path, one):
    expected = start(tmp_path / "expected", cache, devices=2, hook=ONE_STAGE + SHIFTED)
    assert expected.returncode == 0, expected.stderr
    faults = "check_every_steps=5, spike_window_steps=3, spike_deviations=6.0, bad_steps=2"
    remote = f"remote='file://{tmp_path}/far', remote_every_steps=6"
    hook = with_faults(faults) + POISON
    hook += changed(f"checkpoint=dataclasses.replace(old(cache).checkpoint, {remote})")
    first, second = start_two(tmp_path / "run", cache, hook + LOOP + SLEEPY + WRONG_BIT)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert sorted(Remote(f"file://{tmp_path}/far").steps()) == [6, 12, 14]
    (said,) = whole_events(tmp_path / "run", "silent_corruption")
    assert said["step"] == 5 and said["found_by"] == "step"
    assert [(d["process"], d["host"]) for d in said["devices"]] == [(1, socket.gethostname())]
    said = {(each["process"], each["host"]) for each in whole_events(tmp_path / "run", "slow_host")}
    assert said == {(1, socket.gethostname())}
    assert "process 1 on host" in first.stdout and "keeps the others waiting" in first.stdout
    records = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if "slowest_process" in r]
    assert records and all(r["slowest_process"] == 1 and r["slowest_ratio"] > 2 for r in records)
    assert not any("slowest_process" in r for r in read_records(one / "metrics.jsonl")), "one has no others"
    assert events(tmp_path / "run").count("rollback") == 1
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "expected"), atol=1e-5)


MISTAKES = {
    "folder": ("(path := Path(sys.argv[1])).mkdir(exist_ok=True), (path / 'foreign').touch()", "is not a run folder"),
    "disk": ("setattr(loop, 'RunFolder', lambda path, old=loop.RunFolder: old(path / 'mine'))", "does not see"),
    "text": ("Path(sys.argv[2]).rename(sys.argv[2] + '-gone')", "there is no text at"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_that_one_process_finds_ends_both(tmp_path, name):
    """Process 1 waits at once for what process 0 says, and would wait for minutes if it said nothing."""
    write_text(tmp_path / "cache")
    harm, word = MISTAKES[name]
    hook = LOOP + "import pomona.train.begin\npomona.train.begin.SHARED_SECONDS = 0.5\n"
    hook += f"os.environ['JAX_PROCESS_ID'] == '0' and ({harm})\n"
    both = start_two(tmp_path / "run", tmp_path / "cache", hook)
    assert [process.returncode for process in both] == [2, 2], both[0].stderr + both[1].stderr
    assert all(word in process.stderr for process in both)

"""Two processes that share a run: the same numbers as one, and one fate in preemption, death and mistakes."""

import socket

import jax
import numpy as np
import pytest
from small_run import LOOP, at_log, begin, changed, events, finish, losses, small_run, start, write_text

from pomona.checkpoint.store import restore
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
    trees = restore(folder / "checkpoints", abstract_state(run, mesh).trees(), step).trees
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(trees)}


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


def test_after_the_death_of_one_of_two_another_mesh_goes_on(cache, tmp_path, one):
    first, second = begin_two(tmp_path / "run", cache, at_log(7, SECOND + "os.kill(os.getpid(), 9)"))
    assert finish(second).returncode == -9
    first.kill()  # JAX would end it, after its time-out for lost processes
    finish(first)
    alone = start(tmp_path / "run", cache, devices=2, hook=ONE_STAGE)
    assert alone.returncode == 0 and "resuming after step" in alone.stdout, alone.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one), atol=1e-5)


MISTAKES = {
    "folder": ("(path := Path(sys.argv[1])).mkdir(exist_ok=True), (path / 'foreign').touch()", "is not a run folder"),
    "text": ("Path(sys.argv[2]).rename(sys.argv[2] + '-gone')", "there is no text at"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_that_one_process_finds_ends_both(tmp_path, name):
    """Process 1 waits at once for what process 0 says, and would wait for minutes if it said nothing."""
    write_text(tmp_path / "cache")
    harm, word = MISTAKES[name]
    hook = LOOP + f"os.environ['JAX_PROCESS_ID'] == '0' and ({harm})\n"
    both = start_two(tmp_path / "run", tmp_path / "cache", hook)
    assert [process.returncode for process in both] == [2, 2], both[0].stderr + both[1].stderr
    assert all(word in process.stderr for process in both)

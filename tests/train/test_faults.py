"""Faults through a whole process: wrong bits, a lost disk, a kill while copying, an address that cannot be written."""

import json
import shutil

import pytest
from small_run import LOOP, at_log, changed, events, losses, small_run, start, whole_events, with_faults

from pomona.checkpoint.remote import Remote
from pomona.core.config import to_json
from pomona.core.run_folder import RunFolder
from pomona.metrics.records import read_records

# The second computation of step 5, the sixth call of its stage's step, gets one bit of the embedding wrong.
WRONG_BIT = (
    LOOP
    + """
import jax, jax.numpy as jnp
def wrong(function, calls=[]):
    def step(state, batch):
        state, about = function(state, batch)
        calls.append(None)
        if len(calls) == 6:
            leaves, shape = jax.tree.flatten(state)
            bits = jax.lax.bitcast_convert_type(leaves[0], jnp.uint32)
            bits = bits.at[(0,) * bits.ndim].set(bits[(0,) * bits.ndim] ^ 1)
            leaves[0] = jax.lax.bitcast_convert_type(bits, jnp.float32)
            state = jax.tree.unflatten(shape, leaves)
        return state, about
    return step
def compiled(*arguments, old=loop._compiled):
    function, check = old(*arguments)
    return wrong(function), check
loop._compiled = compiled
"""
)


def test_a_wrong_bit_is_thrown_away_and_checks_change_no_loss(cache, tmp_path, uninterrupted):
    done = start(tmp_path / "run", cache, hook=with_faults("check_every_steps=5") + WRONG_BIT)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == losses(uninterrupted)
    (said,) = whole_events(tmp_path / "run", "silent_corruption")
    assert (said["step"], said["kept"], said["found_by"]) == (5, True, "step")
    assert [(device["process"], device["kind"]) for device in said["devices"]] == [(0, "cpu")]
    assert said["devices"][0]["host"] and "silent data corruption at step 5 (1 of 3 borne)" in done.stdout


def tiers(far, every):
    checkpoint = f"dataclasses.replace(old(cache).checkpoint, remote='file://{far}', remote_every_steps={every})"
    return LOOP + changed(f"checkpoint={checkpoint}")


KILLED_WHILE_COPYING_12 = """
from pomona.checkpoint.remote import Remote
def copy(self, source, target, name, expected, old=Remote._copy):
    old(self, source, target, name, expected)
    if getattr(self, "last", False): os.kill(os.getpid(), 9)
def push(self, folder, old=Remote.push):
    self.last = folder.name == "12"
    return old(self, folder)
Remote._copy, Remote.push = copy, push
"""


@pytest.mark.slow
def test_kills_and_lost_disks_go_on_from_the_remote_tier_exactly(cache, tmp_path, uninterrupted):
    run, far = tmp_path / "run", tmp_path / "far"
    killed = start(run, cache, hook=tiers(far, 6) + KILLED_WHILE_COPYING_12)
    assert killed.returncode == -9, killed.stderr
    assert (far / "12").exists() and list(Remote(f"file://{far}").steps()) == [6], "half a checkpoint is none"

    shutil.rmtree(run)
    stopped = start(run, cache, hook=tiers(far, 6) + at_log(12, "os.kill(os.getpid(), signal.SIGTERM)"))
    assert stopped.returncode == 75, stopped.stderr
    assert "step 6 was fetched from the remote tier" in stopped.stdout and "resume" in events(run)
    assert max(Remote(f"file://{far}").steps()) == 13, "a preemption's checkpoint goes there whatever the interval"
    curve = read_curve(run)

    shutil.rmtree(run / "checkpoints")
    resumed = start(run, cache, hook=tiers(far, 6))
    assert resumed.returncode == 0 and "step 13 was fetched from the remote tier" in resumed.stdout, resumed.stderr
    assert curve == losses(uninterrupted)[6:13], "the records of the other steps went with the disk"
    assert read_curve(run) == losses(uninterrupted)[6:]
    assert max(Remote(f"file://{far}").steps()) == 14

    first, second = whole_events(run, "resume")
    assert first["began_seconds"] == second["began_seconds"] < first["time_seconds"]
    assert 0 < first["kept_seconds"] < second["kept_seconds"]
    assert all(0 < r["goodput"] < 1 for r in read_records(RunFolder(run).metrics) if "gradient_norm" in r)


def read_curve(run):
    return [record["loss"] for record in read_records(RunFolder(run).metrics) if "gradient_norm" in record]


BROKEN = """
import pomona.checkpoint.courier as courier
courier.PAUSE_SECONDS = 0.01
def push(self, folder): raise courier.RemoteProblem("no such bucket")
courier.Remote.push = push
"""


def test_an_address_that_cannot_be_written_ends_nothing_but_is_said_at_the_end(cache, tmp_path, uninterrupted):
    run, far = tmp_path / "run", tmp_path / "far"
    done = start(run, cache, hook=tiers(far, 3) + BROKEN)
    assert done.returncode == 2
    assert "the run is done, but file://" in done.stderr and "no such bucket" in done.stderr
    assert losses(run) == losses(uninterrupted)
    failed = whole_events(run, "remote_failed")
    assert failed[-1]["step"] == 14 and "end" in events(run)

    again = start(run, cache, hook=tiers(far, 3))
    assert again.returncode == 0, again.stderr
    assert "all 14 steps of this run are done already" in again.stdout
    assert list(Remote(f"file://{far}").steps()) == [14]


def test_another_runs_address_is_refused(cache, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "config.json").write_text(json.dumps(to_json(small_run(cache, seed=5))))
    done = start(tmp_path / "run", cache, hook=tiers(tmp_path / "far", 3))
    assert done.returncode == 2 and "holds the checkpoints of another run" in done.stderr and "seed" in done.stderr


def test_an_unreachable_tier_is_no_reason_to_begin_anew(cache, tmp_path):
    (tmp_path / "far").write_text("a file where a folder should be")
    done = start(tmp_path / "run", cache, hook=tiers(tmp_path / "far", 3))
    assert done.returncode == 2 and "nobody knows whether this run has checkpoints" in done.stderr

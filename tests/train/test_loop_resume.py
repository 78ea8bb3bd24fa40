"""The loop as a whole: learning, exact resume after any death, other meshes, and every bad start."""

import shutil
import struct

import numpy as np
import pytest
from small_run import LOOP, at_log, changed, events, losses, small_run, start, with_faults

from pomona.checkpoint.config import CheckpointConfig
from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder
from pomona.metrics.records import read_records
from pomona.optim.config import Schedule
from pomona.parallel.config import MeshConfig
from pomona.train.config import Run, Stage, check_run, total_steps, total_tokens
from pomona.train.fault_config import FaultConfig
from pomona.train.loop import train

LAST = 14


def test_it_learns_and_leaves_everything_behind(uninterrupted):
    curve = losses(uninterrupted)
    assert curve[-1] < curve[0] - 0.5
    records = read_records(RunFolder(uninterrupted).metrics)
    assert records[-1]["bits_per_byte"] < records[0]["bits_per_byte"]
    assert {"tokens_per_second", "data_wait_share", "eta_seconds"} <= records[4].keys()
    assert not any(key.startswith("mfu") for record in records for key in record), "a CPU's peak is unknown"
    assert [r["step"] for r in records if "heldout_loss" in r] == [5, 10, LAST], "no evaluation but those asked for"
    assert events(uninterrupted)[0] == "start" and events(uninterrupted)[-1] == "end"
    assert (uninterrupted / "tokenizer" / "tokenizer.model").exists()


DEATHS = {
    "between steps": (at_log(7, "os.kill(os.getpid(), 9)"), -9),
    "while a checkpoint is written": (
        LOOP + "loop.Store.save = lambda self, step, *a, save=loop.Store.save: (save(self, step, *a), "
        "os.kill(os.getpid(), 9) if step == 6 else None)",
        -9,
    ),
    "asked by the cluster": (at_log(10, "os.kill(os.getpid(), signal.SIGTERM)"), 75),
}
WITH_TENSORBOARD = changed("metrics=dataclasses.replace(old(cache).metrics, tensorboard=True)")


@pytest.mark.parametrize("death", DEATHS)
def test_after_any_death_the_curve_is_bitwise_the_uninterrupted_one(cache, tmp_path, uninterrupted, death):
    hook, code = DEATHS[death]
    killed = start(tmp_path / "run", cache, hook=WITH_TENSORBOARD + hook)
    assert killed.returncode == code, killed.stderr
    resumed = start(tmp_path / "run", cache, hook=WITH_TENSORBOARD)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(tmp_path / "run") == losses(uninterrupted)
    assert "resume" in events(tmp_path / "run") or code == -9
    if code == 75:
        assert "resuming after step 10" in resumed.stdout
    curve = tensorboard_curve(tmp_path / "run" / "tensorboard", "loss")
    assert curve == dict(enumerate(np.float32(losses(uninterrupted)).tolist(), start=1)), "each step once"


def tensorboard_curve(folder, name):
    """One curve as TensorBoard shows it: a restart hides what came before it, from its step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    curve = {}
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at + 12 <= len(content):  # size and its checksum, the event, its checksum
            (size,) = struct.unpack("<Q", content[at : at + 8])
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status == SessionLog.START:
                curve = {step: value for step, value in curve.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == name:
                    assert event.step not in curve
                    curve[event.step] = value.simple_value
    return curve


@pytest.mark.slow
def test_eight_devices_then_two_see_the_same_batches(cache, tmp_path, uninterrupted):
    hook = at_log(5, "os.kill(os.getpid(), signal.SIGTERM)")
    assert start(tmp_path / "run", cache, devices=8, hook=hook).returncode == 75
    assert start(tmp_path / "run", cache, devices=2).returncode == 0
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(uninterrupted), atol=1e-5)


def test_a_damaged_checkpoint_is_set_aside_and_said(cache, tmp_path, uninterrupted):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    newest = max((p for p in (run / "checkpoints").iterdir()), key=lambda p: int(p.name))
    file = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-10])
    again = start(run, cache)
    assert again.returncode == 0, again.stderr
    assert f"checkpoint of step {newest.name} is damaged" in again.stdout
    assert "fallback" in events(run) and (run / "checkpoints" / f"{newest.name}.damaged").exists()
    assert losses(run) == losses(uninterrupted)


def test_a_finished_run_says_so_and_stays_as_it_is(cache, tmp_path, uninterrupted):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    files = lambda: {path: path.stat().st_mtime_ns for path in sorted(run.glob("checkpoints/**/*"))}
    texts = lambda: [(run / name).read_text() for name in ("config.json", "metrics.jsonl", "events.jsonl")]
    before = files(), texts()
    again = start(run, cache)
    assert again.returncode == 0, again.stderr
    assert f"all {LAST} steps of this run are done already" in again.stdout
    assert (files(), texts()) == before

    records = texts()[1].splitlines()
    (run / "metrics.jsonl").write_text("\n".join(records[:-1]) + "\n")  # killed before its last evaluation
    assert start(run, cache).returncode == 0
    assert texts()[1].splitlines() == records


def test_a_hung_step_ends_with_124_and_stacks(cache, tmp_path):
    patience = changed("stall_seconds=2.0") + "import pomona.train.watchdog\n"
    patience += "pomona.train.watchdog.FIRST_STEP_FACTOR = 60\n"
    hung = start(tmp_path / "run", cache, hook=patience + at_log(3, "time.sleep(600)"))
    assert hung.returncode == 124
    assert "time.sleep" in hung.stderr or "lambda" in hung.stderr
    assert events(tmp_path / "run")[-1] == "stalled"


def test_micro_batches_and_other_ways_to_compute_change_nothing_but_rounding(cache, tmp_path, uninterrupted):
    hook = "from pomona.model.config import Execution\nfrom pomona.parallel.config import MeshConfig\n" + changed(
        "stages=tuple(dataclasses.replace(stage, micro_batches=2) for stage in old(cache).stages),"
        "mesh=MeshConfig(data=1, fsdp=2, seq=2, tensor=2),"
        "execution=Execution(layers='scanned', remat='full', loss_chunk_tokens=40)"
    )
    done = start(tmp_path / "run", cache, devices=8, hook=hook)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(uninterrupted), atol=2e-5)


def test_adamw_trains_too(cache, tmp_path):
    hook = "from pomona.optim.config import AdamW, Schedule\nfrom pomona.train.config import Stage\n"
    hook += "slow = Schedule(0.003, warmup_steps=2)\n" + changed(
        "optimizer=AdamW(), stages=(Stage('core', 10, 8, 32, slow), Stage('context', 4, 8, 32, slow))"
    )
    done = start(tmp_path / "run", cache, hook=hook)
    assert done.returncode == 0, done.stderr
    curve = losses(tmp_path / "run")
    assert curve[-1] < curve[0] - 0.3


def test_a_diverged_run_names_its_steps_and_counts_the_skipped(cache, tmp_path):
    hook = (
        LOOP + "import jax.numpy as jnp\n"
        "about = lambda batch: {'loss': jnp.nan * batch.tokens.sum(), 'gradient_norm': jnp.float32(1), "
        "'skipped': jnp.float32(1)}\n"
        "loop.train_step = lambda run, index: lambda state, batch: (state, about(batch))\n"
    )
    hook += changed("metrics=dataclasses.replace(old(cache).metrics, log_every_steps=4)") + with_faults("bad_steps=4")
    diverged = start(tmp_path / "run", cache, hook=hook)
    assert diverged.returncode == 2
    assert "not finite in steps 1 to 4" in diverged.stderr
    record = read_records(RunFolder(tmp_path / "run").metrics)[-1]
    assert record["loss"] is None and record["skipped"] == 4


BAD_STARTS = {
    "mesh": ({"mesh": MeshConfig(tensor=3)}, "does not fit 8 devices"),
    "heads": ({"mesh": MeshConfig(tensor=4)}, "'kv_heads', which does not divide over 4"),
    "batch": (
        {"stages": (Stage("core", 4, 4, 32, Schedule(warmup_steps=1)),)},
        "the batch of stage 'core' has 4 along 'batch'",
    ),
    "small": ({"stages": (Stage("core", 4, 4096, 64, Schedule(warmup_steps=1)),)}, "smaller than one batch"),
    "steps": ({"stages": (Stage("core", 0, 8, 32),)}, "each is at least 1"),
    "stages": ({"stages": ()}, "has no stages"),
    "micro": ({"stages": (Stage("core", 4, 8, 32, Schedule(warmup_steps=1), micro_batches=3),)}, "micro-batches"),
    "warmup": ({"stages": (Stage("core", 4, 8, 32),)}, "warmup_steps is 5000"),
    "keep": ({"checkpoint": CheckpointConfig(keep=0)}, "two checkpoints are kept"),
    "remote keep": ({"checkpoint": CheckpointConfig(remote_keep=1)}, "two checkpoints are kept"),
    "remote": ({"checkpoint": CheckpointConfig(remote="bucket+of+apples://x")}, "an fsspec address"),
    "check": ({"faults": FaultConfig(check_every_steps=0)}, "faults.check_every_steps is 0"),
    "bad steps": ({"faults": FaultConfig(bad_steps=0)}, "faults.bad_steps is 0"),
    "window": ({"faults": FaultConfig(spike_window_steps=1)}, "at least 2"),
    "rollbacks": ({"faults": FaultConfig(max_rollbacks=101)}, "at most 100"),
    "deviations": ({"faults": FaultConfig(spike_deviations=0.0)}, "positive number of standard deviations"),
    "ratio": ({"faults": FaultConfig(slow_ratio=1.0)}, "above 1"),
}


@pytest.mark.parametrize("name", BAD_STARTS)
def test_a_bad_start_is_one_clear_error_and_writes_no_checkpoint(cache, tmp_path, name):
    changes, word = BAD_STARTS[name]
    with pytest.raises(UserError) as caught:
        train(small_run(cache, **changes), tmp_path / "run")
    assert word in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_changed_text_is_refused_on_resume(cache, tmp_path):
    run, text = tmp_path / "run", tmp_path / "cache"
    shutil.copytree(cache, text)
    assert start(run, text, hook=at_log(4, "os.kill(os.getpid(), signal.SIGTERM)")).returncode == 75
    records = (run / "metrics.jsonl").read_bytes()
    (text / "text.txt.d" / "new.txt").write_text("more text " * 100)
    again = start(run, text)
    assert again.returncode == 2 and "the text of this run has changed" in again.stderr
    assert (run / "metrics.jsonl").read_bytes() == records


def test_totals():
    run = Run("x", small_run("c").architecture, (Stage("a", 3, 2, 8), Stage("b", 4, 2, 16)))
    assert (total_steps(run), total_tokens(run)) == (7, 3 * 2 * 8 + 4 * 2 * 16)
    with pytest.raises(UserError, match="warmup_steps"):
        check_run(run)

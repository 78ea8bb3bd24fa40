"""The loop as a whole: learning, exact resume after any death, other meshes, and every bad start."""

import dataclasses
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small_run import small_run, write_text

from pomona.checkpoint.config import CheckpointConfig
from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder
from pomona.metrics.records import read_records
from pomona.model.config import Execution
from pomona.optim.config import AdamW, Schedule
from pomona.parallel.config import MeshConfig
from pomona.train.config import Run, Stage, check_run, total_steps
from pomona.train.loop import train


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache")
    write_text(path)
    return path


def losses(folder):
    records = [r for r in read_records(RunFolder(folder).metrics) if "gradient_norm" in r]
    assert [r["step"] for r in records] == list(range(1, 15)), "each step once, in order"
    return [r["loss"] for r in records]


def start(folder, cache, devices=1, hook="pass"):
    command = [sys.executable, str(Path(__file__).parent / "small_run.py"), folder, cache, devices, hook]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def uninterrupted(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = start(folder, cache)
    assert done.returncode == 0, done.stderr
    return folder


def events(folder):
    return [json.loads(line)["event"] for line in RunFolder(folder).events.read_text().splitlines()]


def test_it_learns_and_leaves_everything_behind(uninterrupted):
    curve = losses(uninterrupted)
    assert curve[-1] < curve[0] - 0.5
    records = read_records(RunFolder(uninterrupted).metrics)
    assert records[-1]["bits_per_byte"] < records[0]["bits_per_byte"]
    assert {"tokens_per_second", "data_wait_share", "eta_seconds"} <= records[4].keys()
    assert not any(key.startswith("mfu") for record in records for key in record), "a CPU's peak is unknown"
    assert events(uninterrupted)[0] == "start" and events(uninterrupted)[-1] == "end"
    assert (uninterrupted / "tokenizer" / "tokenizer.model").exists()


KILL = "import os, signal, pomona.train.loop as loop\n"


@pytest.mark.parametrize(
    ("hook", "code"),
    [
        # between steps, in mid-stage
        (
            KILL + "loop._log = lambda s, st, step, *a, log=loop._log: (log(s, st, step, *a), "
            "os.kill(os.getpid(), 9) if step == 7 else None)",
            -9,
        ),
        # while a checkpoint is being written
        (
            KILL + "loop.Store.save = lambda self, step, *a, save=loop.Store.save: (save(self, step, *a), "
            "os.kill(os.getpid(), 9) if step == 6 else None)",
            -9,
        ),
        # by the cluster, politely
        (
            KILL + "loop._log = lambda s, st, step, *a, log=loop._log: (log(s, st, step, *a), "
            "os.kill(os.getpid(), signal.SIGTERM) if step == 10 else None)",
            75,
        ),
    ],
    ids=["kill", "kill-in-save", "sigterm"],
)
def test_after_any_death_the_curve_is_bitwise_the_uninterrupted_one(cache, tmp_path, uninterrupted, hook, code):
    killed = start(tmp_path / "run", cache, hook=hook)
    assert killed.returncode == code, killed.stderr
    resumed = start(tmp_path / "run", cache)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(tmp_path / "run") == losses(uninterrupted)
    assert "resume" in events(tmp_path / "run") or code == -9
    if code == 75:
        assert "resuming after step 10" in resumed.stdout


def test_eight_devices_then_two_see_the_same_batches(cache, tmp_path, uninterrupted):
    hook = KILL + "loop._log = lambda s, st, step, *a, log=loop._log: (log(s, st, step, *a), "
    hook += "os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None)"
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


def test_a_hung_step_ends_with_124_and_stacks(cache, tmp_path):
    hook = (
        "import time, dataclasses, pomona.train.loop as loop\n"
        "small_run = lambda cache, old=small_run: dataclasses.replace(old(cache), stall_seconds=6.0)\n"
        "loop._log = lambda s, st, step, *a, log=loop._log: (log(s, st, step, *a), step == 3 and time.sleep(600))"
    )
    hung = start(tmp_path / "run", cache, hook=hook)
    assert hung.returncode == 124
    assert "time.sleep" in hung.stderr or "lambda" in hung.stderr
    assert events(tmp_path / "run")[-1] == "stalled"


def run_here(cache, folder, **changes):
    """Trains in this process, on the first two of its devices where the mesh says nothing else."""
    run = small_run(cache, **changes)
    return train(run, folder)


def test_micro_batches_and_other_ways_to_compute_change_nothing_but_rounding(cache, tmp_path, uninterrupted):
    stages = tuple(dataclasses.replace(stage, micro_batches=2) for stage in small_run(cache).stages)
    mesh = MeshConfig(data=1, fsdp=2, seq=2, tensor=2)
    execution = Execution(layers="scanned", remat="full", loss_chunk_tokens=40)
    run_here(cache, tmp_path / "run", stages=stages, mesh=mesh, execution=execution)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(uninterrupted), atol=2e-5)


def test_adamw_trains_too(cache, tmp_path):
    slow = Schedule(0.003, warmup_steps=2)
    stages = (Stage("core", 10, 8, 32, slow), Stage("context", 4, 8, 32, slow))
    run_here(cache, tmp_path / "run", optimizer=AdamW(), stages=stages)
    curve = losses(tmp_path / "run")
    assert curve[-1] < curve[0] - 0.3


def test_a_diverged_run_names_its_steps(cache, tmp_path, monkeypatch):
    from pomona.train import loop

    broken = lambda run, index: (
        lambda state, batch: (
            state,
            {"loss": jax.numpy.nan * batch.tokens.sum(), "gradient_norm": jax.numpy.float32(1)},
        )
    )
    monkeypatch.setattr(loop, "train_step", broken)
    metrics = dataclasses.replace(small_run(cache).metrics, log_every_steps=4)
    with pytest.raises(UserError, match="not finite in steps 1 to 4"):
        run_here(cache, tmp_path / "run", metrics=metrics, mesh=MeshConfig())
    record = read_records(RunFolder(tmp_path / "run").metrics)[-1]
    assert record["loss"] is None


BAD_STARTS = {
    "mesh": ({"mesh": MeshConfig(tensor=3)}, "does not fit 8 devices"),
    "heads": ({"mesh": MeshConfig(tensor=4)}, "'kv_heads', which does not divide over 4"),
    "batch": ({"stages": (Stage("core", 4, 4, 32, Schedule(warmup_steps=1)),)}, "the batch has 4 along 'batch'"),
    "small": ({"stages": (Stage("core", 4, 4096, 64, Schedule(warmup_steps=1)),)}, "smaller than one batch"),
    "steps": ({"stages": (Stage("core", 0, 8, 32),)}, "each is at least 1"),
    "stages": ({"stages": ()}, "has no stages"),
    "micro": ({"stages": (Stage("core", 4, 8, 32, Schedule(warmup_steps=1), micro_batches=3),)}, "micro-batches"),
    "warmup": ({"stages": (Stage("core", 4, 8, 32),)}, "warmup_steps is 5000"),
    "keep": ({"checkpoint": CheckpointConfig(keep=0)}, "two checkpoints are kept"),
}


@pytest.mark.parametrize("name", BAD_STARTS)
def test_a_bad_start_is_one_clear_error_and_writes_no_checkpoint(cache, tmp_path, name):
    changes, word = BAD_STARTS[name]
    with pytest.raises(UserError) as caught:
        run_here(cache, tmp_path / "run", **changes)
    assert word in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_changed_text_is_refused_on_resume(cache, tmp_path, uninterrupted):
    run, text = tmp_path / "run", tmp_path / "cache"
    shutil.copytree(cache, text)
    once = start(run, text)
    assert once.returncode == 0
    (text / "text.txt.d" / "new.txt").write_text("more text " * 100)
    again = start(run, text)
    assert again.returncode == 2 and "the text of this run has changed" in again.stderr


def test_totals():
    run = Run("x", small_run("c").architecture, (Stage("a", 3, 2, 8), Stage("b", 4, 2, 16)))
    assert total_steps(run) == 7
    with pytest.raises(UserError):
        check_run(run)
    assert math.isfinite(run.stall_seconds) and signal.SIGTERM

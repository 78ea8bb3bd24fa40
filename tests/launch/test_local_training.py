"""`pomona launch local` as a person types it: preempted, killed, on fewer processes, and still the run of one."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pomona.checkpoint.manifest import is_sealed
from pomona.checkpoint.store import steps as saved_steps
from pomona.cli.main import main
from pomona.core.run_folder import RunFolder
from pomona.metrics.records import read_records

ROOT = Path(__file__).parents[2]
STEPS = 60
SMALL = [
    *("--data.sources.0.address", "texts", "--data.workers", "1", "--data.cache", "cache", "--evaluation.max-batches"),
    *("1", "--data.tokenizer.vocab-size", "320", "--architecture.vocab-size", "320", "--architecture.num-layers", "1"),
    *("--architecture.model-dim", "64", "--architecture.ffn-dim", "128", "--stages.0.sequence-length", "32"),
    *("--stages.0.batch-size", "8", "--stages.0.micro-batches", "1", "--stages.0.schedule.warmup-steps", "1"),
    *("--stages.0.steps", str(STEPS), "--metrics.log-every-steps", "1", "--checkpoint.every-steps", "10"),
]
PATIENCE_SECONDS = 300


def begin(folder, *words):
    command = [sys.executable, "-m", "pomona.cli.main", *words, *SMALL]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def finish(process):
    """Waits for it; returns what it said."""
    try:
        return process.communicate(timeout=PATIENCE_SECONDS)[0]
    finally:
        process.kill()  # if it has not ended; its keeper ends the rest


def steps(run):
    return [record for record in read_records(RunFolder(run).metrics) if "gradient_norm" in record]


def events(run, name):
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def last_step(run):
    return max((record["step"] for record in steps(run)), default=0) if (run / "metrics.jsonl").exists() else 0


def last_checkpoint(run):
    """The newest that is whole: a save goes on behind some of the steps that follow it."""
    checkpoints = RunFolder(run).checkpoints
    return next((step for step in saved_steps(checkpoints) if is_sealed(checkpoints / str(step))), 0)


def wait_until(job, condition):
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert job.poll() is None, job.stdout.read()
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def trainers(job):
    """The processes that train, in their order."""
    found = [child for child in psutil.Process(job.pid).children() if "train" in child.cmdline()]
    return sorted(found, key=lambda child: int(child.environ()["JAX_PROCESS_ID"]))


@pytest.fixture
def place(tmp_path):
    (tmp_path / "texts").mkdir()
    for i in range(60):
        words = " ".join(f"the {i + k} foxes jump over {k} lazy dogs" for k in range(12))
        (tmp_path / "texts" / f"{i}.txt").write_text(words)
    return tmp_path


@pytest.mark.slow
def test_four_processes_preempted_then_two_one_of_them_killed_make_the_run_of_one(place):
    one, run = place / "one", place / "run"
    alone = begin(place, "train", "tiny", "--run", "one")
    assert f"step {STEPS}/{STEPS}" in finish(alone) and alone.returncode == 0

    four = begin(place, "launch", "local", "--processes", "4", "tiny", "--run", "run")
    wait_until(four, lambda: last_step(run) >= 1)
    assert len(trainers(four)) == 4
    family = psutil.Process(four.pid).children(recursive=True)
    four.terminate()
    said = finish(four)
    assert four.returncode == 75 and "the same command resumes the run" in said, said
    assert "before training" in said and said.count("stopped after step") == 1, "process 0 is heard, and it alone"
    assert {path.name for path in (run / "logs").iterdir()} == {f"process-{index}.txt" for index in (1, 2, 3)}
    assert not any(each.is_running() and each.status() != "zombie" for each in family)

    two = begin(place, "launch", "local", "--processes", "2", "tiny", "--run", "run")
    wait_until(two, lambda: last_checkpoint(run) >= 20)
    trainers(two)[1].kill()
    said = finish(two)
    assert two.returncode == 0 and re.search("resuming after step [2-5]0\n", said) and "written to run" in said, said
    assert "process 1 of 2 ended with signal SIGKILL; all start again in 1 s (restart 1 of 3)" in said
    assert [(event["exit_code"], event["restart"]) for event in events(run, "restart")] == [(137, 1)]
    assert [event["devices"] for event in events(run, "start") + events(run, "resume")] == [4, 2, 2]

    assert [record["step"] for record in steps(run)] == list(range(1, STEPS + 1)), "each step once, in order"
    losses = [[record["loss"] for record in steps(each)] for each in (run, one)]
    np.testing.assert_allclose(*losses, atol=1e-4)


def test_a_mistake_that_only_the_processes_can_see_is_said_once(place):
    (place / "texts").rename(place / "elsewhere")
    job = begin(place, "launch", "local", "--processes", "2", "tiny", "--run", "new")
    said = finish(job)
    assert job.returncode == 2 and said.count("there is no text at 'texts'") == 1, said
    assert "start again" not in said


def test_a_folder_that_is_no_run_is_left_alone(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as leaving:
        main(["launch", "local", "--processes", "1", "tiny", "--run", "texts", *SMALL])
    assert leaving.value.code == 2
    assert not (place / "texts" / "logs").exists() and len(list((place / "texts").iterdir())) == 60

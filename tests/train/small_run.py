"""A run small enough for tests: in this process, or as a command, `python small_run.py FOLDER CACHE DEVICES HOOK`.

A hook is Python that runs before training, to change the run or to break it.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

LOOP = "import os, signal, time, pomona.train.loop as loop\n"


def small_run(cache, **changes):
    from pomona.checkpoint.config import CheckpointConfig
    from pomona.data.config import DataConfig, Source, TokenizerConfig
    from pomona.metrics.config import MetricsConfig
    from pomona.model.config import Architecture
    from pomona.optim.config import Schedule
    from pomona.train.config import Evaluation, Run, Stage

    later = Schedule(0.003, warmup_steps=1)
    fields = {
        "name": "small",
        "architecture": Architecture(400, 64, 2, 4, 2, 16, 128),
        "stages": (
            Stage("core", 8, 8, 32, Schedule(0.01, warmup_steps=2), micro_batches=1),
            Stage("context", 6, 8, 64, later, rope_base=1e6),
        ),
        "data": DataConfig(
            sources=(Source("a", str(Path(cache) / "text.txt.d")),),
            tokenizer=TokenizerConfig(vocab_size=400),
            heldout_fraction=0.1,
            cache=str(cache),
            workers=1,
        ),
        "checkpoint": CheckpointConfig(every_steps=3, keep=5),
        "metrics": MetricsConfig(log_every_steps=1),
        "evaluation": Evaluation(every_steps=5, max_batches=3),
    }
    return dataclasses.replace(Run(**fields), **changes)


def write_text(cache):
    import numpy as np

    folder = Path(cache) / "text.txt.d"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "many", "numbers", "wait"]
    for i in range(120):
        (folder / f"{i}.txt").write_text(f"{i}: " + " ".join(rng.choice(words, rng.integers(20, 200))))


def changed(changes):
    """A hook that trains with other fields; `changes` is the text of the arguments of `dataclasses.replace`."""
    return f"small_run = lambda cache, old=small_run: dataclasses.replace(old(cache), {changes})\n"


def with_faults(fields):
    """A hook that trains with these fields of `FaultConfig`."""
    return "from pomona.train.fault_config import FaultConfig\n" + changed(f"faults=FaultConfig({fields})")


def at_log(step, action):
    """A hook that does something right after the log line of a step."""
    log = "loop._log = lambda session, stage, step, *rest, log=loop._log: (log(session, stage, step, *rest), "
    return LOOP + log + f"{action} if step == {step} else None)\n"


def begin(folder, cache, devices=1, hook="pass", **environment):
    """Starts the command; a dead test takes it along through its pipes."""
    command = [sys.executable, str(Path(__file__)), str(folder), str(cache), str(devices), hook]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


def finish(process):
    """Waits for it; returns what `subprocess.run` would."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(*arguments, **options):
    return finish(begin(*arguments, **options))


def losses(folder):
    from pomona.core.run_folder import RunFolder
    from pomona.metrics.records import read_records

    records = [r for r in read_records(RunFolder(folder).metrics) if "gradient_norm" in r]
    assert [r["step"] for r in records] == list(range(1, 15)), "each step once, in order"
    return [r["loss"] for r in records]


def events(folder):
    return [event["event"] for event in whole_events(folder)]


def whole_events(folder, name=None):
    """All events with their details, or those of one name."""
    lines = (Path(folder) / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if name in (None, event["event"])]


def main():
    folder, cache, devices, hook = sys.argv[1:5]
    # Without LLVM's optimizations programs compile in half the time; XLA's own remain.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    from pomona.core.errors import PREEMPTED, USER_ERROR, Preempted, UserError
    from pomona.train.loop import train

    exec(hook, globals())
    try:
        train(small_run(cache), Path(folder))
    except Preempted as error:
        print(error, file=sys.stderr)
        sys.exit(PREEMPTED)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()

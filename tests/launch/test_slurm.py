"""The sbatch script: bash reads it, its options are Slurm's, and it is queued again after the right exit codes."""

import os
import re
import shlex
import subprocess

import pytest

from pomona.cli.main import main
from pomona.cli.train_verb import resolve

SCRIPT = ["launch", "slurm", "afm_85m", "--chips", "h100-16", "--time", "1-00:00:00", "--partition", "p"]
SETTINGS = ["--data.sources.0.address", "my texts/*.txt", "--seed", "7"]

# Of the manual page of sbatch (Slurm 22.05); sbatch 22.05 itself has read the script without a complaint.
SBATCH = {
    *("account", "array", "begin", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency"),
    *("error", "exclude", "exclusive", "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "hold", "input"),
    *("job-name", "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "nice", "no-requeue", "nodelist"),
    *("nodes", "ntasks", "ntasks-per-gpu", "ntasks-per-node", "open-mode", "output", "parsable", "partition", "qos"),
    *("requeue", "reservation", "signal", "switches", "time", "time-min", "wait", "wait-all-nodes", "wckey"),
}


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*SCRIPT, "--run", "shared runs/mine", "--max-restarts", "2", *SETTINGS]) == 0
    assert "next: sbatch afm-85m.sbatch" in capsys.readouterr().out
    return tmp_path / "afm-85m.sbatch"


def options(script):
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script.read_text(), flags=re.MULTILINE)
    assert len(found) == script.read_text().count("#SBATCH"), "each line is one long option"
    return dict(found)


def test_bash_and_slurm_can_read_it(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    given = options(script)
    assert set(given) <= SBATCH, set(given) - SBATCH
    lines = script.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(not line.startswith("#SBATCH") for line in lines[first_command:]), "sbatch stops reading there"


def test_it_asks_for_a_task_for_each_gpu_and_for_a_warning(script):
    given = options(script)
    assert (given["nodes"], given["ntasks-per-node"], given["gpus-per-node"]) == ("2", "8", "8")
    assert (given["time"], given["partition"], given["signal"]) == ("1-00:00:00", "p", "TERM@600")
    assert "requeue" in given and "exclusive" in given and given["open-mode"] == "append"
    assert "gpus-per-task" not in given, "JAX takes one of the node's GPUs by the task's local number"


def test_part_of_a_node_leaves_the_rest_to_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "slurm", "afm_85m", "--chips", "h100-2", "--output", "part.sbatch"]) == 0
    given = options(tmp_path / "part.sbatch")
    assert (given["nodes"], given["ntasks-per-node"], given["gpus-per-node"]) == ("1", "2", "2")
    assert "exclusive" not in given and "time" not in given


FAKE_SRUN = """#!/bin/bash
printf '%s\\n' "$@" > srun.words
echo "platform $JAX_PLATFORMS" > srun.environment
exit {code}
"""
FAKE_SCONTROL = """#!/bin/bash
echo "$@" >> scontrol.words
exit {code}
"""


def execute(script, code, restarts=0, scontrol=0):
    """Runs the script with commands that only write down how they were called."""
    commands = script.parent / "bin"
    commands.mkdir(exist_ok=True)
    for name, text in (("srun", FAKE_SRUN.format(code=code)), ("scontrol", FAKE_SCONTROL.format(code=scontrol))):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    called = script.parent / "scontrol.words"
    called.unlink(missing_ok=True)
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "41"}
    if restarts:
        environment["SLURM_RESTART_COUNT"] = str(restarts)  # Slurm sets it from the first restart on
    done = subprocess.run(["bash", str(script)], cwd=script.parent, env=environment, capture_output=True, text=True)
    return done, called.read_text().splitlines() if called.exists() else []


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [(0, 0, False), (2, 0, False), (75, 0, True), (75, 99, True), (124, 0, True), (1, 1, True), (137, 2, False)],
)
def test_who_is_queued_again(script, code, restarts, again):
    """Preempted: always. A mistake: never. Stalled or broken: as often as --max-restarts says, here twice."""
    done, called = execute(script, code, restarts)
    assert called == (["requeue 41"] if again else [])
    assert done.returncode == (0 if again else code)
    assert ("queued again" in done.stderr) == again


def test_a_job_that_cannot_be_queued_again_says_why_it_ended(script):
    done, called = execute(script, 75, scontrol=1)
    assert called == ["requeue 41"] and done.returncode == 75


def test_the_tasks_train_exactly_the_run_that_was_asked_for(script):
    execute(script, 0)
    words = (script.parent / "srun.words").read_text().splitlines()
    flags = [word for word in words[: words.index("pomona")] if word.startswith("--")]
    assert set(flags) == {"--kill-on-bad-exit=0", "--wait=60", "--cpu-bind=none"}, "options of srun's manual page"
    program, verb, recipe, *settings = words[words.index("pomona") :]
    assert (program, verb) == ("pomona", "train")
    run, folder = resolve(recipe, settings)
    assert run == resolve("afm_85m", SETTINGS)[0] and str(folder) == "shared runs/mine"
    assert (script.parent / "srun.environment").read_text() == "platform cuda,cpu\n"
    assert shlex.quote("my texts/*.txt") in script.read_text(), "no shell has read the star"

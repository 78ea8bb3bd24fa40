"""What a run says of its making: the command as a shell takes it, the versions that are there, the machine."""

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys

import pytest

from pomona import __version__
from pomona.core.provenance import provenance, typed_command


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/usr/local/bin/pomona", "pomona"),
        ("/somewhere/pomona/cli/main.py", "pomona"),
        ("C/Scripts/pomona.exe", "pomona"),
        ("bench/train_cpu.py", "train_cpu.py"),
    ],
)
def test_the_command_can_be_typed_again(program, expected, monkeypatch):
    words = ["generate", "runs/it's mine", "def main():", "--stop", ""]
    monkeypatch.setattr(sys, "argv", [program, *words])
    assert shlex.split(typed_command()) == [expected, *words]


def test_versions_and_the_machine_are_what_they_are():
    made_by = json.loads(json.dumps(provenance()))
    versions, machine = made_by["versions"], made_by["machine"]
    assert versions["pomona"] == __version__ and versions["python"] == platform.python_version()
    assert versions["numpy"] == importlib.metadata.version("numpy") and "orbax-checkpoint" in versions
    assert machine["processor"] and machine["system"] == platform.system() and machine["cores"] >= 1
    if shutil.which("nproc"):  # of GNU, which would also count what OMP_NUM_THREADS leaves
        plain = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
        counted = subprocess.run(["nproc"], capture_output=True, text=True, env=plain)
        assert machine["cores"] == int(counted.stdout)

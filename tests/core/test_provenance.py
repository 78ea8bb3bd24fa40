"""What a run says of its making: the command as a shell takes it, the versions that are there, the machine."""

import importlib.metadata
import json
import platform
import shlex
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
    counted = subprocess.run(["nproc"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert str(machine["cores"]) == counted.stdout.strip() and machine["system"] == platform.system()
    assert machine["processor"]

"""What made a run: the command as it was typed, the versions of the libraries, the machine. Nothing is imported.

Every stage of a life writes it into the `start` and `resume` events of its run folder, where the card reads it.
"""

import importlib.metadata
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from pomona import __version__
from pomona.core.machine import usable_cores

LIBRARIES = ("jax", "jaxlib", "libtpu", "numpy", "optax", "orbax-checkpoint", "sentencepiece")


def typed_command() -> str:
    """The command of this process as a shell takes it: `pomona train tiny --run runs/mine`."""
    program = Path(sys.argv[0])
    name = ["pomona"] if program.parts[-2:] == ("cli", "main.py") or program.stem == "pomona" else [program.name]
    return shlex.join(name + sys.argv[1:])


def provenance() -> dict[str, Any]:
    """The details of a `start` event: `command`, `versions` by library, and `machine` with its processor and cores."""
    versions = {"pomona": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue  # libtpu is only where there is a TPU
    machine = {"system": platform.system(), "processor": _processor(), "cores": usable_cores()}
    return {"command": typed_command(), "versions": versions, "machine": machine}


def _processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

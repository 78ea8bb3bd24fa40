"""What this process may take of its machine."""

import os
import sys
from pathlib import Path

LIMIT = Path("/sys/fs/cgroup")
_PR_SET_DUMPABLE = 4


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes, by the machine and by the container's limit; a huge number where neither says so."""
    found = [1 << 62]
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    most, used = ("".join(_lines(LIMIT / f"memory.{name}")).strip() for name in ("max", "current"))
    if most.isdigit() and used.isdigit():
        cached = sum(int(line.split()[1]) for line in _lines(LIMIT / "memory.stat") if "active_file " in line)
        found.append(int(most) - int(used) + cached)
    return min(found)


def hide_memory() -> None:
    """Keeps this process's memory from core dumps, and from other processes of the same user. Processes that it forks
    inherit both; a program that it starts has to call this itself.

    Raises:
        OSError: the kernel refuses.
    """
    import ctypes
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []

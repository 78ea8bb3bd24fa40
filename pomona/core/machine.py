"""What this process may take of its machine."""

import os
from pathlib import Path

LIMIT = Path("/sys/fs/cgroup")


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


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []

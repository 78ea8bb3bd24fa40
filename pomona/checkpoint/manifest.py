"""Checksums of a finished checkpoint, since the storage layer does not notice every flipped bit.

`manifest.json` in a step's folder lists every file with its size and CRC-32, and what the loop said about the step, so
that a remote tier can be chosen from without fetching it. It is written after the checkpoint is final; a local
checkpoint without one (the process died in between) is judged by whether it loads.
"""

import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pomona.core.files import read_json, write_json

NAME = "manifest.json"
READ_BYTES = 1 << 24


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Records the files of a finished checkpoint."""
    write_json(folder / NAME, {"about": about, "crc32": _checksums(folder)})


def is_sealed(folder: Path) -> bool:
    """Whether a checkpoint has its manifest."""
    return (folder / NAME).exists()


def damage(folder: Path, reader: int = 0, readers: int = 1) -> str | None:
    """What is wrong with a checkpoint's files, or None. Reads every byte once, files in parallel.

    Several processes share the work: each is one of `readers` and sees its own part of the files.
    """
    if not (folder / NAME).exists():
        return None
    expected = dict(list(read_json(folder / NAME)["crc32"].items())[reader::readers])
    present = _checksums(folder, expected)
    for name, record in expected.items():
        if name not in present:
            return f"{name} is missing"
        if present[name] != record:
            size, recorded = present[name][0], record[0]
            return f"{name} has {size} bytes of {recorded}" if size != recorded else f"{name} has changed bytes"
    return None


def _checksums(folder: Path, names: Iterable[str] | None = None) -> dict[str, list[int]]:
    """Of the files with these names that exist, or of all."""
    everything = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != NAME)
    paths = sorted(path for name in (everything if names is None else names) if (path := folder / name).is_file())
    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) * 2)) as pool:
        return dict(zip((str(path.relative_to(folder)) for path in paths), pool.map(_checksum, paths)))


def _checksum(path: Path) -> list[int]:
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return [size, crc]

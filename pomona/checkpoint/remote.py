"""The remote tier: copies of finished checkpoints at an fsspec address, believed only if they are whole.

    ADDRESS/config.json         the configuration of the run that the address belongs to
    ADDRESS/5000/...            the files of a checkpoint
    ADDRESS/5000/manifest.json  their sizes and checksums; written last, so a copy without it is no checkpoint

Object stores have no renaming, so the last file is what makes a checkpoint. Whatever a file system's library raises
leaves here as `RemoteProblem`: a network that is down is no reason to end a run.
"""

import contextlib
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec

from pomona.checkpoint.manifest import NAME, READ_BYTES
from pomona.core.config import differences, from_json, to_json
from pomona.core.errors import UserError
from pomona.core.files import read_json, write_json

COPIES_AT_ONCE = 8


class RemoteProblem(Exception):
    """The remote tier could not be read or written, in one line."""


class Remote:
    """The checkpoints at an address.

    Raises:
        UserError: no such kind of address, or its package is not installed.
    """

    def __init__(self, address: str, alive: Callable[[], None] = lambda: None):
        """Args:
        alive: called whenever a piece of a file has been copied.
        """
        self.address, self._alive, self.copied_bytes = address, alive, 0
        self._cancelled = threading.Event()
        try:
            self._system, root = fsspec.core.url_to_fs(address)
        except (ValueError, ImportError) as error:
            raise UserError(
                f"checkpoint.remote is {address!r}, which cannot be opened: {error}.",
                "it is an fsspec address, whose package is installed (gcsfs for gs://, s3fs for s3://).",
                "--checkpoint.remote gs://BUCKET/RUN",
            ) from error
        self._root = root.rstrip("/")

    def check(self, config: Any) -> bool:
        """Whether the address is this run's already.

        Raises:
            UserError: another run's checkpoints are there.
            RemoteProblem: the address cannot be read.
        """
        with _problems():
            self._system.invalidate_cache()
            present = self._read(f"{self._root}/config.json")
        if present is None:
            return False
        changes = differences(from_json(type(config), present), config)
        if changes:
            raise UserError(
                f"{self.address} holds the checkpoints of another run ({'; '.join(changes[:3])}).",
                "a remote tier belongs to one run, as a run folder does.",
                "give this run an address of its own with --checkpoint.remote.",
            )
        return True

    def claim(self, config: Any) -> None:
        """Marks the address as this run's; raises as `check`."""
        if not self.check(config):
            with _problems():
                self._system.makedirs(self._root, exist_ok=True)
                self._system.pipe_file(f"{self._root}/config.json", json.dumps(to_json(config), indent=2).encode())

    def steps(self) -> dict[int, dict[str, Any]]:
        """The manifests of the checkpoints that are there, by step.

        Raises:
            RemoteProblem: the address cannot be read.
        """
        with _problems():
            self._system.invalidate_cache()
            if not self._system.isdir(self._root):
                return {}
            names = [path.rstrip("/").rsplit("/", 1)[-1] for path in self._system.ls(self._root, detail=False)]
            found = {int(name): self._read(f"{self._root}/{name}/{NAME}") for name in names if name.isdigit()}
        return {step: manifest for step, manifest in found.items() if manifest is not None}

    def push(self, folder: Path) -> int:
        """Copies a sealed checkpoint, unless it is there; returns the bytes that were copied.

        Raises:
            RemoteProblem: it could not be copied, or the local files are not what their manifest says.
        """
        target, manifest = f"{self._root}/{folder.name}", read_json(folder / NAME)
        with _problems():
            self._system.invalidate_cache()
            if self._read(f"{target}/{NAME}") == manifest:
                return 0
        self.remove(int(folder.name))
        with _problems():
            names = list(manifest["crc32"])
            for parent in sorted({f"{target}/{name}".rsplit("/", 1)[0] for name in names}):
                self._system.makedirs(parent, exist_ok=True)
            send = lambda name: self._copy(
                lambda: (folder / name).open("rb"),
                lambda: self._system.open(f"{target}/{name}", "wb"),
                name,
                manifest["crc32"][name],
            )
            _at_once(send, names)
            self._system.invalidate_cache()
            for name in names:
                if (size := self._system.info(f"{target}/{name}")["size"]) != manifest["crc32"][name][0]:
                    raise RemoteProblem(f"{name} has {size} bytes of {manifest['crc32'][name][0]} at the address")
            self._system.pipe_file(f"{target}/{NAME}", json.dumps(manifest).encode())
        return sum(size for size, _ in manifest["crc32"].values())

    def pull(self, step: int, target: Path, reader: int = 0, readers: int = 1) -> None:
        """Copies a reader's part of a checkpoint's files into a folder; the first reader brings the manifest too.

        Raises:
            RemoteProblem: a file could not be copied or is damaged.
        """
        source = f"{self._root}/{step}"
        with _problems():
            manifest = self._read(f"{source}/{NAME}")
            if manifest is None:
                raise RemoteProblem(f"{NAME} is missing")
            names = list(manifest["crc32"])[reader::readers]
            for name in names:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
            fetch = lambda name: self._copy(
                lambda: self._system.open(f"{source}/{name}", "rb"),
                lambda: (target / name).open("wb"),
                name,
                manifest["crc32"][name],
            )
            _at_once(fetch, names)
        if reader == 0:
            write_json(target / NAME, manifest)

    def remove(self, step: int) -> None:
        """Removes a checkpoint, its manifest first.

        Raises:
            RemoteProblem: it could not be removed.
        """
        target = f"{self._root}/{step}"
        with _problems():
            if self._system.exists(f"{target}/{NAME}"):
                self._system.rm_file(f"{target}/{NAME}")
            if self._system.exists(target):
                self._system.rm(target, recursive=True)

    def cancel(self) -> None:
        """Makes a copy under way fail soon, from another thread."""
        self._cancelled.set()

    def _copy(self, source: Callable[[], Any], target: Callable[[], Any], name: str, expected: list[int]) -> None:
        """One file; its bytes are checked while they pass."""
        crc = size = 0
        with source() as reading, target() as writing:
            while block := reading.read(READ_BYTES):
                if self._cancelled.is_set():
                    raise RemoteProblem("cancelled")
                writing.write(block)
                crc, size = zlib.crc32(block, crc), size + len(block)
                self.copied_bytes += len(block)
                self._alive()
        if [size, crc] != expected:
            changed = "changed bytes" if size == expected[0] else f"{size} bytes of {expected[0]}"
            raise RemoteProblem(f"{name} has {changed}")

    def _read(self, path: str) -> Any:
        """A JSON file, or None where there is none or half of one."""
        try:
            return json.loads(self._system.cat_file(path))
        except (FileNotFoundError, ValueError):
            return None


def _at_once(function: Callable[[str], None], names: list[str]) -> None:
    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        list(pool.map(function, names))


@contextlib.contextmanager
def _problems() -> Iterator[None]:
    try:
        yield
    except RemoteProblem:
        raise
    except Exception as error:  # each file system has exceptions of its own
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise RemoteProblem(first[:200]) from error

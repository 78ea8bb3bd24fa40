"""Files that are either whole or absent: every write goes to a sibling and is renamed into place."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pomona.core.errors import UserError


def read_bytes(path: Path) -> bytes:
    """Reads a file that somebody named.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", "a file that is there.", "check its name"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` atomically, creating its folder.

    Raises:
        UserError: the disk is full or the folder cannot be written; `path` keeps its old content.
    """
    with whole_file(path) as draft:
        draft.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically; NaN and infinity are errors, since other readers refuse them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is absent or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist.", "this file is written when a run starts.", "check the folder's name."
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON: {error}.",
            "Pomona writes this file whole or not at all, so it was edited or damaged afterwards.",
            "restore it from a copy, or start a run in a new folder.",
        ) from error


def check_new(path: Path) -> None:
    """Raises `UserError` where `path` is anything but absent or an empty folder; to be asked before long work."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(
            f"{path} exists already.",
            "a finished folder is never overwritten.",
            "give another folder, or remove that one first.",
        )


def check_new_file(path: Path) -> None:
    """Raises `UserError` where anything is at `path`; to be asked before long work."""
    if path.exists():
        raise UserError(
            f"{path} exists already.",
            "a finished file is never overwritten.",
            "give another name, or remove that one first.",
        )


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling that becomes `path` when the block succeeds and vanishes when it fails.

    Raises:
        UserError: `path` exists already and is not an empty folder, or the disk is full.
    """
    check_new(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield draft
            os.chmod(draft, 0o777 & ~_umask())
            os.replace(draft, path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


@contextlib.contextmanager
def whole_file(path: Path, private: bool = False) -> Iterator[Path]:
    """Yields a temporary sibling to write, which takes the place of the file `path` when the block succeeds and
    vanishes when it fails: for files too large to be held in memory.

    Raises:
        UserError: the disk is full or the folder cannot be written; `path` keeps its old content.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(descriptor)
        try:
            yield Path(name)
            with open(name, "rb+") as file:
                os.fsync(file.fileno())
            if not private:
                os.chmod(name, 0o666 & ~_umask())  # mkstemp makes private files; a run folder is shared
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """As `whole_file`, for a name that is free.

    Raises:
        UserError: `path` exists already, or the disk is full.
    """
    check_new_file(path)
    with whole_file(path) as draft:
        yield draft


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk inside the block into a `UserError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full: {path} could not be written.",
                "everything written before this point is intact, earlier checkpoints included.",
                "free some space, then type the same command again; a run resumes by itself.",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(
                f"{path} cannot be written: {error.strerror}.",
                "the run folder and the data cache have to be writable.",
                "choose another folder with --run, or change its permissions.",
            ) from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

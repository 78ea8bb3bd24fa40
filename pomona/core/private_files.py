"""Files that their owner alone can read, made whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pomona.core.errors import UserError
from pomona.core.files import disk_errors, whole_file


@contextlib.contextmanager
def new_private_file(path: Path) -> Iterator[Path]:
    """Yields an empty sibling of mode 0600 to write, which gets the name `path` when the block succeeds.

    Where another process was faster, its file stays and the sibling vanishes, as it does when the block fails. A
    folder that has to be made gets mode 0700.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(descriptor)
        try:
            yield Path(name)
            _to_disk(Path(name))
            try:
                os.link(name, path)  # as atomic as a rename, and it replaces nothing
            except FileExistsError:
                pass
        finally:
            os.unlink(name)
        _to_disk(path.parent)


def write_private(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` atomically, with mode 0600 from the first byte on.

    Raises:
        UserError: the disk is full or the folder cannot be written; `path` keeps its old content.
    """
    with whole_file(path, private=True) as draft:
        draft.write_bytes(content)


def read_private(path: Path) -> bytes:
    """Reads a file that is its owner's alone.

    Raises:
        UserError: it cannot be read, or others may use it.
    """
    try:
        check_private(path)
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", "it holds a key.", "check its name") from error


def check_private(path: Path) -> None:
    """Nothing where a file is its owner's alone.

    Raises:
        UserError: others may read, write or execute it.
    """
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise UserError(
            f"{path} has mode {mode:04o}, so that others than its owner may use it.",
            "files with tokens, keys or accounts have mode 0600.",
            f"chmod 600 {path}",
        )


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

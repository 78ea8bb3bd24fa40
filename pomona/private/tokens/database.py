"""SQLite files that their owner alone can read, and that several processes and threads write at once."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from pomona.core.errors import UserError
from pomona.core.private_files import check_private, new_private_file

WAIT_SECONDS = 30
"""For others to finish; then `sqlite3.OperationalError`."""


class Database:
    """One connection, used by one thread at a time. A process opens its own, after it was forked."""

    def __init__(self, path: Path, schema: str, *, kept_log: bool):
        """Opens the file, or makes it with mode 0600.

        With `kept_log` a commit is one append to a log beside the file and survives a power cut: fast, for servers.
        Without, nothing that was deleted stays in the file or beside it, and a commit survives a power cut too.

        Raises:
            UserError: others may read the file, it cannot be made, or it is no database.
        """
        if not path.exists():
            # Made elsewhere: two processes that turn the log on in one new file at once are told that it is locked.
            # And never opened here but by SQLite, whose locks end when the process closes the file anywhere.
            with new_private_file(path) as draft:
                _open(draft, schema, kept_log).close()
        check_private(path)
        self._owner = os.getpid()
        self._turn = threading.Lock()
        self._connection = _open(path, schema, kept_log)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection inside a transaction that nobody else writes beside; undone where the block fails.

        Raises:
            RuntimeError: the process was forked after the file was opened, which SQLite does not survive.
            sqlite3.OperationalError: others kept the file for longer than 30 s, or the disk is full.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("a database was carried over a fork: open it in the process that uses it")
        with self._turn, _transaction(self._connection):
            yield self._connection

    def close(self) -> None:
        """Closes the file; the database cannot be used afterwards."""
        with self._turn:
            self._connection.close()


def _open(path: Path, schema: str, kept_log: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    # EXTRA: after a power cut a journal that was just deleted must not come back and undo what it belongs to.
    mode, safety = ("WAL", "FULL") if kept_log else ("DELETE", "EXTRA")
    try:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute(f"PRAGMA synchronous = {safety}")
        connection.execute("PRAGMA secure_delete = ON")
        with _transaction(connection):
            for statement in schema.split(";"):
                connection.execute(statement)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise UserError(
            f"{path} cannot be opened: {error}.",
            "it is a SQLite file that is made where there is none.",
            "give another path, or restore the file.",
        ) from error
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise

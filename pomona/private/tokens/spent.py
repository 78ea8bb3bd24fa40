"""Which tokens were spent, so that none is spent twice: a gateway keeps this, in SQLite, for as long as a key is good.

In one step: `spend`. In three, so that a failure behind the gateway costs no second token: `reserve` gives a token to
one request, named by its digest; `settle` spends it when the request was answered, or its client went away; `release`
lets the same request be tried again where nodes failed. The same token with another request is refused throughout, and
only one attempt at a request is under way at a time: otherwise one token sent many times at once would keep many nodes
busy.

A token is known by its key's identifier and its nonce, 32 bytes each. Times are seconds since the epoch.
"""

import enum
import sqlite3
from pathlib import Path

from pomona.private.tokens.database import Database

HOLD_SECONDS = 600.0
"""After so long without an outcome a reservation may be taken over by the same request: no answer takes longer, so the
gateway that had it has died."""
FORGOTTEN_AT_ONCE = 100
"""Entries of expired keys that each call deletes at most, so that none takes long when a day's key expires."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (
    key_id BLOB NOT NULL,
    nonce BLOB NOT NULL,
    expires REAL NOT NULL,
    request_digest BLOB,
    held_until REAL NOT NULL,
    PRIMARY KEY (key_id, nonce)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS spent_expires ON spent (expires)
"""
_TOKEN = "key_id = ? AND nonce = ?"


class Reservation(enum.Enum):
    """What came of `reserve`."""

    RESERVED = "reserved"
    """The request may go on to a node."""
    HELD = "held"
    """The same request is under way; it may be tried again later with the same token."""
    REFUSED = "refused"
    """The token was spent, is held for another request, or its key has expired."""


class SpentTokens:
    """The tokens that were spent or reserved, in a file that several processes and threads may use at once."""

    def __init__(self, path: Path):
        """Opens the file, or makes it with mode 0600. What was answered once survives a crash and a power cut.

        Raises:
            UserError: others may read the file, or it cannot be opened.
        """
        self._database = Database(path, _SCHEMA, kept_log=True)

    def spend(self, nonce: bytes, key_id: bytes, expires: float, now: float) -> bool:
        """Whether this is the first time; then the token is spent. `expires` is the key's.

        A token of an expired key is never taken: what was spent under it is forgotten.
        """
        if now >= expires:
            return False
        with self._database.transaction() as connection:
            _forget(connection, now)
            done = connection.execute(
                "INSERT INTO spent VALUES (?, ?, ?, NULL, 0) ON CONFLICT DO NOTHING", (key_id, nonce, expires)
            )
            return done.rowcount == 1

    def reserve(self, nonce: bytes, key_id: bytes, request_digest: bytes, expires: float, now: float) -> Reservation:
        """Gives a token to a request for 10 minutes, where it is new, or the same request has released it, or had it
        for so long."""
        if now >= expires:
            return Reservation.REFUSED
        with self._database.transaction() as connection:
            _forget(connection, now)
            row = connection.execute(
                f"SELECT request_digest, held_until FROM spent WHERE {_TOKEN}", (key_id, nonce)
            ).fetchone()
            if row is not None and row[0] != request_digest:
                return Reservation.REFUSED
            if row is not None and now < row[1]:
                return Reservation.HELD
            connection.execute(
                "INSERT OR REPLACE INTO spent VALUES (?, ?, ?, ?, ?)",
                (key_id, nonce, expires, request_digest, now + HOLD_SECONDS),
            )
            return Reservation.RESERVED

    def settle(self, nonce: bytes, key_id: bytes, request_digest: bytes) -> bool:
        """Spends a reserved token, and forgets of which request; whether it was reserved for it."""
        with self._database.transaction() as connection:
            done = connection.execute(
                f"UPDATE spent SET request_digest = NULL, held_until = 0 WHERE {_TOKEN} AND request_digest = ?",
                (key_id, nonce, request_digest),
            )
            return done.rowcount == 1

    def release(self, nonce: bytes, key_id: bytes, request_digest: bytes) -> None:
        """Lets the same request be tried again at once, because it was not answered. A settled token stays spent."""
        with self._database.transaction() as connection:
            connection.execute(
                f"UPDATE spent SET held_until = 0 WHERE {_TOKEN} AND request_digest = ?",
                (key_id, nonce, request_digest),
            )

    def close(self) -> None:
        """Closes the file."""
        self._database.close()


def _forget(connection: sqlite3.Connection, now: float) -> None:
    connection.execute(
        "DELETE FROM spent WHERE (key_id, nonce) IN (SELECT key_id, nonce FROM spent WHERE expires <= ? LIMIT ?)",
        (now, FORGOTTEN_AT_ONCE),
    )

"""A client's tokens on its disk, until each is used once.

A token leaves the file before it is used: a crash in between loses it, and nothing uses one twice. Used tokens leave
no trace in the file: by their nonces a gateway could be asked when this client spent them.
"""

from collections.abc import Iterable
from pathlib import Path

from pomona.private.tokens.database import Database
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.privacy_pass import IssuerKey, Token, decode_token, encode_token, token_key_id

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    number INTEGER PRIMARY KEY,
    challenge_digest BLOB NOT NULL,
    key_id BLOB NOT NULL,
    expires REAL NOT NULL,
    token BLOB NOT NULL UNIQUE
);
CREATE INDEX IF NOT EXISTS tokens_next ON tokens (challenge_digest, expires)
"""


class Wallet:
    """Tokens by challenge and issuer key. Several processes and threads of a user may take from it at once."""

    def __init__(self, path: Path):
        """Opens the file, or makes it with mode 0600.

        Raises:
            UserError: others may read the file, or it cannot be opened.
        """
        self._database = Database(path, _SCHEMA, kept_log=False)

    def put(self, tokens: Iterable[Token], key: IssuerKey) -> None:
        """Keeps tokens of one key, all or none, until the key expires.

        Raises:
            TokenError: one is of another key.
        """
        key_id = token_key_id(key.public_key)
        with self._database.transaction() as connection:
            for token in tokens:
                if token.token_key_id != key_id:
                    raise TokenError("A token is of another key than the one it is kept under.")
                connection.execute(
                    "INSERT OR IGNORE INTO tokens (challenge_digest, key_id, expires, token) VALUES (?, ?, ?, ?)",
                    (token.challenge_digest, key_id, key.expires, encode_token(token)),
                )

    def take(self, challenge_digest: bytes, now: float) -> Token | None:
        """Removes and returns a token for the challenge, of the key that expires first; None where there is none.

        Tokens of expired keys are dropped.
        """
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM tokens WHERE expires <= ?", (now,))
            row = connection.execute(
                "SELECT number, token FROM tokens WHERE challenge_digest = ? ORDER BY expires, number LIMIT 1",
                (challenge_digest,),
            ).fetchone()
            if row is not None:
                connection.execute("DELETE FROM tokens WHERE number = ?", row[:1])
        return None if row is None else decode_token(row[1])

    def count(self, challenge_digest: bytes, now: float) -> int:
        """How many tokens for the challenge `take` would give."""
        with self._database.transaction() as connection:
            return connection.execute(
                "SELECT COUNT(*) FROM tokens WHERE challenge_digest = ? AND expires > ?", (challenge_digest, now)
            ).fetchone()[0]

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

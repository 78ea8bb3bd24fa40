"""How many tokens an account may have a day, and how many it was given: all that an issuer remembers of anybody."""

import dataclasses
from pathlib import Path

from pomona.private.tokens.database import Database
from pomona.private.tokens.errors import QuotaExceeded

DAY_SECONDS = 86400
"""Days begin at midnight UTC."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS given (
    day INTEGER NOT NULL,
    account TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    PRIMARY KEY (day, account)
) WITHOUT ROWID
"""


@dataclasses.dataclass(frozen=True)
class Quota:
    """The counts of this day, and what an account may have at most. Earlier days are forgotten."""

    database: Database
    per_day_tokens: int


def open_quota(path: Path, per_day_tokens: int) -> Quota:
    """The counts in a SQLite file, which is made where there is none.

    Raises:
        UserError: others may read the file, or it cannot be opened.
    """
    return Quota(Database(path, _SCHEMA, kept_log=True), per_day_tokens)


def take_quota(quota: Quota, account: str, count: int, now: float) -> int:
    """Counts `count` tokens more for an account, all or none, and returns how many are left of this day.

    However many processes do it at once, no account gets more than its quota.

    Raises:
        QuotaExceeded: fewer than `count` are left.
        ValueError: `count` is not positive.
    """
    if count <= 0:
        raise ValueError("a number of tokens is positive")
    day = int(now // DAY_SECONDS)
    with quota.database.transaction() as connection:
        connection.execute("DELETE FROM given WHERE day < ?", (day,))
        row = connection.execute("SELECT tokens FROM given WHERE day = ? AND account = ?", (day, account)).fetchone()
        left = max(0, quota.per_day_tokens - (row[0] if row else 0))
        if count > left:
            raise QuotaExceeded(count, left, quota.per_day_tokens)
        connection.execute(
            "INSERT INTO given VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens",
            (day, account, count),
        )
    return left - count

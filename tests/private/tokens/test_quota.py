"""Quotas: all or none, a day at a time, never more however many ask at once."""

import os
import sqlite3
from pathlib import Path

import pytest

from pomona.core.errors import UserError
from pomona.private.tokens.errors import QuotaExceeded
from pomona.private.tokens.quota import DAY_SECONDS, open_quota, take_quota


@pytest.fixture
def quota(tmp_path):
    opened = open_quota(tmp_path / "quota.sqlite", 10)
    yield opened
    opened.database.close()


def test_a_day_has_so_many_tokens(quota, now):
    assert take_quota(quota, "alice", 4, now) == 6
    assert take_quota(quota, "bob", 10, now) == 0
    assert take_quota(quota, "alice", 6, now + 1) == 0
    with pytest.raises(QuotaExceeded):
        take_quota(quota, "alice", 1, now + 2)


def test_what_goes_beyond_is_refused_whole(quota, now):
    take_quota(quota, "alice", 7, now)
    with pytest.raises(QuotaExceeded, match="4 tokens were asked for, and 3 are left of the 10 of this day") as caught:
        take_quota(quota, "alice", 4, now)
    assert (caught.value.asked_tokens, caught.value.left_tokens, caught.value.per_day_tokens) == (4, 3, 10)
    assert take_quota(quota, "alice", 3, now) == 0
    with pytest.raises(QuotaExceeded):
        take_quota(quota, "bob", 11, now)
    assert take_quota(quota, "bob", 10, now) == 0


def test_a_new_day_begins_at_midnight(quota, now):
    midnight = (now // DAY_SECONDS + 1) * DAY_SECONDS
    take_quota(quota, "alice", 10, now)
    with pytest.raises(QuotaExceeded):
        take_quota(quota, "alice", 1, midnight - 0.001)
    assert take_quota(quota, "alice", 10, midnight) == 0
    with quota.database.transaction() as connection:  # and the day before is forgotten
        assert connection.execute("SELECT * FROM given").fetchall() == [(midnight // DAY_SECONDS, "alice", 10)]


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_is_positive(quota, now, count):
    with pytest.raises(ValueError, match="positive"):
        take_quota(quota, "alice", count, now)


def test_a_smaller_quota_than_was_given_already(quota, now, tmp_path):
    take_quota(quota, "alice", 10, now)
    smaller = open_quota(tmp_path / "quota.sqlite", 5)
    with pytest.raises(QuotaExceeded) as caught:
        take_quota(smaller, "alice", 1, now)
    assert caught.value.left_tokens == 0
    smaller.database.close()


RACER = """
import sys
from pathlib import Path
from pomona.private.tokens.errors import QuotaExceeded
from pomona.private.tokens.quota import open_quota, take_quota
quota = open_quota(Path(sys.argv[1]), 301)
print("ready", flush=True)
for line in sys.stdin:
    try:
        take_quota(quota, "alice", int(line), float(sys.argv[2]))
        print(line.strip(), flush=True)
    except QuotaExceeded as error:
        print("left", error.left_tokens, flush=True)
"""


def test_two_processes_never_give_more_than_the_quota(race, tmp_path, now):
    answers = race(RACER, [3] * 52, tmp_path / "quota.sqlite", now)
    assert answers == [("3", "3")] * 50 + [("left 1", "left 1")] * 2
    last = race(RACER, [1], tmp_path / "quota.sqlite", now)
    assert sorted(last[0]) == ["1", "left 0"]


def test_the_file_is_its_owners_alone(quota, tmp_path, now):
    take_quota(quota, "alice", 1, now)
    files = list(tmp_path.iterdir())
    assert len(files) >= 2  # the log beside it
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    (tmp_path / "quota.sqlite").chmod(0o640)
    with pytest.raises(UserError, match="mode 0640"):
        open_quota(tmp_path / "quota.sqlite", 10)


def test_a_failed_transaction_leaves_nothing(quota):
    with pytest.raises(ZeroDivisionError), quota.database.transaction() as connection:
        connection.execute("INSERT INTO given VALUES (1, 'alice', 5)")
        raise ZeroDivisionError
    with quota.database.transaction() as connection:
        assert connection.execute("SELECT * FROM given").fetchall() == []


def test_a_database_is_not_carried_over_a_fork(quota, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 1)
    with pytest.raises(RuntimeError, match="fork"), quota.database.transaction():
        pass


OPENER = """
import sys
from pathlib import Path
from pomona.private.tokens.quota import open_quota, take_quota
print("ready", flush=True)
for line in sys.stdin:
    quota = open_quota(Path(sys.argv[1]) / line.strip(), 10)
    print(take_quota(quota, "alice", 1, 0), flush=True)
    quota.database.close()
"""


def test_two_processes_make_and_open_a_database_at_once(race, tmp_path):
    answers = race(OPENER, [number // 2 for number in range(60)], tmp_path)
    assert [tuple(sorted(one)) for one in answers] == [("8", "9"), ("6", "7")] * 30
    # The log of the last that was opened may be there still.
    assert {path.name for path in tmp_path.iterdir()} - {"29-wal", "29-shm"} == {str(number) for number in range(30)}


def test_a_database_gets_its_name_when_it_is_whole(tmp_path, monkeypatch):
    seen = []

    def link(draft, path, real=os.link):
        content = Path(draft).read_bytes()
        seen.append((content[18:20], b"CREATE TABLE given" in content))  # bytes 18 and 19: 2 where the log is on
        real(draft, path)

    monkeypatch.setattr("os.link", link)
    for _ in range(2):
        open_quota(tmp_path / "quota.sqlite", 10).database.close()
    assert seen == [(b"\2\2", True)]
    assert [path.name for path in tmp_path.iterdir()] == ["quota.sqlite"]


def test_what_is_no_database(tmp_path):
    path = tmp_path / "quota.sqlite"
    path.touch(mode=0o600)
    path.write_bytes(b"something else" * 1000)
    with pytest.raises(UserError, match="cannot be opened"):
        open_quota(path, 10)
    assert path.read_bytes() == b"something else" * 1000


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(UserError, match="cannot be written"):
        open_quota(tmp_path / "quota.sqlite", 10)


def test_a_closed_database_stays_closed(tmp_path):
    opened = open_quota(tmp_path / "quota.sqlite", 10)
    opened.database.close()
    with pytest.raises(sqlite3.ProgrammingError):
        take_quota(opened, "alice", 1, 0)

"""Each token once: in one step and in three, by threads and processes at once, through a kill, until keys expire."""

import concurrent.futures
import os
import signal
import sqlite3

import pytest

from pomona.core.errors import UserError
from pomona.private.tokens.spent import FORGOTTEN_AT_ONCE, HOLD_SECONDS, Reservation, SpentTokens

KEY, OTHER_KEY = b"k" * 32, b"K" * 32
NONCE, OTHER_NONCE = b"n" * 32, b"N" * 32
REQUEST, OTHER_REQUEST = b"r" * 32, b"R" * 32
RESERVED, HELD, REFUSED = Reservation.RESERVED, Reservation.HELD, Reservation.REFUSED


@pytest.fixture
def spent(tmp_path):
    store = SpentTokens(tmp_path / "spent.sqlite")
    yield store
    store.close()


def rows(path):
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT * FROM spent").fetchall()
    finally:
        connection.close()


def test_a_token_is_spent_once(spent, now, tmp_path):
    expires = now + 1000
    assert spent.spend(NONCE, KEY, expires, now)
    assert not spent.spend(NONCE, KEY, expires, now)
    assert not spent.spend(NONCE, KEY, expires, expires - 0.001)
    assert spent.spend(OTHER_NONCE, KEY, expires, now) and spent.spend(NONCE, OTHER_KEY, expires, now)
    other = SpentTokens(tmp_path / "spent.sqlite")
    assert not other.spend(NONCE, KEY, expires, now)
    other.close()


def test_a_token_of_an_expired_key_is_not_taken(spent, now, tmp_path):
    expires = now + 1000
    for when in (expires, expires + 1, expires + 1e9):
        assert not spent.spend(NONCE, KEY, expires, when)
        assert spent.reserve(NONCE, KEY, REQUEST, expires, when) is REFUSED
    assert rows(tmp_path / "spent.sqlite") == []


def test_tokens_of_expired_keys_are_forgotten(spent, now, tmp_path):
    count = FORGOTTEN_AT_ONCE + 5
    for number in range(count):
        assert spent.spend(number.to_bytes(32), KEY, now + 10, now)
    assert spent.reserve(NONCE, KEY, REQUEST, now + 10, now) is RESERVED
    assert spent.spend(NONCE, OTHER_KEY, now + 1000, now + 9.999)
    assert len(rows(tmp_path / "spent.sqlite")) == count + 2
    assert spent.spend(OTHER_NONCE, OTHER_KEY, now + 1000, now + 10)
    assert len(rows(tmp_path / "spent.sqlite")) == count + 3 - FORGOTTEN_AT_ONCE
    assert spent.reserve(b"o" * 32, OTHER_KEY, REQUEST, now + 1000, now + 10) is RESERVED
    assert {row[0] for row in rows(tmp_path / "spent.sqlite")} == {OTHER_KEY}
    assert not spent.spend(NONCE, OTHER_KEY, now + 1000, now + 10)


def test_a_failure_costs_no_second_token(spent, now):
    expires = now + 1000
    for _ in range(3):
        assert spent.reserve(NONCE, KEY, REQUEST, expires, now) is RESERVED
        spent.release(NONCE, KEY, REQUEST)
    assert spent.reserve(NONCE, KEY, REQUEST, expires, now) is RESERVED
    assert spent.settle(NONCE, KEY, REQUEST)
    assert not spent.settle(NONCE, KEY, REQUEST)
    spent.release(NONCE, KEY, REQUEST)  # too late
    for request in (REQUEST, OTHER_REQUEST):
        assert spent.reserve(NONCE, KEY, request, expires, now + 1000 - 1) is REFUSED
        assert not spent.settle(NONCE, KEY, request)
    assert not spent.spend(NONCE, KEY, expires, now)


def test_another_request_does_not_get_a_token_that_was_reserved(spent, now):
    expires = now + 1000
    assert spent.reserve(NONCE, KEY, REQUEST, expires, now) is RESERVED
    for _ in range(2):
        for when in (now, now + HOLD_SECONDS, expires - 1):
            assert spent.reserve(NONCE, KEY, OTHER_REQUEST, expires, when) is REFUSED
            assert not spent.spend(NONCE, KEY, expires, when)
        assert not spent.settle(NONCE, KEY, OTHER_REQUEST)
        spent.release(NONCE, KEY, OTHER_REQUEST)
        assert spent.reserve(NONCE, KEY, REQUEST, expires, now) is HELD
    assert spent.reserve(NONCE, OTHER_KEY, OTHER_REQUEST, expires, now) is RESERVED
    assert spent.reserve(OTHER_NONCE, KEY, OTHER_REQUEST, expires, now) is RESERVED


def test_a_token_that_bought_nothing_is_for_the_same_request_alone(spent, now):
    expires = now + 1000
    assert spent.reserve(NONCE, KEY, REQUEST, expires, now) is RESERVED
    spent.release(NONCE, KEY, REQUEST)
    assert spent.reserve(NONCE, KEY, OTHER_REQUEST, expires, now) is REFUSED
    assert not spent.spend(NONCE, KEY, expires, now)
    assert spent.reserve(NONCE, KEY, REQUEST, expires, now) is RESERVED


def test_one_attempt_at_a_time(spent, now):
    expires = now + 1000
    assert spent.reserve(NONCE, KEY, REQUEST, expires, now) is RESERVED
    assert spent.reserve(NONCE, KEY, REQUEST, expires, now + HOLD_SECONDS - 0.01) is HELD
    # The gateway that had it died: another takes over, and should the first come back, one of them settles.
    assert spent.reserve(NONCE, KEY, REQUEST, expires, now + HOLD_SECONDS) is RESERVED
    assert spent.reserve(NONCE, KEY, REQUEST, expires, now + HOLD_SECONDS) is HELD
    assert [spent.settle(NONCE, KEY, REQUEST) for _ in range(2)] == [True, False]


def test_nothing_of_the_request_is_kept_once_it_is_served(spent, now, tmp_path):
    assert spent.reserve(NONCE, KEY, REQUEST, now + 1000, now) is RESERVED
    assert rows(tmp_path / "spent.sqlite")[0][3] == REQUEST
    assert spent.settle(NONCE, KEY, REQUEST)
    assert rows(tmp_path / "spent.sqlite") == [(KEY, NONCE, now + 1000, None, 0)]
    assert not spent.settle(NONCE, KEY, None)


def test_what_was_never_reserved_is_not_settled(spent):
    assert not spent.settle(NONCE, KEY, REQUEST)
    spent.release(NONCE, KEY, REQUEST)


@pytest.mark.parametrize("how", ["spend", "reserve"])
def test_threads_spend_each_token_once(spent, now, how):
    def attempt(number):
        nonce = (number % 20).to_bytes(32)
        if how == "spend":
            return spent.spend(nonce, KEY, now + 1000, now)
        return spent.reserve(nonce, KEY, REQUEST, now + 1000, now) is RESERVED and spent.settle(nonce, KEY, REQUEST)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(160))) == 20


RACER = """
import sys
from pathlib import Path
from pomona.private.tokens.spent import Reservation, SpentTokens
spent, now = SpentTokens(Path(sys.argv[1])), float(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    nonce = int(line).to_bytes(32)
    if sys.argv[3] == "spend":
        print(spent.spend(nonce, b"k" * 32, now + 1000, now), flush=True)
    else:
        done = spent.reserve(nonce, b"k" * 32, b"r" * 32, now + 1000, now)
        print(done is Reservation.RESERVED and spent.settle(nonce, b"k" * 32, b"r" * 32), flush=True)
"""


@pytest.mark.parametrize("how", ["spend", "reserve"])
def test_two_processes_spend_each_token_once(race, tmp_path, now, how):
    answers = race(RACER, range(150), tmp_path / "spent.sqlite", now, how)
    assert {tuple(sorted(one)) for one in answers} == {("False", "True")}
    assert len(rows(tmp_path / "spent.sqlite")) == 150


SPENDER = """
import itertools, sys
from pathlib import Path
from pomona.private.tokens.spent import SpentTokens
spent = SpentTokens(Path(sys.argv[1]))
now = float(sys.argv[2])
for number in itertools.count():
    assert spent.spend(number.to_bytes(32), b"k" * 32, now + 1000, now)
    print(number, flush=True)
"""


def test_what_was_spent_stays_spent_after_a_kill(start, tmp_path, now):
    victim = start(SPENDER, tmp_path / "spent.sqlite", now)
    said = [victim.stdout.readline() for _ in range(30)]
    os.kill(victim.pid, signal.SIGKILL)
    said += victim.communicate(timeout=60)[0].splitlines(keepends=True)
    assert victim.returncode == -signal.SIGKILL
    last = max(int(line) for line in said if line.endswith("\n"))
    assert last >= 29
    spent = SpentTokens(tmp_path / "spent.sqlite")
    assert not any(spent.spend(number.to_bytes(32), KEY, now + 1000, now) for number in range(last + 1))
    # What was under way when it died counts or does not; the next one was never spent.
    assert spent.spend((last + 2).to_bytes(32), KEY, now + 1000, now)
    spent.close()
    assert len(rows(tmp_path / "spent.sqlite")) in (last + 2, last + 3)


def test_the_file_is_its_owners_alone(spent, now, tmp_path):
    spent.spend(NONCE, KEY, now + 1000, now)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    (tmp_path / "spent.sqlite").chmod(0o660)
    with pytest.raises(UserError, match="mode 0660"):
        SpentTokens(tmp_path / "spent.sqlite")

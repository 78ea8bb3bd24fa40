"""A client's tokens: each is given once, by challenge, before its key expires, and leaves no trace."""

import dataclasses
import logging
import os
import signal

import pytest

from pomona.core.errors import UserError
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.issuance import finish_batch, prepare_batch
from pomona.private.tokens.privacy_pass import Token, TokenChallenge, challenge_digest, encode_token, token_key_id
from pomona.private.tokens.wallet import Wallet


@pytest.fixture
def wallet(tmp_path):
    opened = Wallet(tmp_path / "wallet.sqlite")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def digest(challenge):
    return challenge_digest(challenge)


def test_each_token_is_given_once(wallet, issued, key, digest, now, tmp_path):
    tokens = issued[2]
    wallet.put(tokens, key)
    assert wallet.count(digest, now) == 3
    again = Wallet(tmp_path / "wallet.sqlite")  # another process of the same user
    taken = [wallet.take(digest, now), again.take(digest, now), wallet.take(digest, now)]
    assert taken == tokens
    assert wallet.take(digest, now) is None and again.take(digest, now) is None and wallet.count(digest, now) == 0
    again.close()


def test_the_same_token_is_kept_once(wallet, issued, key, digest, now):
    wallet.put(issued[2], key)
    wallet.put(issued[2][:2], key)
    assert wallet.count(digest, now) == 3


def test_tokens_are_of_a_challenge(wallet, issued, key, digest, now, sign):
    other = TokenChallenge("issuer.example")
    body, pending = prepare_batch(1, other, key)
    others = finish_batch(pending, sign(body))
    wallet.put([*issued[2], *others], key)
    assert wallet.count(challenge_digest(other), now) == 1
    assert wallet.take(challenge_digest(other), now) == others[0]
    assert wallet.take(challenge_digest(other), now) is None
    assert wallet.take(bytes(32), now) is None
    assert wallet.count(digest, now) == 3


def test_tokens_of_expired_keys_are_dropped(wallet, issued, key, other_key, digest, now):
    sooner = dataclasses.replace(other_key, expires=key.expires - 10)
    soon = Token(bytes(32), digest, token_key_id(other_key.public_key), bytes(256))
    wallet.put(issued[2], key)
    wallet.put([soon, dataclasses.replace(soon, nonce=b"1" * 32)], sooner)
    assert wallet.take(digest, sooner.expires - 1) == soon  # the one that expires first goes first
    assert wallet.count(digest, sooner.expires - 1) == 4 and wallet.count(digest, sooner.expires) == 3
    assert wallet.take(digest, sooner.expires) == issued[2][0]
    assert wallet.count(digest, now) == 2  # the other one is gone for good
    assert wallet.take(digest, key.expires) is None
    assert wallet.count(digest, now) == 0


def test_tokens_of_another_key_are_not_kept(wallet, issued, key, other_key, digest, now):
    with pytest.raises(TokenError, match="another key"):
        wallet.put(issued[2], other_key)
    odd = dataclasses.replace(issued[2][2], token_key_id=bytes(32))
    with pytest.raises(TokenError, match="another key"):
        wallet.put([*issued[2][:2], odd], key)
    assert wallet.count(digest, now) == 0


def test_a_token_leaves_no_trace(wallet, issued, key, digest, now, tmp_path):
    wallet.put(issued[2], key)
    contents = lambda: b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert all(token.nonce in contents() for token in issued[2])
    token = wallet.take(digest, now)
    assert token.nonce not in contents() and token.authenticator[:16] not in contents()
    assert issued[2][1].nonce in contents()
    wallet.take(digest, key.expires)
    assert not any(encode_token(one)[at : at + 16] in contents() for one in issued[2] for at in range(2, 338, 16))


def test_nothing_is_logged_or_printed(wallet, issued, key, digest, now, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        wallet.put(issued[2], key)
        token = wallet.take(digest, now)
    out, err = capfd.readouterr()
    assert not caplog.records and not out and not err
    assert token.nonce.hex() not in repr(wallet) and repr(token.nonce) not in repr(wallet)


def test_the_file_is_its_owners_alone(wallet, issued, key, tmp_path):
    wallet.put(issued[2], key)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    (tmp_path / "wallet.sqlite").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        Wallet(tmp_path / "wallet.sqlite")
    Wallet(tmp_path / "new" / "wallet.sqlite").close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


TAKER = """
import sys
from pathlib import Path
from pomona.private.tokens.wallet import Wallet
wallet = Wallet(Path(sys.argv[1]))
print("ready", flush=True)
for _ in sys.stdin:
    token = wallet.take(bytes.fromhex(sys.argv[2]), float(sys.argv[3]))
    print(token and token.nonce.hex(), flush=True)
"""


@pytest.fixture
def many(wallet, key, digest):
    key_id = token_key_id(key.public_key)
    made = [Token(number.to_bytes(32), digest, key_id, bytes(256)) for number in range(120)]
    wallet.put(made, key)
    return {token.nonce.hex() for token in made}


def test_two_processes_take_each_token_once(race, many, tmp_path, digest, now):
    answers = race(TAKER, range(61), tmp_path / "wallet.sqlite", digest.hex(), now)
    taken = [nonce for each in answers for nonce in each]
    assert taken[-2:] == ["None", "None"]
    assert {*taken[:-2]} == many and len(taken) - 2 == len(many)


def test_a_kill_loses_a_token_at_most_and_repeats_none(start, many, wallet, tmp_path, digest, now):
    victim = start(TAKER, tmp_path / "wallet.sqlite", digest.hex(), now)
    assert victim.stdout.readline() == "ready\n"
    victim.stdin.write("\n" * 1000)
    victim.stdin.flush()
    said = [victim.stdout.readline() for _ in range(10)]
    os.kill(victim.pid, signal.SIGKILL)
    said += victim.communicate(timeout=60)[0].splitlines(keepends=True)
    taken = [line.strip() for line in said if line.endswith("\n")]
    left = []
    while (token := wallet.take(digest, now)) is not None:
        left.append(token.nonce.hex())
    assert left and not {*taken} & {*left} and len({*taken}) == len(taken) >= 10
    assert len(many) - len(taken) - len(left) in (0, 1)

"""The issuer: a key a day, whole batches or none, and nothing kept that would tell requests apart."""

import re

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pomona.core.errors import UserError
from pomona.private.tokens import blind_rsa, issuer
from pomona.private.tokens.batches import decode_batch_request, decode_batch_response, encode_batch_request
from pomona.private.tokens.directory import decode_directory, encode_directory, preferred_key
from pomona.private.tokens.errors import QuotaExceeded, SigningFailure, TokenError
from pomona.private.tokens.issuance import finish_batch, prepare_batch
from pomona.private.tokens.issuer import Issuer, issue, issuer_directory, prepare_keys, published_key, truncated_key_id
from pomona.private.tokens.privacy_pass import TokenRequest, token_key_id, verify_token
from pomona.private.tokens.quota import DAY_SECONDS, open_quota


@pytest.fixture(scope="module")
def keys(tmp_path_factory, now):
    return prepare_keys(tmp_path_factory.mktemp("keys"), now)


@pytest.fixture
def ours(tmp_path, keys):
    quota = open_quota(tmp_path / "quota.sqlite", 5)
    yield Issuer(keys, quota)
    quota.database.close()


def test_tokens_of_todays_key(ours, challenge, now):
    key = published_key(ours.keys[0])
    body, pending = prepare_batch(3, challenge, key)
    tokens = finish_batch(pending, issue(ours, "alice", body, now))
    assert len(tokens) == 3
    for token in tokens:
        verify_token(token, challenge, key, now)


def test_a_key_signs_on_its_day_and_its_tokens_are_good_for_one_more(ours, challenge, now):
    today, tomorrow = map(published_key, ours.keys)
    midnight = now // DAY_SECONDS * DAY_SECONDS + DAY_SECONDS
    assert (today.not_before, today.expires) == (midnight - DAY_SECONDS, midnight + DAY_SECONDS)
    assert (tomorrow.not_before, tomorrow.expires) == (midnight, midnight + 2 * DAY_SECONDS)
    for key, when in ((today, today.not_before - 1), (today, midnight), (tomorrow, midnight - 0.001)):
        body, _ = prepare_batch(1, challenge, key)
        with pytest.raises(TokenError, match="does not sign today"):
            issue(ours, "alice", body, when)
    for key, when in ((today, midnight - 0.001), (tomorrow, midnight)):
        body, pending = prepare_batch(1, challenge, key)
        assert len(finish_batch(pending, issue(ours, "alice", body, when))) == 1


def test_the_quota_is_of_tokens_and_whole_batches(ours, challenge, now, monkeypatch):
    key = published_key(ours.keys[0])
    issue(ours, "alice", prepare_batch(3, challenge, key)[0], now)
    body, _ = prepare_batch(3, challenge, key)
    with monkeypatch.context() as patched:
        patched.setattr(issuer, "blind_sign", None)  # nothing is signed
        with pytest.raises(QuotaExceeded) as caught:
            issue(ours, "alice", body, now)
    assert (caught.value.asked_tokens, caught.value.left_tokens) == (3, 2)
    issue(ours, "alice", prepare_batch(2, challenge, key)[0], now)
    issue(ours, "bob", body, now)


def test_what_is_malformed_costs_nothing(ours, challenge, now):
    key = published_key(ours.keys[0])
    body, _ = prepare_batch(5, challenge, key)
    requests = decode_batch_request(body)
    other = next(number for number in range(256) if number not in map(truncated_key_id, ours.keys))
    mixed = [*requests[:4], TokenRequest(other, requests[4].blinded_msg)]
    for wrong in (b"", body[:-1], body + b"\0", encode_batch_request(mixed)):
        with pytest.raises(TokenError):
            issue(ours, "alice", wrong, now)
    assert len(decode_batch_response(issue(ours, "alice", body, now))) == 5


def test_a_number_beyond_the_modulus_is_refused(ours, now):
    beyond = TokenRequest(truncated_key_id(ours.keys[0]), b"\xff" * 256)
    with pytest.raises(TokenError, match="out of range"):
        issue(ours, "alice", encode_batch_request([beyond]), now)


def test_a_fault_is_not_answered(ours, challenge, now, monkeypatch):
    monkeypatch.setattr(blind_rsa, "_rsasp1", lambda numbers, m: 5)
    body, _ = prepare_batch(1, challenge, published_key(ours.keys[0]))
    with pytest.raises(SigningFailure):
        issue(ours, "alice", body, now)


def test_nothing_is_kept_but_account_and_count(ours, challenge, now, tmp_path):
    body, pending = prepare_batch(4, challenge, published_key(ours.keys[0]))
    response = issue(ours, "alice@example", body, now)
    tokens = finish_batch(pending, response)
    with ours.quota.database.transaction() as connection:
        tables = connection.execute("SELECT name, sql FROM sqlite_master").fetchall()
        assert [name for name, _ in tables] == ["given"]
        assert re.findall(r"(\w+) (?:INTEGER|TEXT|BLOB|REAL)", tables[0][1]) == ["day", "account", "tokens"]
        rows = connection.execute("SELECT * FROM given").fetchall()
    assert rows == [(now // DAY_SECONDS, "alice@example", 4)]
    on_disk = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"alice@example" in on_disk
    secrets = [body, response, *(token.nonce + token.authenticator for token in tokens)]
    assert not any(content[at : at + 8] in on_disk for content in secrets for at in range(len(content) - 7))


def test_keys_are_made_once_and_kept(tmp_path, now):
    folder = tmp_path / "keys"
    first = prepare_keys(folder, now)
    again = prepare_keys(folder, now + 1)
    numbers = lambda keys: [(one.day, token_key_id(one.private_key.public_key())) for one in keys]
    assert numbers(first) == numbers(again) and len(set(numbers(first))) == 2
    assert [one.day for one in first] == [now // DAY_SECONDS, now // DAY_SECONDS + 1]
    assert folder.stat().st_mode & 0o777 == 0o700
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == ["2027-01-15.pem", "2027-01-16.pem"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert "private" not in repr(first[0]) and str(first[0].private_key.private_numbers().d)[:20] not in repr(first[0])

    next_day = prepare_keys(folder, now + DAY_SECONDS)
    assert numbers(next_day)[0] == numbers(first)[1]
    assert [path.name for path in sorted(folder.iterdir())] == ["2027-01-16.pem", "2027-01-17.pem"]
    last = prepare_keys(folder, now + 40 * DAY_SECONDS)
    assert not set(numbers(last)) & set(numbers(next_day)) and len(list(folder.iterdir())) == 2


def test_keys_that_requests_could_not_tell_apart_are_made_again(tmp_path, now, monkeypatch):
    one, other = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    while token_key_id(other.public_key())[-1] == token_key_id(one.public_key())[-1]:
        other = rsa.generate_private_key(65537, 2048)
    made = [one, one, one, other]
    monkeypatch.setattr(issuer, "_generate", lambda: made.pop(0))
    first, second = prepare_keys(tmp_path, now)
    assert truncated_key_id(first) != truncated_key_id(second) and not made


MAKER = """
import sys
from pathlib import Path
from pomona.private.tokens.issuer import prepare_keys
from pomona.private.tokens.privacy_pass import token_key_id
print("ready", flush=True)
sys.stdin.readline()
keys = prepare_keys(Path(sys.argv[1]), float(sys.argv[2]))
print(*(token_key_id(one.private_key.public_key()).hex() for one in keys))
"""


def test_two_processes_end_up_with_the_same_keys(start, tmp_path, now):
    makers = [start(MAKER, tmp_path / "keys", now) for _ in range(2)]
    for one in makers:
        assert one.stdout.readline() == "ready\n"
    for one in makers:
        one.stdin.write("\n")
        one.stdin.flush()
    first, second = (one.communicate(timeout=60)[0].split() for one in makers)
    assert first == second and len(set(first)) == 2
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["2027-01-15.pem", "2027-01-16.pem"]


def pem(key, password=None):
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "curve", "short", "exponent", "locked"])
def test_what_is_no_issuers_key(tmp_path, now, private_key, kind):
    content = {
        "empty": lambda: b"",
        "text": lambda: b"\xff hello",
        "cut": lambda: pem(private_key)[:-200],
        "curve": lambda: pem(ec.generate_private_key(ec.SECP256R1())),
        "short": lambda: pem(rsa.generate_private_key(65537, 1024)),
        "exponent": lambda: pem(rsa.generate_private_key(3, 2048)),
        "locked": lambda: pem(private_key, b"password"),
    }[kind]()
    path = tmp_path / "2027-01-15.pem"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no private key of an issuer"):
        prepare_keys(tmp_path, now)
    assert path.read_bytes() == content


def test_a_key_that_others_may_read_is_refused(tmp_path, now):
    prepare_keys(tmp_path, now)
    (tmp_path / "2027-01-16.pem").chmod(0o604)
    with pytest.raises(UserError, match="mode 0604"):
        prepare_keys(tmp_path, now)


def test_the_directory_names_the_key_that_signs(ours, now):
    directory = decode_directory(encode_directory(issuer_directory(ours, "/token-request")))
    today, tomorrow = (one.private_key.public_key() for one in ours.keys)
    assert directory.issuer_request_uri == "/token-request"
    assert preferred_key(directory, now) == today
    assert preferred_key(directory, now + DAY_SECONDS) == tomorrow

"""A client's settings: what is wrong with a file is said in three parts, and no other file is taken for one."""

import dataclasses
import json
import os

import pytest
from made_cloud import ACCOUNT

from pomona.core.errors import UserError
from pomona.private.client.trust import read_log_trust, read_trust, write_trust


@pytest.fixture
def path(cloud, tmp_path):
    write_trust(cloud.trust, tmp_path / "client.json")
    return tmp_path / "client.json"


def told(path, read=read_trust):
    """The error's three parts."""
    with pytest.raises(UserError) as error:
        read(path)
    parts = error.value.what, error.value.rule, error.value.fix
    assert all(parts) and str(path) in parts[0]
    assert ACCOUNT not in " ".join(parts), "no secret is quoted"
    return parts


def rewritten(path, **changes):
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def test_what_is_written_is_read_by_its_owner_alone(cloud, path):
    assert read_trust(path) == cloud.trust
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_absent_file_is_told_how_to_come_by(tmp_path):
    what, rule, fix = told(tmp_path / "client.json")
    assert "cannot be read: there is no such file" in what and "told once" in rule and "pomona private up" in fix


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_may_use_is_refused(path, mode):
    os.chmod(path, mode)
    what, rule, fix = told(path)
    assert f"{mode:04o}" in what and "0600" in rule and fix == f"chmod 600 {path}"


@pytest.mark.parametrize("profiles, named", [([], "none"), (["bunker"], "bunker"), (["tpm", "bunker"], "bunker")])
def test_profiles_that_are_unknown_are_refused(path, profiles, named):
    rewritten(path, profiles=profiles)
    what, rule, fix = told(path)
    assert what.endswith(f"accepts the profiles {named}.") and "confidential" in rule and "status" in fix


def test_a_log_without_a_good_key_is_refused(cloud, path):
    log = dataclasses.asdict(cloud.trust.log)
    for changes in (
        {"vkey": ""},
        {"vkey": "else"},
        {"vkey": log["vkey"][:-3]},
        {"vkey": log["vkey"].replace("+", "-")},
        {"cosigners": [log["vkey"]]},
        {"quorum": 0},
        {"quorum": 2},
    ):
        rewritten(path, log=log | changes)
        what, rule, _ = told(path)
        assert "is no client's settings" in what and "example" in rule


CONTENTS = [b"", b"{}", b"[]", b"null", b"\xff", b"{" * 100_000, b'{"log": 1}']


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: str(content[:9]))
def test_what_is_no_settings_is_refused(path, content):
    path.write_bytes(content)
    told(path)
    assert "which log is meant" in told(path, read_log_trust)[0]


@pytest.mark.parametrize("field", ["log", "relay", "issuer", "account", "issuer_name", "gateway_name", "profiles"])
def test_every_setting_is_needed(path, field):
    rewritten(path, **{field: None})
    told(path)


def test_the_account_is_not_shown(cloud):
    assert cloud.trust.account == ACCOUNT and ACCOUNT not in repr(cloud.trust)

"""The log as a client reads it: what it does not believe, what it keeps, and that it asks nobody meanwhile."""

import asyncio
import dataclasses
import json
import shutil

import httpx2
import pytest
from made_cloud import CONTENT, DAY, NOW, ORIGIN, SIGNER

from pomona.private.client import reading
from pomona.private.client.proxy import request_of
from pomona.private.client.reading import Unreachable, read_log
from pomona.private.transparency.errors import Absent, Forked, TransparencyError
from pomona.private.transparency.log import open_log
from pomona.private.transparency.note import Signer, encode_vkey, verifier_of
from pomona.private.transparency.view import load_view

STRANGER = Signer(ORIGIN, bytes(range(1, 33)))


def refused(cloud, ask, kind, words):
    """Asking fails by this error, and neither relay nor issuer are told anything."""
    cloud.asked.clear()
    pieces, error = ask(cloud)
    assert pieces == [] and type(error) is kind and words in str(error), error
    assert set(cloud.hosts()) <= {"log.test"}
    return error


def another_history(cloud, tmp_path, size, signer=SIGNER):
    """A log of the same name with other entries."""
    with open_log(tmp_path / "fork", signer, ORIGIN) as fork:
        fork.append([b"entry %d of a lie" % number for number in range(size)], cloud.now)
    cloud.files = tmp_path / "fork"


@pytest.mark.parametrize("more", [-1, 0, 1, 300])
def test_a_log_that_forks_is_found_out_and_nothing_is_asked(cloud, ask, tmp_path, more):
    """Between two reads, whatever the size of the other history is."""
    assert ask(cloud) == (list(CONTENT), None)
    held = load_view(cloud.state / "view.json")
    another_history(cloud, tmp_path, held.checkpoint.size + more)
    error = refused(cloud, ask, Forked, "seen" if more < 0 else "two trees" if not more else "does not begin with")
    kept = cloud.state / "forked"
    assert (kept / "held").read_bytes() == held.note == error.held
    assert (kept / "offered").read_bytes() == (tmp_path / "fork" / "checkpoint").read_bytes() == error.offered
    assert (kept / "path").read_bytes() == b"".join(error.path) and bool(error.path) == (more > 0)
    assert load_view(cloud.state / "view.json") == held, "what was seen is kept"
    refused(cloud, ask, Forked, "")
    cloud.files = cloud.folder / "log"
    assert ask(cloud) == (list(CONTENT), None)


def test_a_log_that_forks_while_a_client_runs_is_found_out(cloud, tmp_path):
    async def asked():
        async with cloud.asker() as asker:
            async with asker.ask(request_of("/v1/completions", b"?"), "model") as answer:
                assert await answer.whole() == b"".join(CONTENT)
            another_history(cloud, tmp_path, 9)
            cloud.now += 61
            cloud.asked.clear()
            for _ in range(2):
                with pytest.raises(Forked):
                    async with asker.ask(request_of("/v1/completions", b"?"), "model"):
                        pass

    asyncio.run(asked())
    assert set(cloud.hosts()) == {"log.test"}


def test_a_shorter_log_cannot_take_back_what_was_seen(new_cloud, ask, tmp_path):
    """Not even an honest one, from an older copy of its folder."""
    cloud = new_cloud
    cloud.publish()
    shutil.copytree(cloud.folder / "log", tmp_path / "older")
    cloud.log.append([b"{}"], cloud.now)
    assert ask(cloud) == (list(CONTENT), None)
    held = (cloud.state / "view.json").read_bytes()
    cloud.files = tmp_path / "older"
    refused(cloud, ask, Forked, "a log only grows")
    assert (cloud.state / "view.json").read_bytes() == held


def test_a_stale_log_is_not_believed(cloud, ask):
    cloud.now = NOW + DAY + 1
    refused(cloud, ask, TransparencyError, "was the newest 86401 seconds ago")
    assert not (cloud.state / "view.json").exists(), "nothing of it is kept"


def test_a_log_of_the_future_is_not_believed(cloud, ask):
    cloud.now = NOW - 301
    refused(cloud, ask, TransparencyError, "dated 301 seconds after now")
    read_log(cloud.trust.log, cloud.state, NOW - 300)


def test_a_log_that_another_signed_is_not_believed(cloud, ask, tmp_path):
    another_history(cloud, tmp_path, 3, STRANGER)
    refused(cloud, ask, TransparencyError, "no known key signed")


def fails(path):
    raise httpx2.ConnectError("nobody there")


SILENT = {
    "no connection": fails,
    "an error": lambda path: httpx2.Response(500),
    "elsewhere": lambda path: httpx2.Response(302, headers={"location": "https://else.test/"}),
    "a login": lambda path: httpx2.Response(401),
}


@pytest.mark.parametrize("answer", SILENT.values(), ids=SILENT)
@pytest.mark.parametrize("seen", [False, True])
def test_a_log_that_does_not_answer_closes_everything(cloud, ask, answer, seen):
    if seen:
        assert ask(cloud) == (list(CONTENT), None)
    cloud.answer_log = answer
    refused(cloud, ask, Unreachable, "the log")


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff" * 99, b"a\n1\n\n"], ids=str)
def test_a_log_that_answers_rubbish_closes_everything(cloud, ask, content):
    cloud.answer_log = lambda path: httpx2.Response(200, content=content)
    refused(cloud, ask, TransparencyError, "")


def test_a_log_without_a_checkpoint_closes_everything(cloud, ask):
    cloud.answer_log = lambda path: httpx2.Response(404)
    refused(cloud, ask, Absent, "checkpoint")


def test_a_log_with_a_wrong_entry_closes_everything(cloud, ask):
    honest = cloud.answer_log

    def changed(path):
        answer = honest(path)
        if "entries" not in path or answer.status_code != 200:
            return answer
        return httpx2.Response(200, content=answer.content.replace(b"gateway.test", b"gateway.evil"))

    cloud.answer_log = changed
    refused(cloud, ask, TransparencyError, "are not those of the tree")


def test_a_file_without_an_end_is_not_read(cloud, ask, monkeypatch):
    monkeypatch.setattr(reading, "LARGEST_FILE", 100_000)
    cloud.answer_log = lambda path: httpx2.Response(200, content=b"a" * 100_001)
    refused(cloud, ask, TransparencyError, "more than 100000 bytes")


# --- what is kept on the disk --------------------------------------------------------------------------------------


@pytest.fixture
def long_log(new_cloud):
    """A log with 300 entries before all others: one tile and one bundle of it are full, and kept."""
    new_cloud.log.append([b"entry %d" % number for number in range(300)], new_cloud.now)
    new_cloud.publish()
    return new_cloud


@pytest.mark.parametrize("damage", ["a turned bit", "cut off", "empty"])
@pytest.mark.parametrize("file", ["tile/0/000", "tile/entries/000"])
def test_a_damaged_file_is_noticed_and_heals_at_the_next_read(long_log, file, damage):
    cloud = long_log
    known = read_log(cloud.trust.log, cloud.state, cloud.now)
    assert len(known.entries) == 304
    kept = cloud.state / "tiles" / file
    content = kept.read_bytes()
    cloud.asked.clear()
    assert read_log(cloud.trust.log, cloud.state, cloud.now).entries == known.entries
    assert not any(path == f"/{file}" for _, path, _ in cloud.asked), "what cannot change is not fetched again"
    bad = {"a turned bit": bytes([content[9] ^ 1]), "cut off": b"", "empty": b""}[damage]
    kept.write_bytes(b"" if damage == "empty" else content[:9] + bad + content[10:])
    with pytest.raises(TransparencyError):
        read_log(cloud.trust.log, cloud.state, cloud.now)
    assert read_log(cloud.trust.log, cloud.state, cloud.now).entries == known.entries
    assert kept.read_bytes() == content


def test_a_log_that_was_wrong_once_does_not_stay_wrong(long_log):
    """What it gave out is not kept where it is not what it signed."""
    cloud, honest = long_log, long_log.answer_log
    cloud.answer_log = lambda path: (
        httpx2.Response(200, content=bytes(256 * 32)) if path == "tile/0/000" else honest(path)
    )
    with pytest.raises(TransparencyError):
        read_log(cloud.trust.log, cloud.state, cloud.now)
    cloud.answer_log = honest
    assert len(read_log(cloud.trust.log, cloud.state, cloud.now).entries) == 304


@pytest.mark.parametrize("change", ["cut off", "another root", "no JSON", "empty"])
def test_a_damaged_view_is_not_begun_anew(cloud, ask, change):
    """Whoever could damage it could make the client forget."""
    assert ask(cloud) == (list(CONTENT), None)
    path = cloud.state / "view.json"
    text = path.read_text()
    note = json.loads(text)["note"]
    root = note.split("\n")[2]
    changed = {"cut off": text[:-9], "no JSON": "view", "empty": ""}.get(change) or text
    if change == "another root":
        changed = text.replace(root, root[::-1][1:] + "=")
    if change == "empty":
        changed = ""
    path.write_text(changed)
    refused(cloud, ask, TransparencyError, "")
    assert path.read_text() == changed


def test_a_view_of_another_log_is_not_mixed_with_it(cloud, tmp_path):
    read_log(cloud.trust.log, cloud.state, cloud.now)
    other = dataclasses.replace(cloud.trust.log, vkey=encode_vkey(verifier_of(STRANGER)))
    with pytest.raises(TransparencyError, match="is of another log than the settings name"):
        read_log(other, cloud.state, cloud.now)


def test_only_its_owner_may_look_into_a_clients_folder(cloud, ask):
    assert ask(cloud) == (list(CONTENT), None)
    assert cloud.state.stat().st_mode & 0o777 == 0o700
    assert (cloud.state / "tokens.sqlite").stat().st_mode & 0o777 == 0o600

"""The remote tier: whole copies are believed, halves never are, and a tier that fails ends nothing."""

import json
import threading

import fsspec
import pytest
from small_trees import abstract, assert_equal, data_files, trees, write

from pomona.checkpoint import courier as courier_module
from pomona.checkpoint.config import CheckpointConfig, check_checkpoint
from pomona.checkpoint.courier import Courier
from pomona.checkpoint.remote import Remote, RemoteProblem
from pomona.checkpoint.store import Store, adopt, restore, steps
from pomona.core.errors import UserError
from pomona.optim.config import AdamW

ADDRESSES = ["memory://bucket/run", "file"]


@pytest.fixture(params=ADDRESSES)
def address(request, tmp_path):
    yield request.param if "://" in request.param else f"file://{tmp_path}/far/run"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def near(tmp_path):
    """A local tier with the steps 1, 2 and 3."""
    write(tmp_path / "near", 1, 2, 3)
    return tmp_path / "near"


def listing(address):
    system, root = fsspec.core.url_to_fs(address)
    return {path: system.info(path)["size"] for path in system.find(root)}


def test_what_was_pushed_comes_back_bit_for_bit(address, near, tmp_path):
    remote = Remote(address)
    assert remote.steps() == {}
    size = remote.push(near / "3")
    assert size == sum(path.stat().st_size for path in (near / "3").rglob("*") if path.is_file()) - manifest_bytes(near)
    assert {step: manifest["about"] for step, manifest in remote.steps().items()} == {3: {"step": 3}}
    assert remote.push(near / "3") == 0, "what is there is not copied again"

    found = restore(tmp_path / "empty", abstract(2), remote=remote, remote_steps=[3])
    assert found.remote and steps(tmp_path / "empty") == []
    assert_equal(found, 3)
    adopt(tmp_path / "empty", found)
    assert_equal(restore(tmp_path / "empty", abstract(1)), 3)
    remote.remove(3)
    assert listing(address) == {}


def manifest_bytes(near):
    return (near / "3" / "manifest.json").stat().st_size


def test_the_newest_sound_one_of_either_tier_is_used(address, near):
    remote = Remote(address)
    for step in (1, 2, 3):
        remote.push(near / str(step))
    read = lambda: restore(near, abstract(1), remote=Remote(address), remote_steps=list(remote.steps()))
    found = read()
    assert_equal(found, 3)
    assert not found.remote, "the nearer one of two"

    data_files(near / "3")[0].write_bytes(b"rubbish")
    found = read()
    assert_equal(found, 3)
    assert found.remote and [(each.step, each.remote) for each in found.skipped] == [(3, False)]

    system, root = fsspec.core.url_to_fs(address)
    for path in system.find(f"{root}/3"):
        if not path.endswith("manifest.json") and system.info(path)["size"]:
            system.pipe_file(path, system.cat_file(path)[:-1] + b"?")
    found = read()
    assert_equal(found, 2)
    assert not found.remote and [(each.step, each.remote) for each in found.skipped] == [(3, False), (3, True)]


@pytest.mark.parametrize("last_files", [1, 2])
def test_half_a_copy_is_no_checkpoint(address, near, monkeypatch, last_files):
    """The copy ends before each of the last files: the manifest, or one of the data."""
    remote, put = Remote(address), Remote._copy
    names = list(json.loads((near / "2" / "manifest.json").read_text())["crc32"])

    def copy(self, source, target, name, expected):
        if last_files == 2 and name == names[-1]:
            raise OSError("the line is dead")
        put(self, source, target, name, expected)

    def dead(*_, **__):
        raise OSError("the line is dead")

    monkeypatch.setattr(Remote, "_copy", copy)
    if last_files == 1:
        monkeypatch.setattr(type(remote._system), "pipe_file", dead)
    with pytest.raises(RemoteProblem, match="the line is dead"):
        remote.push(near / "2")
    assert listing(address) and remote.steps() == {}
    monkeypatch.undo()
    remote.push(near / "2")
    assert list(remote.steps()) == [2]


def test_a_manifest_cut_short_is_none(address, near):
    remote = Remote(address)
    remote.push(near / "2")
    system, root = fsspec.core.url_to_fs(address)
    content = system.cat_file(f"{root}/2/manifest.json")
    for size in (0, 1, len(content) // 2, len(content) - 1):
        system.pipe_file(f"{root}/2/manifest.json", content[:size])
        assert remote.steps() == {}


def test_damaged_local_files_are_not_sent_as_sound_ones(address, near):
    data_files(near / "2")[0].write_bytes(b"rubbish")
    with pytest.raises(RemoteProblem, match="bytes"):
        Remote(address).push(near / "2")
    assert Remote(address).steps() == {}


def test_an_address_belongs_to_one_run(address):
    Remote(address).claim(AdamW())
    Remote(address).claim(AdamW())
    with pytest.raises(UserError, match=r"another run.*epsilon"):
        Remote(address).claim(AdamW(epsilon=0.5))


def send(courier, wanted):
    """Waits for so many deliveries."""
    ended = []
    while len(ended) < wanted:
        ended += courier.ended()
        threading.Event().wait(0.01)
    return ended


def test_the_courier_takes_what_is_due_and_the_last_one_and_thins(address, tmp_path):
    config = CheckpointConfig(keep=2, remote_every_steps=4, remote_keep=2)
    courier = Courier(tmp_path / "near", Remote(address), config)
    store = Store(tmp_path / "near", config, courier=courier)
    for step in (3, 4, 6, 8, 9):
        store.save(step, trees(step), {"step": step}, step == 9)
        store.seal()
        if step in (4, 8, 9):
            (delivery,) = send(courier, 1)
            assert (delivery.step, delivery.problem) == (step, None) and delivery.size_bytes > 0
    courier.close()
    store.close()
    assert sorted(Remote(address).steps()) == [8, 9] and steps(tmp_path / "near") == [9, 8]


def test_what_the_courier_has_in_hand_is_not_deleted(tmp_path, monkeypatch):
    gate, config = threading.Event(), CheckpointConfig(keep=2, remote_every_steps=1)
    monkeypatch.setattr(Remote, "push", lambda self, folder: gate.wait() and 0)
    courier = Courier(tmp_path, Remote("memory://slow/run"), config)
    store = Store(tmp_path, config, courier=courier)
    for step in (1, 2, 3, 4, 5):
        store.save(step, trees(step), {"step": step})
        store.seal()
        while courier.in_transit() != ({1} if step == 1 else {1, step}):
            threading.Event().wait(0.01)
    assert steps(tmp_path) == [5, 4, 1], "the newest two, and the one that is being sent"
    gate.set()
    assert [delivery.step for delivery in send(courier, 2)] == [1, 5], "those between gave way to the newest"
    courier.close()
    store.close()


def test_a_tier_that_fails_is_tried_again_and_reported(near, monkeypatch):
    calls, pauses = [], []

    def broken(self, folder):
        calls.append(folder.name)
        raise RemoteProblem("no such bucket")

    monkeypatch.setattr(Remote, "push", broken)
    config = CheckpointConfig(remote_every_steps=2)
    courier = Courier(near, Remote("memory://gone/run"), config, pause=pauses.append)
    courier.offer(2)
    (delivery,) = send(courier, 1)
    assert (delivery.step, delivery.problem, courier.problem(2)) == (2, "no such bucket", "no such bucket")
    assert calls == ["2"] * courier_module.ATTEMPTS and pauses == [1.0, 2.0]
    monkeypatch.undo()
    courier.offer(3)  # due at once, though only a step later
    assert send(courier, 1)[0].problem is None and courier.problem(3) == ""
    courier.close()


def test_closing_gives_up_what_is_under_way(near, monkeypatch):
    started = threading.Event()

    def endless(self, *_):
        started.set()
        self._cancelled.wait()
        raise RemoteProblem("cancelled")

    monkeypatch.setattr(Remote, "_copy", endless)
    courier = Courier(near, Remote("memory://slow/run"), CheckpointConfig())
    courier.offer(3, must=True)
    started.wait()
    courier.close()
    assert Remote("memory://slow/run").steps() == {}


def test_impossible_settings_are_refused():
    for config in (CheckpointConfig(remote_every_steps=0), CheckpointConfig(remote_keep=1)):
        with pytest.raises(UserError, match="remote tier"):
            check_checkpoint(config)
    with pytest.raises(UserError, match="gcsfs"):
        Remote("pears://bucket/run")

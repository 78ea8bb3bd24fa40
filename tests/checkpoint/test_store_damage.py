"""Checkpoints: any mesh, any damage, any moment of death."""

import errno
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_trees import abstract, assert_equal, data_files, trees, write

from pomona.checkpoint import store as store_module
from pomona.checkpoint.config import CheckpointConfig, check_checkpoint
from pomona.checkpoint.store import Store, restore, set_aside, steps
from pomona.core.errors import UserError


@pytest.mark.parametrize("devices", [8, 2, 1])
def test_saved_on_eight_devices_read_on_fewer_bit_for_bit(tmp_path, devices):
    write(tmp_path, 7)
    found = restore(tmp_path, abstract(devices))
    assert_equal(found, 7)
    assert len(found.trees["params"]["a"].sharding.device_set) == devices


def test_one_tree_can_be_read_without_the_others(tmp_path):
    write(tmp_path, 1)
    found = restore(tmp_path, lambda step: {"params": abstract(1)(step)["params"]})
    assert list(found.trees) == ["params"]


def test_the_newest_are_kept(tmp_path):
    write(tmp_path, 1, 2, 3, 4, keep=2)
    assert steps(tmp_path) == [4, 3]
    with pytest.raises(UserError, match="one of: 4, 3"):
        restore(tmp_path, abstract(1), step=2)


def test_nothing_there_is_no_error(tmp_path):
    assert restore(tmp_path / "none", abstract(1)) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_any_damage_falls_back_to_the_one_before(tmp_path, damage):
    write(tmp_path, 1, 2)
    for file in data_files(tmp_path / "2"):
        content = file.read_bytes()
        if damage == "flip":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif damage == "truncate":
            file.write_bytes(content[:-1])
        elif damage == "empty":
            file.write_bytes(b"")
        else:
            file.unlink()
        found = restore(tmp_path, abstract(1))
        assert_equal(found, 1)
        assert found.skipped[0].step == 2 and file.name in found.skipped[0].problem
        file.write_bytes(content)
    assert_equal(restore(tmp_path, abstract(1)), 2)


def test_all_damaged_is_one_clear_error_and_nothing_is_deleted(tmp_path):
    write(tmp_path, 1)
    data_files(tmp_path / "1")[0].unlink()
    with pytest.raises(UserError, match=r"step 1: .* is missing"):
        restore(tmp_path, abstract(1))
    assert set_aside(tmp_path, 1).name == "1.damaged"
    assert steps(tmp_path) == []


def test_the_clock_and_the_count_decide(tmp_path):
    now = [0.0]
    store = Store(tmp_path, CheckpointConfig(every_steps=10, every_seconds=60), clock=lambda: now[0])
    assert [step for step in range(1, 31) if store.due(step)] == [10, 20, 30]
    now[0] = 61.0
    assert store.due(3)
    store.save(3, trees(3), {})
    assert not store.due(4)
    store.close()


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_kill_while_saving_leaves_a_sound_checkpoint(tmp_path, delay):
    code = (
        "import os, sys, jax, jax.numpy as jnp\n"
        "from pathlib import Path\n"
        "from pomona.checkpoint.store import *\n"
        "store = Store(Path(sys.argv[1]), CheckpointConfig(keep=3))\n"
        "make = lambda step: {'x': jnp.full((2_000_000,), step, jnp.float32)}\n"
        "store.save(1, {'params': make(1)}, {'step': 1}); store._seal()\n"
        "print('go', flush=True)\n"
        "for step in range(2, 100): store.save(step, {'params': make(step)}, {'step': step})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = {"params": {"x": jax.ShapeDtypeStruct((2_000_000,), jnp.float32, sharding=here)}}
    found = restore(tmp_path, lambda step: shape)
    assert found.step >= 1
    assert (np.asarray(found.trees["params"]["x"]) == found.step).all()


def test_a_full_disk_is_one_clear_error_and_earlier_checkpoints_live(tmp_path, monkeypatch):
    write(tmp_path, 1)
    store = Store(tmp_path, CheckpointConfig())

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store._orbax, "save_checkpointables_async", full)
    with pytest.raises(UserError, match="the disk is full"):
        store.save(2, trees(2), {})
    store.close()
    assert_equal(restore(tmp_path, abstract(1)), 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk(tmp_path):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        store = Store(tmp_path / "c", CheckpointConfig())
        small = {"params": {"x": jnp.arange(1000.0)}}
        store.save(1, small, {"step": 1})
        big = {"params": {"x": jax.random.normal(jax.random.key(0), (4_000_000,))}}
        with pytest.raises(UserError, match="the disk is full"):
            store.save(2, big, {"step": 2})
            store.close()
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        found = restore(
            tmp_path / "c", lambda step: {"params": {"x": jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=here)}}
        )
        assert found.step == 1
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_impossible_intervals_are_refused():
    for config in (CheckpointConfig(every_steps=0), CheckpointConfig(every_seconds=0.0), CheckpointConfig(keep=1)):
        with pytest.raises(UserError):
            check_checkpoint(config)


def test_absl_is_quiet():
    assert not store_module.logging.getLogger("absl").isEnabledFor(store_module.logging.WARNING)

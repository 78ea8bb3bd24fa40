"""Silent data corruption on eight devices: found, thrown away, and the machine named."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.core.errors import UserError
from pomona.parallel import checksum, rules
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.train.corruption import CorruptionCheck, describe
from pomona.train.fault_config import FaultConfig


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(MeshConfig())


def shardings(mesh):
    return {"w": rules.sharding(mesh, ("model", None)), "count": rules.sharding(mesh, ())}


def fresh_state(mesh):
    values = {"w": jax.random.normal(jax.random.key(0), (64, 8)), "count": jnp.int32(0)}
    return jax.device_put(values, shardings(mesh))


def flip(array, device, bit=0):
    """The array with one bit of one device's shard flipped."""
    shards = []
    for shard in array.addressable_shards:
        value = np.array(shard.data)
        if shard.device.id == device:
            value.view(np.uint32).reshape(-1)[-1] ^= np.uint32(1 << bit)
        shards.append(jax.device_put(value, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


class Training:
    """A step that overwrites its state; on some calls some devices are wrong."""

    def __init__(self, mesh, wrong):
        out = shardings(mesh), rules.sharding(mesh, ())
        update = lambda state, batch: (
            {"w": state["w"] * 0.5 + batch, "count": state["count"] + 1},
            {"loss": jnp.sum(state["w"] ** 2)},
        )
        self._step = jax.jit(update, donate_argnums=0, out_shardings=out)
        self._wrong, self.calls = wrong, 0

    def __call__(self, state, batch):
        self.calls += 1
        state, about = self._step(state, batch)
        for device in self._wrong.get(self.calls, ()):
            state["w"] = flip(state["w"], device)
        return state, about


def check(mesh, wrong, **config):
    """One checked step: its result, the step function, and what was reported."""
    reports, training = [], Training(mesh, wrong)
    checker = CorruptionCheck(
        FaultConfig(check_every_steps=1, **config),
        mesh,
        shardings(mesh),
        ["apple"],
        collections.Counter(),
        lambda **said: reports.append(said),
    )
    with jax.set_mesh(mesh):
        state = fresh_state(mesh)
        result, about = checker.compute(7, training, state, jnp.float32(0.25), lambda: None)
    assert state["w"].is_deleted(), "as if it had been donated"
    expected = np.asarray(fresh_state(mesh)["w"]) * np.float32(0.5) + np.float32(0.25)
    return np.array_equal(np.asarray(result["w"]), expected), about, training, reports


def test_two_that_agree_are_believed_and_nothing_is_said(mesh):
    right, about, training, reports = check(mesh, {})
    assert right and training.calls == 2 and reports == [] and np.isfinite(about["loss"])


@pytest.mark.parametrize("call", [1, 2])
def test_one_flipped_bit_is_found_thrown_away_and_its_device_named(mesh, call):
    right, _, training, reports = check(mesh, {call: [5]})
    assert right and training.calls == 3
    (said,) = reports
    assert (said["step"], said["kept"], said["found_by"]) == (7, True, "step")
    (device,) = said["devices"]
    assert (device["device"], device["process"], device["host"]) == (5, 0, "apple")
    assert "device 5 (cpu) of process 0 on host apple" in describe(said["devices"])


def test_three_results_stop_the_run_and_name_the_machine(mesh):
    with pytest.raises(UserError, match=r"three results; device 2 \(cpu\) of process 0 on host apple, device 3"):
        check(mesh, {1: [2], 2: [3], 3: [2, 3]})


def test_too_many_steps_stop_the_run(mesh):
    with pytest.raises(UserError, match=r"1 steps have differed now; device 4 .*\n.*0 exceptions are borne"):
        check(mesh, {2: [4]}, max_corruptions=0)


def test_what_has_spread_is_looked_for_on_each_device_by_itself(mesh, monkeypatch):
    everywhere = {1: range(8)}
    _, _, _, reports = check(mesh, everywhere)
    assert (reports[0]["devices"], reports[0]["found_by"]) == ([], "nothing")
    broken = np.arange(8) == 6
    monkeypatch.setattr("pomona.train.corruption.probe", lambda mesh: broken)
    right, _, _, reports = check(mesh, everywhere)
    assert right and reports[0]["found_by"] == "probe" and [d["device"] for d in reports[0]["devices"]] == [6]


def test_sound_devices_pass_the_probe_and_a_changed_bit_does_not(mesh, monkeypatch):
    with jax.set_mesh(mesh):
        assert not checksum.probe(mesh).any()
        monkeypatch.setattr(
            checksum, "_bits", lambda x, bits=checksum._bits: bits(x) + (jax.lax.axis_index(mesh.axis_names) == 3)
        )
        assert np.flatnonzero(checksum.probe(mesh)).tolist() == [3]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_a_checksum_is_the_sum_of_the_bits_each_device_holds(mesh, dtype):
    values = jax.device_put(
        (jnp.arange(64 * 3).reshape(64, 3) - 50).astype(dtype), rules.sharding(mesh, ("model", None))
    )
    with jax.set_mesh(mesh):
        found = np.asarray(checksum.device_checksums(mesh, [values.sharding])([values]))
    shards = {shard.device.id: np.asarray(shard.data) for shard in values.addressable_shards}
    whole = {1: np.uint8, 2: np.uint16, 4: np.uint32}[values.dtype.itemsize]
    expected = [int(shards[device.id].view(whole).astype(np.uint64).sum()) % 2**32 for device in mesh.devices.flat]
    assert found.tolist() == expected and len(set(expected)) > 1

"""The mesh's shape and the table from logical to mesh axes."""

import dataclasses
import itertools

import jax
import pytest
from jax.sharding import PartitionSpec

from pomona.core.errors import UserError
from pomona.parallel import rules
from pomona.parallel.config import AXES, MeshConfig, check_divides, mesh_shape
from pomona.parallel.mesh import LAUNCHED_SIZES, build_mesh, start_processes


def test_minus_one_takes_the_devices_that_are_left():
    assert mesh_shape(MeshConfig(data=2, tensor=2), 8) == {"data": 2, "fsdp": 2, "seq": 1, "tensor": 2}


@pytest.mark.parametrize("config", [MeshConfig(data=-1), MeshConfig(tensor=3), MeshConfig(fsdp=4), MeshConfig(fsdp=0)])
def test_an_impossible_mesh_is_refused(config):
    with pytest.raises(UserError):
        mesh_shape(config, 8)


def test_axes_run_from_outermost_to_innermost():
    mesh = build_mesh(MeshConfig(data=2, fsdp=1, seq=2, tensor=2))
    assert mesh.axis_names == AXES
    assert [d.id for d in mesh.devices[0, 0, 0]] == [0, 1]  # tensor neighbours are neighbours


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX says of a device of a TPU slice with a three-dimensional torus."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    device_kind: str = "TPU v4"
    platform: str = "tpu"
    core_on_chip: int = 0
    process_index: int = 0


def slices(count, shape):
    places = itertools.product(range(count), *map(range, shape))
    return [Chip(number, tuple(coords), index) for number, (index, *coords) in enumerate(places)]


def test_only_the_outermost_axis_crosses_slices():
    mesh = build_mesh(MeshConfig(data=4, fsdp=-1, seq=2), slices(2, (4, 4, 4)))
    assert mesh.devices.shape == (4, 16, 2, 1)
    of_copy = [{chip.slice_index for chip in copy.flat} for copy in mesh.devices]
    assert of_copy == [{0}, {0}, {1}, {1}]
    assert len(set(mesh.devices.flat)) == 128
    with pytest.raises(UserError, match="data 1 on 2 slices") as caught:
        build_mesh(MeshConfig(), slices(2, (4, 4, 4)), "--stages.1.mesh")
    assert "--stages.1.mesh.data 2" in caught.value.fix


def test_an_axis_lies_on_whole_dimensions_of_the_torus_where_it_can():
    mesh = build_mesh(MeshConfig(data=4, fsdp=16), slices(1, (4, 4, 4)))
    for copy in mesh.devices:
        assert sorted(len({chip.coords[i] for chip in copy.flat}) for i in range(3)) == [1, 4, 4]


def test_a_mesh_that_fits_no_torus_is_laid_in_the_order_of_devices():
    odd = slices(1, (4, 4, 4))[:24]  # no box
    mesh = build_mesh(MeshConfig(data=3, fsdp=8), odd)
    assert list(mesh.devices.flat) == odd


def test_size_one_axes_leave_no_trace():
    mesh = build_mesh(MeshConfig(data=2, fsdp=4))
    assert rules.partition(("batch", "tokens", "heads"), mesh) == PartitionSpec(("data", "fsdp"), None, None)
    assert rules.partition(("vocab", "model"), mesh) == PartitionSpec(None, "fsdp")


def test_two_dimensions_on_one_axis_are_a_bug_of_ours():
    with pytest.raises(AssertionError), jax.set_mesh(build_mesh(MeshConfig(fsdp=2, tensor=4))):
        rules.partition(("heads", "ffn"))


def test_a_dimension_that_does_not_divide_is_named():
    with pytest.raises(UserError, match=r"'kv_heads'.*4 devices"):
        check_divides("key", (64, 2, 16), ("model", "kv_heads", None), {"fsdp": 2, "tensor": 4})


def test_incomplete_process_variables_are_named(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    with pytest.raises(UserError, match="needs all three"):
        start_processes()


@pytest.mark.parametrize(
    "environment, several",
    [
        ({}, False),
        ({"SLURM_NTASKS": "1", "OMPI_COMM_WORLD_SIZE": ""}, False),
        ({"SLURM_NTASKS": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "16"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "host-0"}, True),
    ],
)
def test_jax_looks_for_other_processes_where_a_launcher_started_several(monkeypatch, environment, several):
    for name in ("JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS", *LAUNCHED_SIZES):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda: calls.append("initialize"))
    start_processes()
    assert bool(calls) is several

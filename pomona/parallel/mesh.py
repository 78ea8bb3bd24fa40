"""The device mesh and the processes that share it."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh

from pomona.core.errors import UserError
from pomona.parallel.config import AXES, MeshConfig, mesh_shape
from pomona.parallel.placement import check_slices
from pomona.parallel.rules import sharding

MESSAGE_BYTES = 4096  # what processes tell each other is cut here
NAME_BYTES = 64  # of a host's name
LAUNCHED_SIZES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


def start_processes() -> None:
    """Joins the other processes of this job, if there are any. Call before anything touches a device.

    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` name a job explicitly; under Slurm, Open MPI,
    on a TPU pod of Kubernetes and on several TPU slices, JAX finds them itself. One process alone needs nothing.

    Raises:
        UserError: the variables are incomplete or the coordinator cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        if _launched_together(os.environ):
            jax.distributed.initialize()
        return
    try:
        count, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS is set to {address}, but the job's size or this process's index is not.",
            "a job of several processes needs all three variables, the last two as whole numbers.",
            f"JAX_COORDINATOR_ADDRESS={address} JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 pomona train ...",
        ) from error
    try:
        jax.distributed.initialize(coordinator_address=address, num_processes=count, process_id=index)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {index} of {count} could not join the job at {address}: {error}.",
            "all processes start within five minutes of each other, and process 0 listens at that address.",
            "check that every process was started with the same address and a different JAX_PROCESS_ID.",
        ) from error


def _launched_together(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows started several of us."""
    several = any(int(environment.get(name) or 1) > 1 for name in LAUNCHED_SIZES)
    pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    return several or pod or "MEGASCALE_COORDINATOR_ADDRESS" in environment


def build_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None, option: str = "--mesh") -> Mesh:
    """A mesh over `devices` (default: all) with explicit axes: a wrong layout is an error while tracing.

    Neighbours on an axis are neighbours on the torus of a TPU slice; only the outermost axis crosses slices.

    Raises:
        UserError: the configured sizes do not fit the number of devices, or an inner axis would cross slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, slices = mesh_shape(config, len(devices), option), num_slices(devices)
    check_slices(sizes, slices, option)
    shape = tuple(sizes[axis] for axis in AXES)
    try:
        placed = _placed(shape, slices, devices)
    except (NotImplementedError, ValueError, AssertionError):  # no way to lay it on this torus: correct, only slower
        placed = np.array(devices).reshape(shape)
    return Mesh(placed, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def tensor_mesh(count: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the first devices (default: of all here), which share every layer.

    Raises:
        UserError: there are not so many.
    """
    devices = jax.devices() if devices is None else devices
    if not 0 < count <= len(devices):
        raise UserError(f"{count} devices.", f"there are {len(devices)} here.", f"--tensor-parallel {len(devices)}")
    return build_mesh(MeshConfig(data=1, fsdp=1, seq=1, tensor=count), devices[:count])


def num_slices(devices: Sequence[jax.Device]) -> int:
    """How many TPU slices the devices lie on; 1 elsewhere."""
    return len({getattr(device, "slice_index", None) for device in devices if device.platform == "tpu"}) or 1


def _placed(shape: tuple[int, ...], slices: int, devices: Sequence[jax.Device]) -> np.ndarray:
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    inner, outer = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process. All processes have to call it at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def gather(numbers: Sequence[float]) -> np.ndarray:
    """Every process's numbers, float32 [processes, numbers]. All processes have to call it at the same step."""
    mine = np.array(numbers, np.float32)
    if jax.process_count() == 1:
        return mine[None]
    return np.asarray(multihost_utils.process_allgather(mine)).reshape(-1, len(mine))


def host_names() -> list[str]:
    """The name of every process's host. All processes have to call it at the same step."""
    mine = np.zeros(NAME_BYTES, np.float32)  # bytes, as numbers that `gather` carries exactly
    content = socket.gethostname().encode()[:NAME_BYTES]
    mine[: len(content)] = list(content)
    return [row.astype(np.uint8).tobytes().rstrip(b"\0").decode(errors="replace") for row in gather(mine.tolist())]


def any_text(text: str) -> str:
    """The text of the first process that has one, or an empty one. All processes have to call it at the same step."""
    if jax.process_count() == 1:
        return text
    mine = np.zeros(MESSAGE_BYTES, np.uint8)
    content = np.frombuffer(text.encode()[:MESSAGE_BYTES], np.uint8)
    mine[: len(content)] = content
    gathered = np.asarray(multihost_utils.process_allgather(mine)).reshape(-1, MESSAGE_BYTES)
    said = [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in gathered]
    return next((each for each in said if each), "")


def from_first(tree: Any) -> Any:
    """The first process's arrays, on all. All processes have to call it at the same step."""
    return tree if jax.process_count() == 1 else jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def lay_out(tree: Any, axes: Any, mesh: Mesh) -> Any:
    """Arrays that every process has whole, laid out on a mesh along the logical axes of each, which are tuples.

    Raises:
        UserError: a dimension does not divide.
    """

    def one(own_axes: tuple[str | None, ...], value: Any) -> jax.Array:
        where = sharding(mesh, own_axes)
        try:
            where.shard_shape(value.shape)
        except ValueError as error:
            raise UserError(
                f"a weight of the shape {value.shape} does not divide over the mesh along {own_axes}.",
                "a dimension is cut into equal parts; of palettes, two inputs share a byte and 16 outputs a table.",
                "fewer devices, or --mesh.data -1 --mesh.fsdp 1 --mesh.tensor 1",
            ) from error
        return jax.make_array_from_callback(value.shape, where, lambda index: value[index])

    return jax.tree.map(one, axes, jax.tree.map(np.asarray, tree), is_leaf=lambda x: isinstance(x, tuple))


@contextlib.contextmanager
def same_fate() -> Iterator[None]:
    """All processes leave the block together: a `UserError` of one of them is raised on each.

    Without it the others would wait for the one that has ended until the job's own time-out.
    """
    failure: UserError | None = None
    try:
        yield
    except UserError as error:
        failure = error
    if jax.process_count() > 1:
        half = MESSAGE_BYTES // 8  # JSON may need several bytes a character
        parts = (failure.what[:half], failure.rule[:half], failure.fix[:half]) if failure else ()
        told = any_text(json.dumps(parts) if parts else "")
        if told and failure is None:
            failure = UserError(*json.loads(told))
    if failure is not None:
        raise failure

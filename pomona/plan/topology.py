"""The devices of a TPU fleet without the fleet: libtpu describes any topology on any machine, and compiles for it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pomona.core.errors import UserError
from pomona.core.fleet import Fleet, cloud_prefix, describe_shape
from pomona.plan.collectives import Places

MEGACORE = ("v4", "v5p")  # whose two cores are one device; without it JAX would show two devices with half the memory

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # what is not compiled ahead of time stays here
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server outside of Google's cloud
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a second process that compiles is not an error
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def prepare_environment() -> None:
    """Sets what libtpu reads when it is loaded; call before JAX is imported. What the user has set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def topology_devices(fleet: Fleet) -> list[Any]:
    """The JAX devices of a fleet, to build meshes of and to compile for; nothing can run on them.

    Raises:
        UserError: the chip is no TPU, libtpu is not installed, or it does not know the topology.
    """
    if not fleet.chip.torus_dimensions:
        raise UserError(
            f"{fleet.chip.title} cannot be compiled for here.",
            "only the TPU compiler works without its chips.",
            "--chips v5p-4096, or leave --verify out",
        )
    prepare_environment()
    from jax.experimental import topologies

    name = f"{cloud_prefix(fleet.chip)}:{'x'.join(map(str, fleet.topology))}"
    options: dict[str, Any] = {"num_slices": fleet.slices} if fleet.slices > 1 else {}
    if fleet.chip.name in MEGACORE:
        options["chip_config_name"] = "megacore"
    try:
        with _quiet():
            return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:
        if _libtpu_is_missing():
            raise UserError(
                "libtpu, the TPU compiler, is not installed.",
                "--verify compiles the step for the exact chips, with the version that jax[tpu] pins.",
                "pip install 'pomona[tpu]'",
            ) from error
        raise UserError(
            f"libtpu does not know {describe_shape(fleet)}: {str(error).splitlines()[0][:200]}",
            "it compiles for the slices that Google rents.",
            "--chips v5p-4096, or one slice's torus as in v4:8x8x16",
        ) from error


def places(fleet: Fleet, devices: Sequence[Any]) -> Places:
    """Where the devices of a mesh are, in the order of the mesh."""
    rows = []
    for device in devices:
        coordinates = [*device.coords, 0, 0][:3]
        rows.append([getattr(device, "slice_index", 0) or 0, *coordinates])
    return Places(fleet, np.array(rows))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without libtpu's complaint about worker hostnames, which it writes to the descriptor itself."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(null)
        os.close(saved)


def _libtpu_is_missing() -> bool:
    import importlib.util

    return importlib.util.find_spec("libtpu") is None

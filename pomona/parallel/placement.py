"""Where a mesh comes to lie on a fleet, and so how fast each of its axes is. No JAX: plans are made without it.

Axes are laid from the innermost, which communicates most, to the outermost. On a TPU torus an axis takes whole
dimensions where their product is its size. A ring of whole dimensions is used in both directions at once; a dimension
without a wrap-around, or a part of one, is a line at half of that, and what is left of a broken dimension is shared by
as many rings as it was broken into. Several dimensions carry a collective side by side ("How to Scale Your Model",
part 3). Among GPUs an axis stays in a host of eight as long as it fits; beyond, the hosts' network cards carry it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Literal

from pomona.core.errors import UserError
from pomona.core.fleet import Fleet
from pomona.parallel.config import AXES, MeshConfig

DIE_TO_DIE = 6
"""The two devices of a 7x chip are joined six times as fast as one ICI link (Google Cloud, "TPU7x")."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Devices that work on one collective, and the bytes per second that each of them can receive in it."""

    size: int
    bytes_per_second: float
    over: Literal["links", "network"] = "links"

    def gather_seconds(self, whole_bytes: float) -> float:
        """All-gather to, or reduce-scatter of, so many bytes on each device."""
        return whole_bytes * (self.size - 1) / self.size / self.bytes_per_second if self.size > 1 else 0.0

    def sum_seconds(self, whole_bytes: float) -> float:
        """All-reduce of so many bytes on each device: a reduce-scatter and an all-gather."""
        return 2 * self.gather_seconds(whole_bytes)


@dataclasses.dataclass(frozen=True)
class Groups:
    """The collectives of a training step by what travels."""

    weights: Group  # shards of a weight, gathered along `model`
    tokens: Group  # parts of a sequence
    units: Group  # shards of heads, feed-forward units and vocabulary
    copies: Group  # copies of the model within a slice
    slices: Group  # and across slices


def check_slices(sizes: Mapping[str, int], slices: int, option: str = "--mesh") -> None:
    """Checks that only copies of the model lie on different slices.

    Raises:
        UserError: another axis would cross from slice to slice.
    """
    if sizes["data"] % slices:
        raise UserError(
            f"the mesh has data {sizes['data']} on {slices} slices.",
            "only data parallelism crosses slices, so their number divides that axis.",
            f"{option}.data {slices} {option}.fsdp -1; `pomona plan RECIPE --search` finds the best mesh.",
        )


def every_mesh(num_devices: int, slices: int) -> Iterator[MeshConfig]:
    """All meshes of so many devices whose data axis is a multiple of the slices."""
    for data in _divisors(num_devices):
        if data % slices:
            continue
        for tensor in _divisors(num_devices // data):
            for seq in _divisors(num_devices // data // tensor):
                yield MeshConfig(data=data, fsdp=num_devices // data // tensor // seq, seq=seq, tensor=tensor)


def mesh_options(sizes: Mapping[str, int], option: str = "--mesh") -> str:
    """What one types for a mesh."""
    return " ".join(f"{option}.{axis} {sizes[axis]}" for axis in AXES)


def place_mesh(fleet: Fleet, sizes: Mapping[str, int]) -> Groups:
    """The speed of every axis of a mesh with these sizes, which passed `check_slices`."""
    inner = {axis: sizes[axis] for axis in reversed(AXES)}
    inner["data"] //= fleet.slices
    lay = _lay_torus if fleet.chip.torus_dimensions else _lay_hosts
    groups = lay(fleet, inner)
    across = Group(fleet.slices, fleet.chip.network_bytes_per_second / fleet.chip.devices, "network")
    return Groups(groups["fsdp"], groups["seq"], groups["tensor"], groups["data"], across)


def _lay_torus(fleet: Fleet, inner: Mapping[str, int]) -> dict[str, Group]:
    link = fleet.chip.bytes_per_second_per_link
    dies = fleet.chip.devices  # not yet given to an axis
    # Length that is left, directions of a whole dimension, and how many rings share what is left.
    free = [(n, 2 if wraps else 1, 1) for n, wraps in zip(fleet.topology, fleet.wraps)]
    groups = {}
    for axis, size in inner.items():
        own_dies = math.gcd(size, dies)
        dies //= own_dies
        directions, free = _take(size // own_dies, free)
        # Devices of one chip that are in one group receive a shard once; otherwise they share the chip's links.
        speed = directions * link * own_dies / fleet.chip.devices
        within = DIE_TO_DIE * link if own_dies > 1 else math.inf
        groups[axis] = Group(size, min(speed, within) if size > own_dies else min(within, DIE_TO_DIE * link))
    return groups


def _take(size: int, free: list[tuple[int, int, int]]) -> tuple[float, list[tuple[int, int, int]]]:
    """Directions that an axis of this size gets out of the free dimensions, and what is free then."""
    if size == 1:
        return 0, free
    for number in range(len(free), 0, -1):
        for chosen in itertools.combinations(range(len(free)), number):
            if math.prod(free[i][0] for i in chosen) == size and all(free[i][0] > 1 for i in chosen):
                speed = sum(free[i][1] / free[i][2] for i in chosen)
                return speed, [(1, *f[1:]) if i in chosen else f for i, f in enumerate(free)]
    directions, left = 0.0, []
    for length, ways, sharing in sorted(free, reverse=True):
        part = math.gcd(size, length)
        size //= part
        whole = part == length
        if part > 1:
            directions += (ways if whole else 1) / sharing
        left.append((length // part, ways, sharing if whole else sharing * part))
    return directions, left


def _lay_hosts(fleet: Fleet, inner: Mapping[str, int]) -> dict[str, Group]:
    chip, left = fleet.chip, min(fleet.chips, fleet.chip.chips_per_host)
    groups = {}
    for axis, size in inner.items():
        local = math.gcd(size, left)
        left //= local
        network = chip.network_bytes_per_second * local
        if size == local or network >= chip.link_bytes_per_second:
            groups[axis] = Group(size, chip.link_bytes_per_second)
        else:
            groups[axis] = Group(size, network, "network")
    return groups


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]

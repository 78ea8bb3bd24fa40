"""How long a collective of a compiled program takes on the links of a TPU slice, and between slices.

The floor of an all-gather (or a reduce-scatter) of S bytes among n chips is S (1 - 1/n) bytes into every chip. A chip
takes them over the torus dimensions that its group spans: two links for a dimension that closes to a ring, one for a
line; a group that takes every k-th chip shares its links with k - 1 others. An all-reduce is both, one after the other.
Between slices each chip has its share of the hosts' network cards. Every hop adds latency.

Source: "How to Scale Your Model", part 3 (jax-ml.github.io/scaling-book): the times of collectives on a torus, the
share of the nominal link bandwidth that is reached, the time of a hop.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from pomona.core.fleet import Fleet
from pomona.plan.hlo import Instruction

LINK_EFFICIENCY = 0.9  # 45 GB/s of 50 on v4 and v5e, 90 of 100 on v5p (scaling book, part 2)
HOP_SECONDS = 1e-6
NETWORK_SECONDS = 50e-6  # a message through the data-centre network

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
TIMES_ROUND = {"all-reduce": 2}  # the others go round once


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the devices of a program are: row i is (slice, x, y, z) of the device with number i."""

    fleet: Fleet
    table: np.ndarray  # int [devices, 4]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One collective: what moves, among how many, and how long the links are busy with it."""

    kind: str
    size_bytes: int
    members: tuple[int, ...]
    """The device numbers of one group."""
    dimensions: tuple[int, ...]
    """Chips along each torus dimension of the group, those of one chip left out."""
    link_seconds: float
    network_seconds: float

    @property
    def seconds(self) -> float:
        return self.link_seconds + self.network_seconds


def transfer(instruction: Instruction, operand_bytes: int, places: Places, scatters: bool = False) -> Transfer:
    """What a collective instruction costs.

    Args:
        operand_bytes: the size of what one device puts in.
        scatters: an all-reduce of which each device keeps its own part: XLA's form of a reduce-scatter.
    """
    kind = "reduce-scatter" if scatters else next(kind for kind in KINDS if instruction.opcode.startswith(kind))
    result_bytes = instruction.result_bytes
    if instruction.opcode.endswith("-start") and result_bytes > operand_bytes:
        result_bytes -= operand_bytes  # (operands, results, ...); of an all-reduce only the results
    size = max(result_bytes, operand_bytes)
    if kind == "collective-permute":
        return _permuted(size, permuted_pairs(instruction.text), places)
    return _timed(kind, size, first_group(instruction.text, len(places.table)), places)


def rendezvous(instruction: Instruction) -> str:
    """The name by which a `send` to the hosts of other slices and its `recv` know each other."""
    found = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.text)
    return f"rendezvous {found[1]}" if found else instruction.name


def slice_transfer(send: Instruction, places: Places) -> Transfer:
    """What a `send` to the hosts of other slices costs: one chip's part of a collective among all slices."""
    found = re.search(r'_xla_megascale_transfer_type="([A-Z_]+)"', send.text)
    kind = found[1].lower().replace("_", "-") if found else "all-reduce"
    same_place = (places.table[:, 1:] == places.table[0, 1:]).all(axis=1)
    return _timed(kind, send.arrays[0].size_bytes, tuple(np.flatnonzero(same_place).tolist()), places)


def first_group(text: str, devices: int) -> tuple[int, ...]:
    """The device numbers of a collective's first group, in each of the ways that XLA writes groups."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return tuple(map(int, found[1].split(",")))
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        order = _iota(found[2], found[3])
        return tuple(order.reshape(_numbers(found[1]))[0].tolist())
    if found := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        order = _device_order(found[2] or f"[{math.prod(sizes.values())}]")
        return _along(order.reshape(tuple(sizes.values())), list(sizes), found[3])
    return tuple(range(devices))  # no groups: all devices are one


def permuted_pairs(text: str) -> list[tuple[int, int]]:
    """A permutation's pairs of source and target."""
    listed = text.split("source_target_pairs=", 1)[-1].split("}}", 1)[0] + "}"
    return [(int(source), int(target)) for source, target in re.findall(r"\{(\d+),(\d+)\}", listed)]


def _along(order: np.ndarray, names: list[str], wanted: str) -> tuple[int, ...]:
    """Device numbers along the named axes at the first place of all others; `'a':(2)4` is a part of an axis."""
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", wanted)
    first = np.ones(order.shape, bool)
    for name, place in zip(names, np.indices(order.shape)):
        length = order.shape[names.index(name)]
        for _, before, size in (part for part in parts if part[0] == name):  # a digit of the place that may differ
            weight = length // (int(before or 1) * int(size or length))
            place = place - place // weight % int(size or length) * weight
        first &= place == 0
    return tuple(order[first].tolist())


def _permuted(size: int, pairs: Sequence[tuple[int, int]], places: Places) -> Transfer:
    """A permutation takes as long as its longest way: all shift alike, so a link has as many messages as a way hops."""
    chip, fleet = places.fleet.chip, places.fleet
    wraps = (*fleet.wraps, False, False, False)
    longest: tuple[int, int, tuple[int, int]] = (0, 0, pairs[0] if pairs else (0, 0))
    for source, target in pairs:
        crosses = int(places.table[source][0] != places.table[target][0])
        hops = 0
        for axis, length in enumerate(fleet.topology):
            apart = abs(int(places.table[source][1 + axis]) - int(places.table[target][1 + axis]))
            hops += min(apart, length - apart) if wraps[axis] else apart
        longest = max(longest, (crosses, hops, (source, target)))
    crosses, hops, pair = longest
    if crosses:
        return Transfer(
            "collective-permute", size, pair, (), 0.0, size / chip.network_bytes_per_second + NETWORK_SECONDS
        )
    seconds = hops * (size / (chip.bytes_per_second_per_link * LINK_EFFICIENCY) + HOP_SECONDS)
    return Transfer("collective-permute", size, pair, (), seconds, 0.0)


def _timed(kind: str, size: int, members: Sequence[int], places: Places) -> Transfer:
    rows = places.table[list(members)]
    slices = len(np.unique(rows[:, 0]))
    inside = len(members) // slices
    box = rows[rows[:, 0] == rows[0, 0]][:, 1:]
    chip, fleet = places.fleet.chip, places.fleet
    bandwidth, hops, dimensions = 0.0, 0, []
    wraps = (*fleet.wraps, False, False, False)
    for axis, length in enumerate(fleet.topology):
        used = np.unique(box[:, axis])
        if len(used) == 1:
            continue
        stride = int(np.diff(used).min())
        links = 2 if len(used) * stride == length and wraps[axis] else 1
        bandwidth += links * chip.bytes_per_second_per_link * LINK_EFFICIENCY / stride
        hops += len(used) // 2 if links == 2 else len(used) - 1
        dimensions.append(len(used))
    rounds = TIMES_ROUND.get(kind, 1)
    link_seconds = network_seconds = 0.0
    if inside > 1 and bandwidth:
        link_seconds = rounds * (size * (1 - 1 / inside) / bandwidth + hops * HOP_SECONDS)
    if slices > 1:
        share = size / inside * (1 - 1 / slices)
        network_seconds = rounds * (share / chip.network_bytes_per_second + NETWORK_SECONDS)
    return Transfer(kind, size, tuple(members), tuple(dimensions), link_seconds, network_seconds)


def _device_order(text: str) -> np.ndarray:
    """`[32,64]T(1,0)`, or the numbers themselves."""
    found = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    return _iota(found[1], found[2]) if found else np.array(_numbers(text))


def _iota(sizes: str, order: str | None) -> np.ndarray:
    shape = _numbers(sizes)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose(_numbers(order)) if order else numbers).reshape(-1)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))

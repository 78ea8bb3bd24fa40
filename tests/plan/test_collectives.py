"""Groups of collectives beside an enumeration in NumPy, and their times beside formulas by hand.

Formulas: "How to Scale Your Model", part 3 (jax-ml.github.io/scaling-book). An all-gather of V bytes over one torus
dimension that closes to a ring takes V / W_ici, W_ici over both directions; over several at once, over their sum. There
V (n - 1) / n is rounded to V; here it is not.
"""

import itertools

import numpy as np
import pytest

from pomona.core.fleet import parse_fleet
from pomona.plan.collectives import Places, first_group, rendezvous, slice_transfer, transfer
from pomona.plan.hlo import parse

HOP, MESSAGE = 1e-6, 50e-6
LINK = {"v4": 45e9, "v5e": 45e9, "v5p": 90e9}  # one direction, as the book counts it


def places(name, slices=1):
    """A fleet whose devices are numbered in the order of their coordinates."""
    fleet = parse_fleet(name, slices)
    sizes = (slices, *fleet.topology, 1)[:4]
    return Places(fleet, np.array(list(itertools.product(*map(range, sizes)))))


def instruction(line):
    """The parsed instruction of a line."""
    program = parse(f"HloModule m\n\nENTRY %e (a: f32[]) -> f32[] {{\n  {line}\n}}\n")
    return program.computations["e"][0]


def gathered(members, where, kind="all-gather", size=64_000_000, **more):
    """The transfer among these devices."""
    line = f"%c.1 = f32[{size // 4}]{{0}} {kind}(%a), replica_groups={{{{{','.join(map(str, members))}}}}}"
    return transfer(instruction(line), 0, where, **more)


def along(where, axis, at=0, step=1):
    """The devices of a line through a place along an axis of the torus, every `step`-th of them."""
    fixed = where.table[at]
    same = [(row == fixed)[[i for i in range(4) if i != axis]].all() for row in where.table]
    return np.flatnonzero(same)[::step].tolist()


def subgroup(cube, taken):
    """The first group by brute force: devices that agree with the first place in every digit that is not taken."""
    first = [0] * cube.ndim
    found = [
        cube[i] for i in np.ndindex(cube.shape) if all(i[d] == first[d] for d in range(cube.ndim) if d not in taken)
    ]
    return {int(n) for n in found}


def test_groups_that_are_listed():
    assert first_group("all-gather(%a), replica_groups={{0,1},{2,3}}, dimensions={0}", 4) == (0, 1)
    assert first_group("replica_groups={{6,2,4,0},{7,3,5,1}}", 8) == (6, 2, 4, 0)
    assert first_group("replica_groups={{5}}", 8) == (5,)


@pytest.mark.parametrize("text", ["replica_groups={}", "", "replica_groups=[1,6]<=[6]"])
def test_without_groups_all_devices_are_one(text):
    assert first_group(f"all-reduce(%a), {text}, to_apply=%add", 6) == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("groups", "sizes", "order"),
    [((2, 4), (8,), None), ((2, 4), (4, 2), (1, 0)), ((6, 4), (2, 3, 4), (1, 2, 0)), ((12, 2), (2, 3, 4), (2, 1, 0))],
)
def test_groups_that_are_counted(groups, sizes, order):
    numbers = list(itertools.product(*map(range, sizes)))  # places in the order in which they are numbered
    permuted = order or tuple(range(len(sizes)))
    read = sorted(range(len(numbers)), key=lambda n: tuple(numbers[n][axis] for axis in permuted))
    text = f"replica_groups=[{','.join(map(str, groups))}]<=[{','.join(map(str, sizes))}]"
    text += f"T({','.join(map(str, order))})" if order else ""
    assert first_group(text + ", dimensions={0}", len(numbers)) == tuple(read[: groups[1]])


@pytest.mark.parametrize(
    ("mesh", "devices", "axes", "shape", "order", "taken"),
    [
        ("'a'=2,'b'=4", "", "'b'", (2, 4), (0, 1), {1}),
        ("'a'=2,'b'=4", "", "'a'", (2, 4), (0, 1), {0}),
        ("'a'=2,'b'=4", "", "'a','b'", (2, 4), (0, 1), {0, 1}),
        ("'a'=64,'b'=32", "[32,64]T(1,0)", "'a'", (32, 64), (1, 0), {0}),
        ("'a'=64,'b'=32", "[32,64]T(1,0)", "'b'", (32, 64), (1, 0), {1}),
        ("'a'=4,'b'=2,'c'=3", "[2,3,4]T(2,0,1)", "'a','c'", (2, 3, 4), (2, 0, 1), {0, 2}),
    ],
)
def test_groups_along_axes_of_a_mesh(mesh, devices, axes, shape, order, taken):
    cube = np.arange(np.prod(shape)).reshape(shape).transpose(order)
    text = f"replica_groups=mesh[{mesh}]" + (f", device_ids=({devices})" if devices else "") + f" {{{axes}}}, x={{0}}"
    found = first_group(text, cube.size)
    assert set(found) == subgroup(cube, taken) and len(found) == len(set(found))


@pytest.mark.parametrize(
    ("axes", "digits", "taken"),
    [
        ("'a':(2)4", (2, 4, 2, 3), {1}),
        ("'a':(1)2", (2, 8, 3), {0}),
        ("'a':(8)2", (8, 2, 3), {1}),
        ("'a':(2)4,'b'", (2, 4, 2, 3), {1, 3}),
        ("'a':(1)2,'a':(8)2", (2, 4, 2, 3), {0, 2}),
    ],
)
def test_groups_along_a_part_of_an_axis(axes, digits, taken):
    cube = np.arange(48).reshape(digits)  # 'a' of 16 is several digits, the major one first
    assert set(first_group(f"replica_groups=mesh['a'=16,'b'=3] {{{axes}}}", 48)) == subgroup(cube, taken)


def test_a_mesh_of_devices_in_an_order_of_its_own():
    order = [5, 3, 1, 0, 2, 4]
    text = f"replica_groups=mesh['a'=2,'b'=3], device_ids=({','.join(map(str, order))}) {{'b'}}, dimensions={{0}}"
    assert first_group(text, 6) == (5, 3, 1)


@pytest.mark.parametrize("name", ["v4:4x4x8", "v5p:4x4x8"])
def test_a_dimension_that_closes_to_a_ring_has_two_directions(name):
    where, link = places(name), LINK[name[:3].rstrip(":")]
    moved = gathered(along(where, 3), where)
    assert moved.link_seconds == pytest.approx(64e6 * 7 / 8 / (2 * link) + 4 * HOP)
    assert moved.dimensions == (8,) and moved.network_seconds == 0
    twice = gathered(along(where, 3), where, "all-reduce")
    assert twice.seconds == pytest.approx(2 * moved.seconds)
    assert gathered(along(where, 3), where, "all-reduce", scatters=True).seconds == pytest.approx(moved.seconds)


@pytest.mark.parametrize(("name", "axis", "length"), [("v5e:4x8", 2, 8), ("v5p:2x2x4", 3, 4), ("v4:2x2x1", 1, 2)])
def test_a_line_has_one_direction_and_more_hops(name, axis, length):
    where = places(name)
    moved = gathered(along(where, axis), where)
    link = LINK[where.fleet.chip.name]
    assert moved.link_seconds == pytest.approx(64e6 * (length - 1) / length / link + (length - 1) * HOP)


def test_a_whole_v5e_pod_closes_to_rings():
    where = places("v5e:16x16")
    assert gathered(along(where, 1), where).link_seconds == pytest.approx(64e6 * 15 / 16 / 90e9 + 8 * HOP)
    assert gathered(range(256), where).link_seconds == pytest.approx(64e6 * 255 / 256 / 180e9 + 16 * HOP)


def test_several_dimensions_are_taken_at_once():
    where = places("v4:4x4x8")
    plane = [n for n, row in enumerate(where.table) if row[1] == 0]
    moved = gathered(plane, where)
    assert moved.dimensions == (4, 8)
    assert moved.link_seconds == pytest.approx(64e6 * 31 / 32 / (4 * 45e9) + (2 + 4) * HOP)
    assert gathered(range(128), where).link_seconds == pytest.approx(64e6 * 127 / 128 / (6 * 45e9) + 8 * HOP)


def test_every_second_chip_of_a_ring_shares_its_links():
    where = places("v5p:4x4x8")
    moved = gathered(along(where, 3, step=2), where)
    assert moved.link_seconds == pytest.approx(64e6 * 3 / 4 / (2 * 90e9 / 2) + 2 * HOP)
    half = along(where, 3)[:4]  # four neighbours of a ring of eight are a line
    assert gathered(half, where).link_seconds == pytest.approx(64e6 * 3 / 4 / 90e9 + 3 * HOP)


@pytest.mark.parametrize("kind", ["all-gather", "all-reduce"])
def test_between_slices_each_chip_sends_its_part_over_the_network(kind):
    where = places("v5p:4x4x4", 4)
    alone = [n for n, row in enumerate(where.table) if not row[1:].any()]
    times = {"all-gather": 1, "all-reduce": 2}[kind]
    moved = gathered(alone, where, kind)
    assert moved.network_seconds == pytest.approx(times * (64e6 * 3 / 4 / 6.25e9 + MESSAGE))
    assert moved.link_seconds == 0
    whole = gathered(range(256), where, kind)
    assert whole.network_seconds == pytest.approx(times * (64e6 / 64 * 3 / 4 / 6.25e9 + MESSAGE))
    assert whole.link_seconds == pytest.approx(times * (64e6 * 63 / 64 / (6 * 90e9) + 6 * HOP))


def test_a_send_to_other_slices_is_a_collective_of_one_chip_in_each():
    where = places("v4:4x4x4", 8)
    line = "%send.25 = (bf16[224,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%b, %t), frontend_attributes={"
    line += '_xla_host_transfer_rendezvous="all-reduce.131_0",_xla_megascale_transfer_type='
    for kind, times in (("all-reduce", 2), ("all-gather", 1), ("reduce-scatter", 1)):
        send = instruction(line + '"' + kind.upper().replace("-", "_") + '"}')
        moved = slice_transfer(send, where)
        assert (moved.kind, moved.members) == (kind, tuple(range(0, 512, 64)))
        assert moved.seconds == pytest.approx(times * (2 * 224 * 8 * 128 * 7 / 8 / 6.25e9 + MESSAGE))
        assert rendezvous(send) == "rendezvous all-reduce.131_0"


def permuted(pairs, where):
    text = ",".join(f"{{{source},{target}}}" for source, target in pairs)
    return transfer(
        instruction(f"%p.1 = f32[1000]{{0}} collective-permute(%a), source_target_pairs={{{text}}}"), 0, where
    )


def test_a_permutation_is_as_slow_as_its_longest_way():
    ring, line = places("v5p:4x4x8"), places("v5p:2x2x4")
    shift = [(n, (n + 1) % 8) for n in range(8)]
    one = 4000 / 90e9 + HOP
    assert permuted(shift, ring).seconds == pytest.approx(one), "the last is the first's neighbour"
    assert permuted([(n, (n + 3) % 8) for n in range(8)], ring).seconds == pytest.approx(3 * one)
    moved = permuted([(0, 1), (1, 2), (2, 3), (3, 0)], line)
    assert (moved.seconds, moved.members) == (pytest.approx(3 * one), (3, 0))
    assert permuted([(0, 0)], line).seconds == 0
    slices = places("v5p:2x2x1", 2)
    assert permuted([(0, 1), (0, 4)], slices).seconds == pytest.approx(4000 / 6.25e9 + MESSAGE)


@pytest.mark.parametrize(
    ("line", "operand_bytes", "size"),
    [
        ("%c = f32[1000]{0} all-gather(%a)", 500, 4000),
        ("%c = f32[125]{0} reduce-scatter(%a)", 4000, 4000),
        ("%c = (f32[125]{0}, f32[1000]{0}) all-gather-start(%a)", 500, 4000),
        ("%c = ((f32[125]{0}, f32[25]{0}), (f32[1000]{0}, f32[200]{0})) all-gather-start(%a, %b)", 600, 4800),
        ("%c = (f32[1000]{0}, f32[200]{0}) all-reduce-start(%a, %b)", 4800, 4800),
        ("%c = (f32[1000]{0}, f32[200]{0}) all-reduce(%a, %b)", 4800, 4800),
    ],
)
def test_the_whole_of_what_is_gathered_or_added_counts(line, operand_bytes, size):
    where = places("v5p:4x4x8")
    moved = transfer(instruction(f"{line}, replica_groups={{{{0,1,2,3,4,5,6,7}}}}"), operand_bytes, where)
    assert moved.size_bytes == size

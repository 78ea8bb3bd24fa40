"""Fleets by the clouds' names: how they count, which shapes are sold, and what is typed instead of a wrong one."""

import re

import pytest

from pomona.core.chips import CHIPS
from pomona.core.errors import UserError
from pomona.core.fleet import cloud_name, describe, fleet_of, parse_fleet, standard_topology


@pytest.mark.parametrize(
    ("text", "slices", "chips", "topology", "devices", "hosts"),
    [
        ("v5p-4096", 1, 2048, (8, 16, 16), 2048, 512),  # 4096 TensorCores; 512 hosts in Google's table
        ("v5p-12288", 1, 6144, (16, 16, 24), 6144, 1536),
        ("v5p-512", 1, 256, (4, 8, 8), 256, 64),
        ("v5p-8", 1, 4, (2, 2, 1), 4, 1),
        ("v4-16384", 8, 8192, (8, 8, 16), 8192, 2048),
        ("v4:8x8x16", 8, 8192, (8, 8, 16), 8192, 2048),
        ("v4:16x8x8", 1, 1024, (8, 8, 16), 1024, 256),
        ("v5litepod-256", 1, 256, (16, 16), 256, 32),
        ("v5e-32", 1, 32, (4, 8), 32, 4),
        ("V6E-512", 2, 512, (16, 16), 512, 64),
        ("tpu7x-128", 1, 64, (4, 4, 4), 128, 16),  # two devices to a chip
        ("h100-256", 1, 256, (256,), 256, 32),
        ("a100-80gb-8", 1, 8, (8,), 8, 1),
        ("b200-4", 1, 4, (4,), 4, 1),
    ],
)
def test_names_count_as_the_clouds_do(text, slices, chips, topology, devices, hosts):
    fleet = parse_fleet(text, slices)
    assert (fleet.chips, fleet.topology, fleet.devices, fleet.hosts) == (chips, topology, devices, hosts)
    assert fleet.chips_per_slice * slices == chips
    assert parse_fleet(cloud_name(fleet), slices) == fleet


def test_the_answer_says_how_it_counts():
    assert describe(parse_fleet("v5p-4096")) == "v5p-4096 = 4096 TensorCores = 2048 chips, one slice of 8x16x16"
    assert describe(parse_fleet("v4-16384", 8)) == "v4-16384 = 16384 TensorCores = 8192 chips, 8 slices of 8x8x16"
    assert describe(parse_fleet("v6e-256")) == "v6e-256 = 256 chips, one slice of 16x16"
    assert describe(parse_fleet("h100-16")) == "h100-16 = 16 GPUs, 2 hosts of 8 by NVLink"


def test_rings_close_where_the_documentation_says():
    assert parse_fleet("v4:4x4x4").wraps == (True, True, True)
    assert parse_fleet("v5p:2x4x4").wraps == (False, False, False)
    assert parse_fleet("v5e-128").wraps == (False, True)
    assert parse_fleet("v6e-256").wraps == (True, True)


@pytest.mark.parametrize("chips", [64, 128, 192, 512, 768, 1344, 1536, 3072, 4096])
def test_the_standard_shape_is_the_most_compact_of_whole_cubes(chips):
    shapes = [
        (a, b, chips // (a * b))
        for a in range(4, chips, 4)
        for b in range(a, chips, 4)
        if chips % (a * b) == 0 and chips // (a * b) % 4 == 0 and chips // (a * b) >= b
    ]
    assert standard_topology(CHIPS["v5p"], chips) == min(shapes, key=sum)


def test_chips_of_another_maker_in_as_few_slices_as_can_be():
    assert fleet_of(CHIPS["v5e"], 2048).slices == 8
    assert fleet_of(CHIPS["v4"], 8192).slices == 2
    assert fleet_of(CHIPS["7x"], 8192).slices == 1
    assert fleet_of(CHIPS["h100"], 8192).slices == 1


@pytest.mark.parametrize(
    ("text", "slices", "problem"),
    [
        ("v5q-8", 1, "no chip 'v5q'"),
        ("", 1, "no chip ''"),
        ("v5p-", 1, "no chip 'v5p-'"),
        ("h100", 1, "one chip's name"),
        ("v5p-7", 1, "does not divide"),
        ("v5p-0", 1, "does not divide"),
        ("v5p-4096", 3, "does not divide into 3 slices"),
        ("v5p-4096", 0, "0 slices"),
        ("v5p:3x4x5", 1, "3x4x5 is no slice"),
        ("v5p:0x4x4", 1, "0x4x4 is no slice"),
        ("v5e:16x32", 1, "16x32 is no slice"),
        ("v5e:4x4x4", 1, "4x4x4 is no slice"),
        ("v4-16384", 1, "8192 Google TPU v4 chips are no slice"),
        ("v6e-100", 1, "are no slice"),
        ("v5p-9999998", 1, "are no slice"),
        ("h100-100", 1, "are no cluster"),
        ("h100-16", 2, "2 slices of NVIDIA H100"),
    ],
)
def test_what_is_typed_instead_works(text, slices, problem):
    with pytest.raises(UserError) as caught:
        parse_fleet(text, slices)
    assert problem in caught.value.what
    advice = re.search(r"--chips ([\w:-]+)(?: --slices (\d+))?", caught.value.fix)
    if problem != "0 slices":
        assert parse_fleet(advice[1], int(advice[2] or 1)).chips > 0

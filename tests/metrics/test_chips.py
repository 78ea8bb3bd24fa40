"""The chips table: names as JAX gives them, figures that hang together."""

import pytest

from pomona.core.chips import CHIPS, chip_for_device_kind


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "7x"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_devices_are_recognized_by_their_whole_name(device_kind, name):
    chip = chip_for_device_kind(device_kind)
    assert chip is not None and chip.name == name


@pytest.mark.parametrize(
    "device_kind",
    ["cpu", "", "TPU v4 lite", "TPU v9", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA A100", "H200"],
)
def test_an_unknown_chip_is_not_guessed(device_kind):
    assert chip_for_device_kind(device_kind) is None


def test_no_two_chips_share_a_device_name():
    kinds = [kind for chip in CHIPS.values() for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))


def test_figures_are_in_their_units():
    # A chip between 40 FLOP per byte (a CPU) and 1000 has no figure that is wrong by a factor of a thousand.
    for chip in CHIPS.values():
        assert 40 < chip.flops_per_second / chip.memory_bytes_per_second < 1000
        assert 10 < chip.memory_bytes / 1e9 < 300
        assert 3 < chip.memory_bytes_per_second / chip.link_bytes_per_second < 15
    assert CHIPS["7x"].devices == 2


def test_links_are_what_the_makers_sum_up():
    # GB/s in both directions, as the documentation and the data sheets give them.
    both_ways = {
        "v4": 600,
        "v5e": 400,
        "v5p": 1200,
        "v6e": 800,
        "7x": 1200,
        "a100-80gb": 600,
        "h100": 900,
        "b200": 1800,
    }
    for name, total in both_ways.items():
        assert CHIPS[name].link_bytes_per_second * 2 == total * 1e9
    for chip in CHIPS.values():
        assert chip.torus_dimensions in (0, chip.links // 2)
        assert chip.network_bytes_per_second * 3 < chip.link_bytes_per_second


def test_the_clock_gives_the_peak():
    units, multipliers = 4, 128 * 128
    for name in ("v4", "v5e", "v5p"):
        chip = CHIPS[name]
        assert 2 * chip.tensor_cores * units * multipliers * chip.clock_hz == pytest.approx(
            chip.flops_per_second, rel=3e-3
        )

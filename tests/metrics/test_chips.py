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

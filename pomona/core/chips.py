"""Accelerators by the figures their vendors publish: dense bfloat16 FLOP/s, memory, memory bandwidth.

Sources: Google Cloud's TPU documentation (v4, v5e, v5p, v6e, TPU7x system architecture pages) and NVIDIA's data
sheets (A100 80 GB SXM, H100 SXM, H200 SXM, B200), dense figures without sparsity.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip as it is sold and counted: a TPU chip (whatever its number of cores) or one GPU."""

    name: str
    flops_per_second: float  # dense bfloat16
    memory_bytes: float
    memory_bytes_per_second: float
    devices: int = 1  # how many JAX devices one chip shows


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * 2**30, 1.2e12),
        Chip("v5e", 197e12, 16 * 2**30, 8.19e11),
        Chip("v5p", 459e12, 95 * 2**30, 2.765e12),
        Chip("v6e", 918e12, 32 * 2**30, 1.64e12),
        Chip("7x", 2307e12, 192 * 2**30, 7.37e12, devices=2),
        Chip("a100", 312e12, 80e9, 2.039e12),
        Chip("h100", 989e12, 80e9, 3.35e12),
        Chip("h200", 989e12, 141e9, 4.8e12),
        Chip("b200", 2250e12, 192e9, 8e12),
    )
}

DEVICE_KINDS = (
    ("TPU v4", "v4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5e", "v5e"),
    ("TPU v5p", "v5p"),
    ("TPU v5", "v5p"),
    ("TPU v6 lite", "v6e"),
    ("TPU v6e", "v6e"),
    ("TPU7x", "7x"),
    ("TPU v7x", "7x"),
    ("NVIDIA A100", "a100"),
    ("NVIDIA H100", "h100"),
    ("NVIDIA H200", "h200"),
    ("NVIDIA B200", "b200"),
)
"""The beginnings of JAX's `device_kind`, the longer before the shorter."""


def chip_of_device(device_kind: str) -> Chip | None:
    """The chip behind JAX's name of a device; None where it is unknown, since a peak is never guessed."""
    for beginning, name in DEVICE_KINDS:
        if device_kind.startswith(beginning) and device_kind != "TPU v4 lite":
            return CHIPS[name]
    return None

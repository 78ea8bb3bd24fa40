"""The accelerators Pomona knows, by the figures their makers publish. Nothing is guessed: an unknown chip is
None.

Sources, read in 2026:
    TPU     Google Cloud's TPU documentation, the page of each version. Links: half of the two-directional
            bandwidth given there; for v4, six links of 50 GB/s (Jouppi et al., "TPU v4: An Optically
            Reconfigurable Supercomputer for Machine Learning", ISCA 2023).
    NVIDIA  the data sheets of the A100, H100 and H200 Tensor Core GPUs (SXM modules) and of the DGX B200 (an
            eighth of the system). Dense figures, half of those quoted with sparsity; NVLink in one direction.
    Device names are those of JAX 0.10 for TPUs and of the CUDA driver for GPUs.
"""

import dataclasses

GB, GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip as it is sold and counted: a TPU chip, whatever its number of cores, or one GPU."""

    name: str
    flops_per_second: float  # dense bfloat16
    memory_bytes: int
    memory_bytes_per_second: float
    link_bytes_per_second: float  # what it can send at once over all its ICI or NVLink links
    device_kinds: tuple[str, ...]  # what JAX calls it: `jax.Device.device_kind`
    devices: int = 1  # how many JAX devices one chip shows; v4 and v5p join their two cores into one


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * GIB, 1.2e12, 300e9, ("TPU v4",)),
        Chip("v5e", 197e12, 16 * GB, 819e9, 200e9, ("TPU v5 lite", "TPU v5e")),
        Chip("v5p", 459e12, 95 * GIB, 2.765e12, 600e9, ("TPU v5", "TPU v5p")),
        Chip("v6e", 918e12, 32 * GB, 1.638e12, 400e9, ("TPU v6 lite", "TPU v6e")),
        Chip("7x", 2307e12, 192 * GIB, 7.38e12, 600e9, ("TPU7x",), devices=2),
        Chip("a100-40gb", 312e12, 40 * GB, 1.555e12, 300e9, ("NVIDIA A100-SXM4-40GB",)),
        Chip("a100-80gb", 312e12, 80 * GB, 2.039e12, 300e9, ("NVIDIA A100-SXM4-80GB",)),
        Chip("h100", 989e12, 80 * GB, 3.35e12, 450e9, ("NVIDIA H100 80GB HBM3",)),
        Chip("h200", 989e12, 141 * GB, 4.8e12, 450e9, ("NVIDIA H200",)),
        Chip("b200", 2250e12, 180 * GB, 8e12, 900e9, ("NVIDIA B200",)),
    )
}


def chip_for_device_kind(device_kind: str) -> Chip | None:
    """The chip behind JAX's name of a device, or None.

    Only whole names count: "NVIDIA H100 PCIe" and "NVIDIA H200 NVL" are slower than what they begin like.
    """
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)

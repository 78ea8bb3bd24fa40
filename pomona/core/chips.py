"""The accelerators Pomona knows, with their makers' published figures. No figure is guessed: an unknown chip
is None.

Sources, read in 2025 and 2026:
    TPU     Google Cloud TPU documentation, the page of each version ("TPU v5p", "TPU v6e", "TPU7x
    (Ironwood)", ...);
            v4's links from Jouppi et al., "TPU v4: An Optically Reconfigurable Supercomputer" (ISCA 2023),
            table 4.
    NVIDIA  the data sheets "NVIDIA A100 Tensor Core GPU", "NVIDIA H100 Tensor Core GPU", "NVIDIA H200 Tensor
    Core GPU",
            "NVIDIA DGX B200" (an eighth of the system). SXM modules; dense figures, half of those quoted with
            sparsity.
    The names JAX gives devices: `jax/_src/pallas/mosaic/tpu_info.py` in JAX 0.10; for GPUs, the CUDA driver's
    name.
"""

import dataclasses
from typing import Literal

GB = 10**9
GIB = 2**30
TERA = 10**12


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip."""

    name: str
    vendor: Literal["Google", "NVIDIA"]
    peak_flops_per_second: float
    """Dense matrix products in bfloat16, summed in float32."""
    memory_bytes: int
    memory_bytes_per_second: float
    interconnect_bytes_per_second: float
    """What the chip can send at once over all its links to its own kind: ICI or NVLink, one direction."""
    interconnect: Literal["2D torus", "3D torus", "NVLink"]
    device_kinds: tuple[str, ...]
    """What JAX calls it: `jax.Device.device_kind`."""
    devices_per_chip: int = 1
    """JAX devices that make up one chip. v4 and v5p join their two cores into one device; 7x shows both."""


CHIPS = (
    Chip("TPU v4", "Google", 275 * TERA, 32 * GIB, 1200 * GB, 300 * GB, "3D torus", ("TPU v4",)),
    Chip(
        "TPU v5e", "Google", 197 * TERA, 16 * GB, 819 * GB, 200 * GB, "2D torus", ("TPU v5 lite", "TPU v5e")
    ),
    Chip("TPU v5p", "Google", 459 * TERA, 95 * GIB, 2765 * GB, 600 * GB, "3D torus", ("TPU v5", "TPU v5p")),
    Chip(
        "TPU v6e", "Google", 918 * TERA, 32 * GB, 1638 * GB, 400 * GB, "2D torus", ("TPU v6 lite", "TPU v6e")
    ),
    Chip("TPU 7x", "Google", 2307 * TERA, 192 * GIB, 7380 * GB, 600 * GB, "3D torus", ("TPU7x",), 2),
    Chip(
        "A100 40GB", "NVIDIA", 312 * TERA, 40 * GB, 1555 * GB, 300 * GB, "NVLink", ("NVIDIA A100-SXM4-40GB",)
    ),
    Chip(
        "A100 80GB", "NVIDIA", 312 * TERA, 80 * GB, 2039 * GB, 300 * GB, "NVLink", ("NVIDIA A100-SXM4-80GB",)
    ),
    Chip("H100", "NVIDIA", 989.5 * TERA, 80 * GB, 3350 * GB, 450 * GB, "NVLink", ("NVIDIA H100 80GB HBM3",)),
    Chip("H200", "NVIDIA", 989.5 * TERA, 141 * GB, 4800 * GB, 450 * GB, "NVLink", ("NVIDIA H200",)),
    Chip("B200", "NVIDIA", 2250 * TERA, 180 * GB, 8000 * GB, 900 * GB, "NVLink", ("NVIDIA B200",)),
)


def chip_for_device_kind(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, or None. Only whole names count: a PCIe H100 is slower than an H100."""
    return next((chip for chip in CHIPS if device_kind in chip.device_kinds), None)

"""The accelerators Pomona knows, by the figures their makers publish. Nothing is guessed: what is not public is None.

Sources, read in 2026:
    TPU      Google Cloud's TPU documentation, the page of each version (docs.cloud.google.com/tpu/docs/v4, v5e, v5p,
             v6e, tpu7x): peak, memory, TensorCores, slice sizes, DCN. Links: half of the two-directional bandwidth
             given there over the number of ports; for v4, six links of 50 GB/s (Jouppi et al., "TPU v4: An Optically
             Reconfigurable Supercomputer for Machine Learning", ISCA 2023). "How to Scale Your Model"
             (jax-ml.github.io/scaling-book, part 2) counts a tenth less per link, as measured: 45 and 90 GB/s.
             DCN: 25, 50, 100 and 100 Gb/s a chip on v5e (two 100 Gb/s cards on eight chips), v5p, v6e, 7x; for v4,
             25 GB/s a host (scaling book, part 2).
    Clock    peak / (2 FLOP x multipliers), with four 128 x 128 matrix units in each TensorCore: 1.05, 1.50 and 1.75
             GHz on v4, v5e and v5p. Google's pages disagree on v6e's matrix units and do not give 7x's.
    NVIDIA   the data sheets of the A100, H100 and H200 Tensor Core GPUs (SXM modules) and of the DGX B200 (an
             eighth of the system). Dense figures, half of those quoted with sparsity; NVLink in one direction.
             Network: one card a GPU, as in the DGX systems: 200 Gb/s on the A100, 400 Gb/s later.
    Power    the module's TDP of those data sheets; for v4 the measured maximum (its mean is 170 W). Chips alone:
             hosts, network and cooling come on top.
    Price    on demand, without commitments, USD per chip and hour. TPU: Google's price list, as SkyPilot's catalogue
             records it (github.com/skypilot-org/skypilot-catalog, v8/gcp). NVIDIA: an eighth of Amazon EC2's
             p4d.24xlarge, p4de.24xlarge, p5.48xlarge, p5en.48xlarge and p6-b200.48xlarge, price list of September
             2026. No list price of 7x is public. Your own price is --price.
    Device names are those of JAX 0.10 for TPUs and of the CUDA driver for GPUs.
"""

import dataclasses

GB, GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class Price:
    """What a cloud asks for one chip and hour, on demand."""

    usd_per_chip_hour: float
    region: str
    read: str  # year and month of the price list


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip as it is sold and counted: a TPU chip, whatever its number of cores, or one GPU."""

    name: str
    title: str  # with its vendor
    flops_per_second: float  # dense bfloat16
    memory_bytes: int
    memory_bytes_per_second: float
    links: int  # ICI ports or NVLinks
    bytes_per_second_per_link: float  # in one direction
    torus_dimensions: int  # of the ICI; 0 where a switch joins all to all
    largest_slice_chips: int  # joined by ICI or NVLink at most
    chips_per_host: int
    network_bytes_per_second: float  # one chip's share of the data-centre network, in one direction
    source: str  # of the figures, in short; the list above says more
    device_kinds: tuple[str, ...]  # what JAX calls it: `jax.Device.device_kind`
    tensor_cores: int = 1  # as the cloud counts them in names like v5p-4096; GPUs are counted whole
    devices: int = 1  # how many JAX devices one chip shows; v4 and v5p join their two cores into one
    clock_hz: float | None = None  # of the TensorCore
    power_watts: float | None = None  # the most that the chip draws
    price: Price | None = None

    @property
    def link_bytes_per_second(self) -> float:
        """What it can send at once over all its ICI or NVLink links."""
        return self.links * self.bytes_per_second_per_link


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            title="Google TPU v4",
            flops_per_second=275e12,
            memory_bytes=32 * GIB,
            memory_bytes_per_second=1.2e12,
            links=6,
            bytes_per_second_per_link=50e9,
            torus_dimensions=3,
            largest_slice_chips=4096,
            chips_per_host=4,
            network_bytes_per_second=6.25e9,
            source="docs.cloud.google.com/tpu/docs/v4; links: Jouppi et al., ISCA 2023",
            device_kinds=("TPU v4",),
            tensor_cores=2,
            clock_hz=1.05e9,
            power_watts=192,
            price=Price(3.22, "us-central2", "2026"),
        ),
        Chip(
            name="v5e",
            title="Google TPU v5e",
            flops_per_second=197e12,
            memory_bytes=16 * GB,
            memory_bytes_per_second=819e9,
            links=4,
            bytes_per_second_per_link=50e9,
            torus_dimensions=2,
            largest_slice_chips=256,
            chips_per_host=8,
            network_bytes_per_second=3.125e9,
            source="docs.cloud.google.com/tpu/docs/v5e",
            device_kinds=("TPU v5 lite", "TPU v5e"),
            clock_hz=1.5e9,
            price=Price(1.20, "us-central1", "2026"),
        ),
        Chip(
            name="v5p",
            title="Google TPU v5p",
            flops_per_second=459e12,
            memory_bytes=95 * GIB,
            memory_bytes_per_second=2.765e12,
            links=6,
            bytes_per_second_per_link=100e9,
            torus_dimensions=3,
            largest_slice_chips=6144,
            chips_per_host=4,
            network_bytes_per_second=6.25e9,
            source="docs.cloud.google.com/tpu/docs/v5p",
            device_kinds=("TPU v5", "TPU v5p"),
            tensor_cores=2,
            clock_hz=1.75e9,
            price=Price(4.20, "us-east5", "2026"),
        ),
        Chip(
            name="v6e",
            title="Google TPU v6e",
            flops_per_second=918e12,
            memory_bytes=32 * GB,
            memory_bytes_per_second=1.638e12,
            links=4,
            bytes_per_second_per_link=100e9,
            torus_dimensions=2,
            largest_slice_chips=256,
            chips_per_host=8,
            network_bytes_per_second=12.5e9,
            source="docs.cloud.google.com/tpu/docs/v6e",
            device_kinds=("TPU v6 lite", "TPU v6e"),
            price=Price(2.70, "us-central1", "2026"),
        ),
        Chip(
            name="7x",
            title="Google TPU7x",
            flops_per_second=2307e12,
            memory_bytes=192 * GIB,
            memory_bytes_per_second=7.38e12,
            links=6,
            bytes_per_second_per_link=100e9,
            torus_dimensions=3,
            largest_slice_chips=9216,
            chips_per_host=4,
            network_bytes_per_second=12.5e9,
            source="docs.cloud.google.com/tpu/docs/tpu7x",
            device_kinds=("TPU7x",),
            tensor_cores=2,
            devices=2,
        ),
        Chip(
            name="a100-40gb",
            title="NVIDIA A100 40GB",
            flops_per_second=312e12,
            memory_bytes=40 * GB,
            memory_bytes_per_second=1.555e12,
            links=12,
            bytes_per_second_per_link=25e9,
            torus_dimensions=0,
            largest_slice_chips=8,
            chips_per_host=8,
            network_bytes_per_second=25e9,
            source="NVIDIA A100 data sheet; network: DGX A100",
            device_kinds=("NVIDIA A100-SXM4-40GB",),
            power_watts=400,
            price=Price(2.74, "us-east-1", "2026-09"),
        ),
        Chip(
            name="a100-80gb",
            title="NVIDIA A100 80GB",
            flops_per_second=312e12,
            memory_bytes=80 * GB,
            memory_bytes_per_second=2.039e12,
            links=12,
            bytes_per_second_per_link=25e9,
            torus_dimensions=0,
            largest_slice_chips=8,
            chips_per_host=8,
            network_bytes_per_second=25e9,
            source="NVIDIA A100 data sheet; network: DGX A100",
            device_kinds=("NVIDIA A100-SXM4-80GB",),
            power_watts=400,
            price=Price(3.43, "us-east-1", "2026-09"),
        ),
        Chip(
            name="h100",
            title="NVIDIA H100",
            flops_per_second=989e12,
            memory_bytes=80 * GB,
            memory_bytes_per_second=3.35e12,
            links=18,
            bytes_per_second_per_link=25e9,
            torus_dimensions=0,
            largest_slice_chips=8,
            chips_per_host=8,
            network_bytes_per_second=50e9,
            source="NVIDIA H100 data sheet; network: DGX H100",
            device_kinds=("NVIDIA H100 80GB HBM3",),
            power_watts=700,
            price=Price(6.88, "us-east-1", "2026-09"),
        ),
        Chip(
            name="h200",
            title="NVIDIA H200",
            flops_per_second=989e12,
            memory_bytes=141 * GB,
            memory_bytes_per_second=4.8e12,
            links=18,
            bytes_per_second_per_link=25e9,
            torus_dimensions=0,
            largest_slice_chips=8,
            chips_per_host=8,
            network_bytes_per_second=50e9,
            source="NVIDIA H200 data sheet; network: DGX H200",
            device_kinds=("NVIDIA H200",),
            power_watts=700,
            price=Price(7.91, "us-east-1", "2026-09"),
        ),
        Chip(
            name="b200",
            title="NVIDIA B200",
            flops_per_second=2250e12,
            memory_bytes=180 * GB,
            memory_bytes_per_second=8e12,
            links=18,
            bytes_per_second_per_link=50e9,
            torus_dimensions=0,
            largest_slice_chips=8,
            chips_per_host=8,
            network_bytes_per_second=50e9,
            source="NVIDIA DGX B200 data sheet",
            device_kinds=("NVIDIA B200",),
            power_watts=1000,
            price=Price(14.24, "us-east-1", "2026-09"),
        ),
    )
}


def chip_for_device_kind(device_kind: str) -> Chip | None:
    """The chip behind JAX's name of a device, or None.

    Only whole names count: "NVIDIA H100 PCIe" and "NVIDIA H200 NVL" are slower than what they begin like.
    """
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)


def figures(chip: Chip) -> str:
    """A chip's figures in one line."""
    links = "ICI" if chip.torus_dimensions else "NVLink"
    parts = [
        f"{chip.flops_per_second / 1e12:,.0f} TFLOP/s",
        f"{chip.memory_bytes / GIB:.3g} GiB at {chip.memory_bytes_per_second / 1e12:.3g} TB/s",
        f"{links} {chip.link_bytes_per_second / 1e9:.0f} GB/s",
        f"network {chip.network_bytes_per_second / 1e9:.3g} GB/s",
        f"{chip.power_watts:.0f} W" if chip.power_watts else "power not public",
        f"${chip.price.usd_per_chip_hour:.2f} an hour ({chip.price.region}, {chip.price.read})"
        if chip.price
        else "no public price",
    ]
    return ", ".join(parts)

"""What a stage costs on a mesh: memory, time, money, energy. No JAX."""

import dataclasses
from typing import Any

from pomona.core.chips import GIB, Chip
from pomona.core.fleet import cloud_name
from pomona.model.count import training_flops
from pomona.parallel.placement import Groups
from pomona.plan.memory import Memory, memory, usable_bytes
from pomona.plan.roofline import EFFICIENCY, Terms, terms
from pomona.plan.work import Layout

DAY_SECONDS, HOUR_SECONDS = 86400, 3600


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One stage on one mesh of one fleet. Time is what is expected of its terms, without stops and failures."""

    layout: Layout
    memory: Memory
    terms: Terms
    usd_per_chip_hour: float | None

    @property
    def fits(self) -> bool:
        return self.memory.total <= usable_bytes(self.layout)

    @property
    def step_seconds(self) -> float:
        return self.terms.expected

    @property
    def tokens_per_second(self) -> float:
        return self.layout.stage.batch_tokens / self.step_seconds

    @property
    def mfu_causal(self) -> float:
        return self._mfu(training_flops(self.layout.run.architecture, self.layout.stage.sequence_length).causal)

    @property
    def mfu_full(self) -> float:
        return self._mfu(training_flops(self.layout.run.architecture, self.layout.stage.sequence_length).full)

    @property
    def hours(self) -> float:
        return self.layout.stage.steps * self.step_seconds / HOUR_SECONDS

    @property
    def days(self) -> float:
        return self.hours * HOUR_SECONDS / DAY_SECONDS

    @property
    def usd(self) -> float | None:
        price = self.usd_per_chip_hour
        return None if price is None else price * self.layout.fleet.chips * self.hours

    @property
    def kwh(self) -> float | None:
        """Of the chips alone, at the most they draw; None where that is not public."""
        watts = self.layout.fleet.chip.power_watts
        return None if watts is None else watts / 1000 * self.layout.fleet.chips * self.hours

    @property
    def memory_share(self) -> float:
        """Of what is usable."""
        return self.memory.total / usable_bytes(self.layout)

    def _mfu(self, flops_per_token: float) -> float:
        fleet = self.layout.fleet
        return flops_per_token * self.tokens_per_second / (fleet.chips * fleet.chip.flops_per_second)


def estimate(layout: Layout, usd_per_chip_hour: float | None, groups: Groups | None = None) -> Estimate:
    """Memory and time of a stage as it is laid out."""
    return Estimate(layout, memory(layout), terms(layout, groups), usd_per_chip_hour)


def list_price(chip: Chip) -> float | None:
    """USD per chip and hour on demand, where a price is public."""
    return chip.price.usd_per_chip_hour if chip.price else None


def to_record(e: Estimate) -> dict[str, Any]:
    """One estimate as plain JSON; memory of one JAX device, in GiB."""
    layout, stage = e.layout, e.layout.stage
    return {
        "name": layout.run.name,
        "stage": stage.name,
        "fleet": cloud_name(layout.fleet),
        "chip": layout.fleet.chip.name,
        "chips": layout.fleet.chips,
        "slices": layout.fleet.slices,
        "topology": list(layout.fleet.topology),
        "mesh": dict(layout.sizes),
        "remat": layout.run.execution.remat,
        "micro_batches": layout.micro_batches,
        "steps": stage.steps,
        "batch_tokens": stage.batch_tokens,
        "fits": e.fits,
        "hbm_gib": e.memory.total / GIB,
        "hbm_limit_gib": usable_bytes(layout) / GIB,
        "hbm_parts_gib": {part: size / GIB for part, size in dataclasses.asdict(e.memory).items()},
        "roofline_seconds": dataclasses.asdict(e.terms),
        "bottleneck": e.terms.bottleneck,
        "efficiency": EFFICIENCY,
        "step_seconds": e.step_seconds,
        "tokens_per_second": e.tokens_per_second,
        "mfu_causal": e.mfu_causal,
        "mfu_full": e.mfu_full,
        "days": e.days,
        "usd_per_chip_hour": e.usd_per_chip_hour,
        "usd": e.usd,
        "kwh": e.kwh,
    }

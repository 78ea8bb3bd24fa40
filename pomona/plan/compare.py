"""The same run on every chip, each with its own best mesh; and on fewer chips, or with half the batch. No JAX.

All get the same number of chips, in as few slices as can be. A chip is not a unit of anything (a v5e is a twelfth of a
7x), so the money and the energy of the whole run are what compares; days compare fleets of one size.
"""

import dataclasses
from collections.abc import Sequence

from pomona.core.chips import CHIPS, Chip
from pomona.core.fleet import Fleet, fewest_slices, fleet_of
from pomona.plan.estimate import Estimate, list_price
from pomona.plan.search import least_memory, search
from pomona.train.config import Run, Stage

COMPARED = ("v4", "v5e", "v5p", "v6e", "7x", "a100-80gb", "h100", "h200", "b200")


@dataclasses.dataclass(frozen=True)
class Plans:
    """The best plan of each stage on one fleet; None for a stage that does not fit on it."""

    fleet: Fleet
    stages: tuple[Estimate | None, ...]

    @property
    def fits(self) -> bool:
        return all(self.stages)

    @property
    def days(self) -> float | None:
        return self._sum("days")

    @property
    def usd(self) -> float | None:
        return self._sum("usd")

    @property
    def kwh(self) -> float | None:
        return self._sum("kwh")

    @property
    def first(self) -> Estimate | None:
        """The first stage's plan: nearly always most of the run."""
        return self.stages[0]

    @property
    def fullest(self) -> Estimate | None:
        """The stage that needs the largest share of the memory."""
        return max((e for e in self.stages if e), key=lambda e: e.memory_share, default=None)

    def _sum(self, name: str) -> float | None:
        values = [getattr(e, name) if e else None for e in self.stages]
        return None if None in values else sum(values)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One chip: the run as asked, and what changes it; None where no such fleet is sold."""

    chip: Chip
    plans: Plans | None
    half_chips: Plans | None
    quarter_chips: Plans | None
    half_batch: Plans | None
    least: Estimate | None
    """The layout with the least memory, of the first stage that does not fit."""


def compare(run: Run, stages: Sequence[Stage], chips: int) -> list[Comparison]:
    """Every chip of `COMPARED`, in that order."""
    return [_compare_chip(run, stages, CHIPS[name], chips) for name in COMPARED]


def best_plans(run: Run, stages: Sequence[Stage], fleet: Fleet) -> Plans:
    """The best plan of each stage, at the chip's list price."""
    results = [search(run, stage, fleet, list_price(fleet.chip)) for stage in stages]
    return Plans(fleet, tuple(found[0] if found else None for found in results))


def halved_batch(stage: Stage) -> Stage | None:
    """The same tokens in twice as many steps of half the batch; None where a batch is one sequence."""
    if stage.batch_size % 2:
        return None
    return dataclasses.replace(stage, batch_size=stage.batch_size // 2, steps=2 * stage.steps)


def _compare_chip(run: Run, stages: Sequence[Stage], chip: Chip, chips: int) -> Comparison:
    fleet = _fleet(chip, chips)
    half, quarter = (_fleet(chip, chips // n) if chips % n == 0 else None for n in (2, 4))
    plans = best_plans(run, stages, fleet) if fleet else None
    smaller = [halved_batch(stage) for stage in stages]
    least = None
    if fleet and plans and not plans.fits:
        stage = stages[plans.stages.index(None)]
        least = least_memory(run, stage, fleet, list_price(chip))
    return Comparison(
        chip,
        plans,
        best_plans(run, stages, half) if half else None,
        best_plans(run, stages, quarter) if quarter else None,
        best_plans(run, [s for s in smaller if s], fleet) if fleet and all(smaller) else None,
        least,
    )


def _fleet(chip: Chip, chips: int) -> Fleet | None:
    return fleet_of(chip, chips) if fewest_slices(chip, chips) else None

"""The best mesh, remat policy and number of micro-batches of a stage on a fleet: every one is looked at. No JAX.

A larger number of micro-batches never makes a step shorter (each gathers the weights again) and never needs more
memory but for the second copy of the gradients; so of each mesh and policy only the smallest number that fits counts.
"""

import dataclasses
from collections.abc import Iterator

from pomona.core.fleet import Fleet, fleet_of
from pomona.model.count import REMAT, weights
from pomona.parallel.config import mesh_shape, sequence_parts, shards
from pomona.parallel.placement import every_mesh
from pomona.plan.estimate import Estimate, estimate
from pomona.plan.memory import memory, usable_bytes
from pomona.plan.work import Layout, check_counted
from pomona.train.config import Run, Stage

MOST_CHIPS = 2**17
TIE = 0.002
"""Steps this close are equal. Then the one with less communication is better, and of those within a tenth of the step,
all of which can hide behind it, the one that needs less memory."""
HIDDEN = 0.1


def search(run: Run, stage: Stage, fleet: Fleet, usd_per_chip_hour: float | None) -> list[Estimate]:
    """All meshes and policies that fit, the best first, each with the fewest micro-batches; empty where none fits.

    Raises:
        UserError: the run computes something that a plan does not count.
    """
    check_counted(run)
    found = [estimate(layout, usd_per_chip_hour) for each in possible(run, stage, fleet) for layout in fewest(each)]
    if not found:
        return []
    best = min(e.step_seconds for e in found)
    return sorted(
        found,
        key=lambda e: (
            round(e.step_seconds / best / TIE),
            round(e.terms.communication / best / HIDDEN),
            e.memory.total,
        ),
    )


def possible(run: Run, stage: Stage, fleet: Fleet) -> Iterator[Layout]:
    """Every mesh that divides, with every policy; the number of micro-batches is still open."""
    dimensions = {(axis, n) for weight in weights(run.architecture) for axis, n in zip(weight.axes, weight.shape)}
    policies = [
        dataclasses.replace(run, execution=dataclasses.replace(run.execution, remat=policy)) for policy in REMAT
    ]
    for mesh in every_mesh(fleet.devices, fleet.slices):
        sizes = mesh_shape(mesh, fleet.devices)
        if stage.batch_size % shards("batch", sizes) or stage.sequence_length % sequence_parts(sizes):
            continue
        if any(n % shards(axis, sizes) for axis, n in dimensions):
            continue
        for policy in policies:
            yield Layout(dataclasses.replace(policy, mesh=mesh), stage, fleet, sizes)


def fewest(layout: Layout) -> list[Layout]:
    """The layout with the fewest micro-batches that fits, or nothing."""
    rows = layout.stage.batch_size // shards("batch", layout.sizes)
    if _fits(_cut(layout, 1)):
        return [_cut(layout, 1)]
    if not _fits(_cut(layout, rows)):
        return []
    return [next(each for n in range(2, rows + 1) if rows % n == 0 and _fits(each := _cut(layout, n)))]


def _cut(layout: Layout, micro_batches: int) -> Layout:
    stage = dataclasses.replace(layout.stage, micro_batches=micro_batches)
    return dataclasses.replace(layout, stage=stage)


def _fits(layout: Layout) -> bool:
    return memory(layout).total <= usable_bytes(layout)


def same_mesh(e: Estimate) -> list[Estimate]:
    """What fits of the policies and micro-batches on an estimate's own mesh, the fastest first."""
    layout, found = e.layout, []
    for policy in REMAT:
        run = dataclasses.replace(layout.run, execution=dataclasses.replace(layout.run.execution, remat=policy))
        layouts = fewest(dataclasses.replace(layout, run=run))
        found += [estimate(each, e.usd_per_chip_hour) for each in layouts]
    return sorted(found, key=lambda each: each.step_seconds)


def more_chips(run: Run, stage: Stage, fleet: Fleet, usd_per_chip_hour: float | None) -> Estimate | None:
    """The best plan on the smallest number of chips, doubled and doubled again, on which one fits."""
    chips = 2 * fleet.chips
    while chips <= MOST_CHIPS:
        found = search(run, stage, fleet_of(fleet.chip, chips), usd_per_chip_hour)
        if found:
            return found[0]
        chips *= 2
    return None


def least_memory(run: Run, stage: Stage, fleet: Fleet, usd_per_chip_hour: float | None) -> Estimate | None:
    """The layout that needs the least memory, whether it fits or not; None where no mesh divides."""
    every = possible(run, stage, fleet)
    layouts = (_cut(each, stage.batch_size // shards("batch", each.sizes)) for each in every)
    best = min(layouts, key=lambda layout: memory(layout).total, default=None)
    return estimate(best, usd_per_chip_hour) if best else None

"""What a plan says of a stage: its estimate, or why it cannot run; where it does not fit, what to change. No JAX."""

import dataclasses

from pomona.core.errors import UserError
from pomona.core.fleet import Fleet, cloud_name
from pomona.parallel.placement import mesh_options
from pomona.plan.estimate import Estimate, estimate
from pomona.plan.search import more_chips, same_mesh, search
from pomona.plan.work import lay_out
from pomona.train.config import Run, Stage, mesh_option


@dataclasses.dataclass(frozen=True)
class Change:
    """Something else to type, and what comes of it."""

    what: str
    typed: str
    estimate: Estimate


@dataclasses.dataclass(frozen=True)
class Answer:
    """One stage on the run's own mesh."""

    stage: Stage
    estimate: Estimate | None
    problem: UserError | None
    """Why the stage cannot run on this mesh at all."""
    changes: tuple[Change, ...] = ()

    @property
    def runs(self) -> bool:
        return self.estimate is not None and self.estimate.fits


def answer(run: Run, stage: Stage, fleet: Fleet, usd_per_chip_hour: float | None) -> Answer:
    """The stage as the run has it; with changes that help, if it does not run so."""
    try:
        found = estimate(lay_out(run, stage, fleet), usd_per_chip_hour)
    except UserError as problem:
        return Answer(stage, None, problem, changes(run, stage, fleet, usd_per_chip_hour, None))
    if found.fits:
        return Answer(stage, found, None)
    return Answer(stage, found, None, changes(run, stage, fleet, usd_per_chip_hour, found))


def changes(
    run: Run, stage: Stage, fleet: Fleet, usd_per_chip_hour: float | None, tried: Estimate | None
) -> tuple[Change, ...]:
    """What makes the stage fit, the smallest change first: policy and micro-batches, the mesh, more chips."""
    found = []
    if tried and (near := same_mesh(tried)):
        found.append(Change("on this mesh", typed(near[0], stage, run), near[0]))
    if better := search(run, stage, fleet, usd_per_chip_hour):
        best = Change("on the best mesh", typed(better[0], stage, run), better[0])
        found += [best] if best.typed not in [change.typed for change in found] else []
    elif more := more_chips(run, stage, fleet, usd_per_chip_hour):
        slices = f" --slices {more.layout.fleet.slices}" if more.layout.fleet.slices > 1 else ""
        chips = f"--chips {cloud_name(more.layout.fleet)}{slices} "
        found.append(Change("on more chips", chips + typed(more, stage, run), more))
    return tuple(found)


def typed(e: Estimate, stage: Stage, run: Run) -> str:
    """The options that make a run this one."""
    layout, index = e.layout, run.stages.index(stage)
    remat = "--execution.remat" if stage.remat is None else f"--stages.{index}.remat"
    micro = f" --stages.{index}.micro-batches {layout.micro_batches}" if layout.micro_batches > 1 else ""
    return f"{mesh_options(layout.sizes, mesh_option(run, index))} {remat} {layout.run.execution.remat}{micro}"

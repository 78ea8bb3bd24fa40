"""What the compiled program of a stage says: does it fit, how long is a step, what is exposed, what it costs."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from pomona.core.chips import GIB
from pomona.core.errors import UserError
from pomona.core.fleet import Fleet, cloud_name
from pomona.model.count import training_flops
from pomona.plan.collectives import Transfer
from pomona.plan.compiled import Compiled, compile_stage
from pomona.plan.estimate import DAY_SECONDS, HOUR_SECONDS
from pomona.plan.hlo import parse
from pomona.plan.memory import USABLE
from pomona.plan.timeline import Prediction, predict
from pomona.train.config import Run, Stage


@dataclasses.dataclass(frozen=True)
class Communication:
    """All collectives of one kind along the same mesh axes, over a step."""

    kind: str
    axes: tuple[str, ...]
    times: int
    size_bytes: float
    """Bytes of the whole result, per device and step."""
    seconds: float
    exposed_seconds: float


@dataclasses.dataclass(frozen=True)
class Verified:
    """One stage, compiled for its fleet."""

    run: Run
    stage: Stage
    fleet: Fleet
    compiled: Compiled
    prediction: Prediction
    usd_per_chip_hour: float | None

    @property
    def step_seconds(self) -> float:
        return self.prediction.step_seconds

    @property
    def hbm_limit_bytes(self) -> float:
        return USABLE * self.fleet.chip.memory_bytes / self.fleet.chip.devices

    @property
    def hbm_bytes(self) -> int:
        """The program's, and the copy of the state that a step needs which is checked by computing it twice."""
        return self.compiled.hbm_bytes + self.checked_copy_bytes

    @property
    def checked_copy_bytes(self) -> int:
        """Arguments are the state, and beside it a batch of a few kilobytes."""
        return self.compiled.argument_bytes if self.run.faults.check_every_steps else 0

    @property
    def fits(self) -> bool:
        return self.hbm_bytes <= self.hbm_limit_bytes

    @property
    def days(self) -> float:
        return self.stage.steps * self.step_seconds / DAY_SECONDS

    @property
    def usd(self) -> float | None:
        price = self.usd_per_chip_hour
        return None if price is None else price * self.fleet.chips * self.days * DAY_SECONDS / HOUR_SECONDS

    def mfu(self) -> tuple[float, float]:
        """Model FLOPs utilization, attention counted causal and full."""
        flops = training_flops(self.run.architecture, self.stage.sequence_length)
        peak = self.fleet.chips * self.fleet.chip.flops_per_second * self.step_seconds
        return flops.causal * self.stage.batch_tokens / peak, flops.full * self.stage.batch_tokens / peak


def verify(run: Run, stage: Stage, fleet: Fleet, usd_per_chip_hour: float | None) -> Verified:
    """Compiles a stage's step, or takes it from the cache, and reads it.

    Raises:
        UserError: the chip's clock is not public; and see `compiled.compile_stage`.
    """
    if fleet.chip.torus_dimensions and fleet.chip.clock_hz is None:
        raise UserError(
            f"the clock of {fleet.chip.title} is not public.",
            "the compiler counts cycles, and only a clock makes seconds of them.",
            "--chips v5p-4096, or leave --verify out",
        )
    compiled = compile_stage(run, run.stages.index(stage), fleet)
    return Verified(run, stage, fleet, compiled, predict(parse(compiled.text), compiled.places), usd_per_chip_hour)


def communications(verified: Verified) -> list[Communication]:
    """The collectives by kind and mesh axes, the longest first."""
    found: dict[tuple[str, tuple[str, ...]], list[tuple[int, Transfer, float]]] = defaultdict(list)
    for cost in verified.prediction.costs:
        if cost.transfer:
            axes = crossed_axes(cost.transfer.members, verified.compiled.mesh)
            found[cost.transfer.kind, axes].append((cost.trips, cost.transfer, cost.seconds))
    rows = [
        Communication(
            kind,
            axes,
            sum(trips for trips, _, _ in parts),
            sum(trips * transfer.size_bytes for trips, transfer, _ in parts),
            sum(trips * transfer.seconds for trips, transfer, _ in parts),
            sum(exposed for _, _, exposed in parts),
        )
        for (kind, axes), parts in found.items()
    ]
    return sorted(rows, key=lambda row: -row.seconds)


def crossed_axes(members: tuple[int, ...], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ; devices are numbered in the order of the mesh."""
    indices = np.unravel_index(np.array(members), tuple(mesh.values()))
    return tuple(axis for axis, index in zip(mesh, indices) if len(np.unique(index)) > 1)


def to_record(verified: Verified) -> dict[str, Any]:
    """One verified stage as plain JSON, with the keys of `docs/benchmarks/fleet.json`."""
    causal, full = verified.mfu()
    compiled, prediction = verified.compiled, verified.prediction
    return {
        "name": verified.run.name,
        "stage": verified.stage.name,
        "fleet": cloud_name(verified.fleet),
        "chip": verified.fleet.chip.name,
        "chips": verified.fleet.chips,
        "slices": verified.fleet.slices,
        "mesh": compiled.mesh,
        "fits": verified.fits,
        "hbm_gib": verified.hbm_bytes / GIB,
        "hbm_limit_gib": verified.hbm_limit_bytes / GIB,
        "hbm_arguments_gib": compiled.argument_bytes / GIB,
        "hbm_checked_copy_gib": verified.checked_copy_bytes / GIB,
        "hbm_temporaries_gib": compiled.temporary_bytes / GIB,
        "compile_seconds": compiled.compile_seconds,
        "step_seconds": verified.step_seconds,
        "seconds_by_kind": prediction.by_kind(),
        "exposed_communication_seconds": prediction.exposed_communication_seconds,
        "mfu_causal": causal,
        "mfu_full": full,
        "tokens_per_second": verified.stage.batch_tokens / verified.step_seconds,
        "days": verified.days,
        "usd_per_chip_hour": verified.usd_per_chip_hour,
        "usd": verified.usd,
        "collectives": [dataclasses.asdict(row) for row in communications(verified)],
    }

"""Bad steps in a row send a run back to the checkpoint before them and past the data they read.

As in PaLM's training (PaLM report, section 5.1): from a checkpoint before the spike, the batches seen since then left
out. A rollback is (step, last): after `step`, the batches of the steps up to `last` are passed over. The list of all
rollbacks makes the batch of a step a pure function again, of (configuration, list, step). It is kept in `events.jsonl`
and in every checkpoint, so a start after a kill makes the same choices bit for bit.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from pomona.core.errors import UserError
from pomona.train.fault_config import FaultConfig


@dataclasses.dataclass(frozen=True)
class Rollback:
    """The steps after `step`, up to `last`, were thrown away, and their data is not read again."""

    step: int
    last: int


class RollBack(Exception):
    """The steps from `first` to `last` were bad; training goes on before them."""

    def __init__(self, first: int, last: int, reason: str):
        super().__init__(f"steps {first} to {last}: {reason}")
        self.first, self.last, self.reason = first, last, reason


@dataclasses.dataclass(frozen=True)
class Trend:
    """What decides whether the next loss is bad: the last good losses of this stage, and the bad ones in a row."""

    good: tuple[float, ...] = ()
    bad: tuple[float, ...] = ()

    def to_json(self) -> dict[str, list[float] | list[float | str]]:
        """As a checkpoint holds it; JSON has no NaN."""
        return {"good": list(self.good), "bad": [loss if math.isfinite(loss) else str(loss) for loss in self.bad]}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Trend":
        """The inverse of `to_json`."""
        return Trend(tuple(map(float, value["good"])), tuple(map(float, value["bad"])))


def judge(trend: Trend, loss: float, config: FaultConfig) -> Trend:
    """The trend after one more step."""
    if _is_bad(trend, loss, config):
        return Trend(trend.good, (*trend.bad, loss))
    return Trend((*trend.good, loss)[-config.spike_window_steps :])


def _is_bad(trend: Trend, loss: float, config: FaultConfig) -> bool:
    if not math.isfinite(loss):
        return True
    count = len(trend.good)
    if config.spike_deviations is None or count < config.spike_window_steps:
        return False
    mean = math.fsum(trend.good) / count
    deviation = math.sqrt(math.fsum((each - mean) ** 2 for each in trend.good) / (count - 1))
    return loss > mean + config.spike_deviations * deviation


class LossWatch:
    """Judges the losses of a stage, each step once, whenever the host looks at them."""

    def __init__(self, config: FaultConfig, trend: Trend, seen: int):
        self._config, self.trend, self._seen = config, trend, seen

    def start_stage(self) -> None:
        """Other data and another schedule make other losses: nothing is a spike until there are enough of them."""
        self.trend = Trend((), self.trend.bad)

    def look(self, step: int, losses: Sequence[float]) -> None:
        """The losses of the steps up to `step`; those that were judged before are passed over.

        Raises:
            RollBack: too many in a row were bad.
        """
        for number, loss in enumerate(map(float, losses), start=step - len(losses) + 1):
            if number <= self._seen:
                continue
            self.trend, self._seen = judge(self.trend, loss, self._config), number
            bad = self.trend.bad
            if len(bad) >= self._config.bad_steps:
                finite = any(map(math.isfinite, bad))
                reason = "the loss was far above its trend" if finite else "the loss or its gradient was not finite"
                raise RollBack(number - len(bad) + 1, number, reason)


def recorded(events: Iterable[dict[str, Any]]) -> tuple[Rollback, ...]:
    """The rollbacks that a run's events tell of, oldest first.

    Each `rollback` carries the whole list, since a folder that was lost and fetched again has not all events.
    """
    lists = [from_json(event["rollbacks"]) for event in events if event["event"] == "rollback"]
    return max(lists, key=len, default=())


def to_json(rollbacks: Sequence[Rollback]) -> list[list[int]]:
    """As a checkpoint holds them."""
    return [[each.step, each.last] for each in rollbacks]


def from_json(value: Sequence[Sequence[int]]) -> tuple[Rollback, ...]:
    """The inverse of `to_json`."""
    return tuple(Rollback(*pair) for pair in value)


def abandoned(step: int, known: Sequence[Rollback], rollbacks: Sequence[Rollback]) -> bool:
    """Whether a checkpoint that knows of some rollbacks holds steps that a later one threw away."""
    return any(step > later.step for later in rollbacks[len(known) :])


def passed_over(rollbacks: Sequence[Rollback], first: int, steps: int) -> tuple[tuple[int, int], ...]:
    """What a stage of `steps` steps after `first` passes over: (position, batches) pairs for `Batches.skipped`.

    A rollback over the boundary of two stages passes over the batches of each that were read.
    """
    pairs = []
    for each in rollbacks:
        lost = min(each.last, first + steps) - max(each.step, first)
        if lost > 0:
            pairs.append((max(each.step - first, 0), lost))
    return tuple(pairs)


def check_allowed(fault: RollBack, before: Sequence[int], rollbacks: Sequence[Rollback], config: FaultConfig) -> int:
    """The checkpoint to go back to, out of the saved steps.

    Raises:
        UserError: there is none before the bad steps, or the rollbacks are used up.
    """
    span = f"steps {fault.first} to {fault.last}" if fault.last > fault.first else f"step {fault.first}"
    older = [step for step in before if step < fault.first]
    if older and len(rollbacks) < config.max_rollbacks:
        return max(older)
    why = "no checkpoint is older" if not older else f"{len(rollbacks)} rollbacks have not helped"
    raise UserError(
        f"{fault.reason} in {span}, and {why}.",
        f"{config.bad_steps} bad steps in a row are training that has diverged; the run goes back to the checkpoint "
        f"before them and past their data, {config.max_rollbacks} times at most.",
        "a lower --stages.0.schedule.peak-learning-rate in a new --run folder.",
    )

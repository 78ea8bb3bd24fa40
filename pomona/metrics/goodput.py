"""Goodput: the share of all the time since a run was first started that went into steps it kept.

A step's time runs from the end of the step before it to its own end. The first step of every start and every stage
counts nothing, since it compiles; so do evaluations, the loop's wait for a checkpoint, repeated computations, and the
steps that a kill or a rollback took away. `events.jsonl` alone tells the whole story: `start` says when, `checkpoint`
and `resume` say how much had been kept.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Account:
    """What earlier starts of a run leave to this one."""

    began_seconds: float  # Unix time of the first start
    kept_seconds: float  # in steps that are still part of the run

    def goodput(self, running_seconds: float, now_seconds: float) -> float:
        """The share by now, if this start has spent `running_seconds` in steps."""
        passed = now_seconds - self.began_seconds
        return (self.kept_seconds + running_seconds) / passed if passed > 0 else 0.0


def account(events: Sequence[dict[str, Any]]) -> Account:
    """The account of a run whose last start is the last `start` or `resume` of its events.

    A `resume` carries `began_seconds` and `kept_seconds` as its checkpoint holds them, so that a run folder that lost
    its older events still knows.
    """
    starts = [event for event in events if event["event"] in ("start", "resume")]
    assert starts, "asked before the first start was recorded"
    began = min(event.get("began_seconds", event["time_seconds"]) for event in starts)
    return Account(began, starts[-1].get("kept_seconds", 0.0))


class StepClock:
    """Adds up the time of the steps of one start."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock, self.seconds = clock, 0.0
        self.restart()

    def restart(self) -> None:
        """What went on until now was no step."""
        self._since = self._clock()

    def step(self) -> None:
        """A step has just ended."""
        now = self._clock()
        self.seconds, self._since = self.seconds + now - self._since, now

"""Which host keeps the others waiting.

In one SPMD program a step takes the same time everywhere: whoever is early waits in a collective. So a host's step time
says nothing. What differs is the host's own part, before anybody can wait for it: until its data has come and is on its
way to the devices. The call that starts the step is left out, since on some backends it waits for the collectives. Each
process measures that, and at the steps where processes talk anyway they exchange their medians. It counts only where
the device feels it: the host works on the next step while the device is busy with this one, so a host that is slower
than the others by a small part of the step time costs nothing.

A slow chip is not seen here: its host waits like all others.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

FELT_SHARE = 0.1  # of the step time: less than that a device does not feel


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The host that needs the most time for its own part of a step, and the hosts that keep the others waiting."""

    slowest_process: int
    slowest_ratio: float  # its time over the median of the others
    slow: tuple[int, ...]


class HostTimes:
    """A process's own part of the steps since the last exchange."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._began = clock, clock()
        self._own: list[float] = []
        self._whole: list[float] = []

    def begin(self) -> None:
        """A step begins with its data, and the one before ends."""
        now = self._clock()
        self._whole.append(now - self._began)
        self._began = now

    def passed(self) -> float:
        """Seconds since the step began."""
        return self._clock() - self._began

    def ready(self) -> None:
        """The data of the step is on its way to the device."""
        self._own.append(self.passed())

    def take(self) -> tuple[float, float]:
        """The medians of own part and whole step, so that an evaluation among them does not count. Begins anew."""
        own, whole = self._own, self._whole
        self._own, self._whole = [], []
        return (statistics.median(own), statistics.median(whole)) if own else (0.0, 0.0)


def compare(host_seconds: Sequence[float], step_seconds: float, slow_ratio: float) -> Comparison:
    """Of the medians of all processes, at least two.

    Args:
        step_seconds: what a step takes as a whole.
        slow_ratio: how many times the others' median makes a host slow.
    """
    assert len(host_seconds) > 1
    others = [statistics.median([*host_seconds[:i], *host_seconds[i + 1 :]]) for i in range(len(host_seconds))]
    ratios = [mine / max(other, 1e-9) for mine, other in zip(host_seconds, others)]
    felt = [mine - other > FELT_SHARE * step_seconds for mine, other in zip(host_seconds, others)]
    slow = tuple(i for i, ratio in enumerate(ratios) if ratio > slow_ratio and felt[i])
    slowest = max(range(len(ratios)), key=lambda i: host_seconds[i])
    return Comparison(slowest, ratios[slowest], slow)

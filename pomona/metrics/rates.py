"""How fast a run goes: tokens per second, model FLOPs utilisation, time lost to data, time left."""

import dataclasses
import time
from collections.abc import Callable

from pomona.core.chips import Chip

PACE_MEMORY = 0.8  # share that the time left keeps of its earlier pace, so that one slow window does not shake it


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step is worth, by `pomona.model.count`: causal counts half of the attention scores."""

    tokens: int
    flops_causal: float
    flops_full: float


class Meter:
    """Turns finished steps into rates over the time since the last reading.

    What is no training does not count: call `start` after the first step, which compiles, and after an
    evaluation.
    """

    def __init__(self, devices: int, chip: Chip | None, clock: Callable[[], float] = time.perf_counter):
        self._chips = devices / (chip.devices if chip else 1)
        self._chip, self._clock = chip, clock
        self._pace_seconds: float | None = None  # per step, smoothed
        self.start()

    def start(self) -> None:
        """Begins a new window now."""
        self._began = self._clock()
        self._waited = 0.0
        self._steps = 0

    def waited(self, seconds: float) -> None:
        """Adds time the loop spent waiting for data."""
        self._waited += seconds

    def step(self) -> None:
        """Counts a finished step."""
        self._steps += 1

    def read(self, work: Work, steps_left: int) -> dict[str, float]:
        """The rates since the last reading; empty when no step was finished. Begins a new window.

        Keys: tokens_per_second, tokens_per_second_per_chip, step_seconds, data_wait_share, eta_seconds, and,
        only where the chip's peak is known, mfu_causal and mfu_full.
        """
        seconds, steps, waited = self._clock() - self._began, self._steps, self._waited
        if steps == 0 or seconds <= 0:
            return {}
        self.start()
        rate, step_seconds = steps * work.tokens / seconds, seconds / steps
        old_pace = step_seconds if self._pace_seconds is None else self._pace_seconds
        self._pace_seconds = PACE_MEMORY * old_pace + (1 - PACE_MEMORY) * step_seconds
        result = {
            "tokens_per_second": rate,
            "tokens_per_second_per_chip": rate / self._chips,
            "step_seconds": step_seconds,
            "data_wait_share": waited / seconds,
            "eta_seconds": steps_left * self._pace_seconds,
        }
        if self._chip is not None:
            peak = self._chips * self._chip.flops_per_second * step_seconds
            result |= {"mfu_causal": work.flops_causal / peak, "mfu_full": work.flops_full / peak}
        return result

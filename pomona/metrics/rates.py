"""How fast a run goes: tokens per second, model FLOPs utilisation, time lost to data, time left."""

import dataclasses
import time
from collections.abc import Callable

from pomona.core.chips import Chip


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step is worth. FLOPs follow `pomona.model.count`: causal counts half of the attention scores."""

    tokens: int
    flops_causal: float
    flops_full: float


class Meter:
    """Turns steps done into rates over the time since the last reading. The first step, which compiles, is left out
    by calling `start` after it."""

    def __init__(self, devices: int, chip: Chip | None, clock: Callable[[], float] = time.perf_counter):
        self._chips = devices / (chip.devices if chip else 1)
        self._chip, self._clock = chip, clock
        self.start()

    def start(self) -> None:
        """Forgets everything before now."""
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
        """The rates since the last reading; empty when no step was finished.

        Keys: tokens_per_second, tokens_per_second_per_chip, step_seconds, data_wait_share, eta_seconds, and, only
        where the chip's peak is known, mfu_causal and mfu_full.
        """
        seconds, steps, waited = self._clock() - self._began, self._steps, self._waited
        if steps == 0 or seconds <= 0:
            return {}
        self.start()
        rate = steps * work.tokens / seconds
        result = {
            "tokens_per_second": rate,
            "tokens_per_second_per_chip": rate / self._chips,
            "step_seconds": seconds / steps,
            "data_wait_share": waited / seconds,
            "eta_seconds": steps_left * seconds / steps,
        }
        if self._chip is not None:
            peak = self._chips * self._chip.flops_per_second * seconds / steps
            result |= {"mfu_causal": work.flops_causal / peak, "mfu_full": work.flops_full / peak}
        return result

"""Rates from a clock that the test turns by hand."""

import pytest

from pomona.core.chips import CHIPS
from pomona.metrics.rates import Meter, Work

WORK = Work(tokens=1000, flops_causal=6e15, flops_full=7e15)


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def run(meter: Meter, clock: Clock, steps: int, step_seconds: float, wait_seconds: float = 0.0) -> None:
    for _ in range(steps):
        clock.seconds += step_seconds
        meter.waited(wait_seconds)
        meter.step()


def test_the_rates_of_a_window():
    clock = Clock()
    meter = Meter(16, CHIPS["h200"], clock)
    run(meter, clock, steps=4, step_seconds=0.5, wait_seconds=0.005)
    peak = 16 * 989e12
    assert meter.read(WORK, steps_left=10) == pytest.approx(
        {
            "tokens_per_second": 2000.0,
            "tokens_per_second_per_chip": 125.0,
            "step_seconds": 0.5,
            "data_wait_share": 0.01,
            "eta_seconds": 5.0,
            "mfu_causal": 6e15 / 0.5 / peak,
            "mfu_full": 7e15 / 0.5 / peak,
        }
    )


def test_no_utilization_without_a_known_peak():
    clock = Clock()
    meter = Meter(8, None, clock)
    run(meter, clock, steps=2, step_seconds=1.0)
    measured = meter.read(WORK, steps_left=1)
    assert not any("mfu" in name for name in measured)
    assert measured["tokens_per_second_per_chip"] == pytest.approx(125.0)


def test_a_chip_of_two_devices_counts_once():
    clock = Clock()
    meter = Meter(8, CHIPS["7x"], clock)
    run(meter, clock, steps=1, step_seconds=1.0)
    measured = meter.read(WORK, steps_left=0)
    assert measured["tokens_per_second_per_chip"] == pytest.approx(250.0)
    assert measured["mfu_causal"] == pytest.approx(6e15 / (4 * 2307e12))


def test_the_step_that_compiles_is_left_out():
    clock = Clock()
    meter = Meter(1, None, clock)
    run(meter, clock, steps=1, step_seconds=300.0, wait_seconds=60.0)
    meter.start()
    assert meter.read(WORK, steps_left=9) == {}  # nothing measured yet is nothing said
    run(meter, clock, steps=3, step_seconds=1.0)
    measured = meter.read(WORK, steps_left=6)
    assert (measured["step_seconds"], measured["data_wait_share"]) == (1.0, 0.0)
    assert measured["eta_seconds"] == pytest.approx(6.0)


def test_each_window_is_its_own_and_the_time_left_is_steadier():
    clock = Clock()
    meter = Meter(1, None, clock)
    run(meter, clock, steps=2, step_seconds=1.0)
    meter.read(WORK, steps_left=98)
    run(meter, clock, steps=2, step_seconds=5.0)  # something else used the machine
    measured = meter.read(WORK, steps_left=96)
    assert measured["step_seconds"] == 5.0
    assert measured["eta_seconds"] == pytest.approx(96 * (0.8 * 1.0 + 0.2 * 5.0))

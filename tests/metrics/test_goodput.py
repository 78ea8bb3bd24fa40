"""Goodput from a history made by hand, and from a clock that the test turns."""

import pytest

from pomona.metrics.goodput import Account, StepClock, account

HISTORY = [
    {"event": "start", "time_seconds": 1000.0},
    {"event": "checkpoint", "time_seconds": 1100.0, "step": 10, "kept_seconds": 60.0},
    {"event": "checkpoint", "time_seconds": 1190.0, "step": 20, "kept_seconds": 140.0},
    # The machine goes down at 1250; 20 turns out to be damaged, so 80 seconds of steps are lost too.
    {"event": "fallback", "time_seconds": 1300.0, "step": 20},
    {"event": "resume", "time_seconds": 1300.0, "step": 10, "began_seconds": 1000.0, "kept_seconds": 60.0},
]


def test_a_history_made_by_hand():
    now = account(HISTORY)
    assert now == Account(began_seconds=1000.0, kept_seconds=60.0)
    assert now.goodput(running_seconds=90.0, now_seconds=1400.0) == (60 + 90) / 400


def test_a_start_that_saved_nothing_costs_its_whole_time():
    again = [{"event": "start", "time_seconds": 50.0}, {"event": "start", "time_seconds": 80.0}]
    assert account(again).goodput(running_seconds=10.0, now_seconds=100.0) == 10 / 50


def test_a_folder_that_lost_its_events_knows_from_the_checkpoint():
    assert account(HISTORY[-1:]) == account(HISTORY)


def test_what_is_no_step_does_not_count():
    now = [0.0]
    clock = StepClock(lambda: now[0])

    def after(seconds, what):
        now[0] += seconds
        what()

    after(30, clock.restart)  # the first step compiled
    after(2, clock.step)
    after(3, clock.step)
    after(100, clock.restart)  # an evaluation
    after(4, clock.step)
    assert clock.seconds == 9


def test_before_any_time_has_passed():
    assert Account(5.0, 0.0).goodput(0.0, 5.0) == pytest.approx(0.0)

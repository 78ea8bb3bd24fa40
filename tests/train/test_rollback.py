"""Bad steps: what counts as one, which data is passed over, and that no kill changes the choice."""

import math

import numpy as np
import pytest
from poison import POISON, SHIFTED, WATCHED
from small_run import at_log, events, losses, start, whole_events

from pomona.core.errors import UserError
from pomona.train.fault_config import FaultConfig
from pomona.train.rollback import (
    LossWatch,
    RollBack,
    Rollback,
    Trend,
    abandoned,
    check_allowed,
    from_json,
    judge,
    passed_over,
    recorded,
    to_json,
)

SHORT = FaultConfig(spike_window_steps=4, spike_deviations=3.0, bad_steps=2)


def judged(losses, config=SHORT):
    """For each loss, whether it is bad, by NumPy."""
    good, answers = [], []
    for loss in losses:
        window = good[-config.spike_window_steps :]
        full = len(window) == config.spike_window_steps
        spike = full and loss > np.mean(window) + config.spike_deviations * np.std(window, ddof=1)
        answers.append(bool(spike) or not math.isfinite(loss))
        if not answers[-1]:
            good.append(loss)
    return answers


def test_a_spike_is_what_numpy_says():
    rng = np.random.default_rng(1)
    curve = (3 + 0.1 * rng.standard_normal(300) + rng.choice([0, 0.35, 2], 300, p=[0.8, 0.1, 0.1])).tolist()
    curve[50:52] = [math.nan, math.inf]
    expected, trend = judged(curve), Trend()
    assert 20 < sum(expected) < 200
    for loss, bad in zip(curve, expected):
        before, trend = trend, judge(trend, loss, SHORT)
        assert (len(trend.bad) == len(before.bad) + 1) is bad and bool(trend.bad) is bad
        assert repr(Trend.from_json(trend.to_json())) == repr(trend), "a checkpoint changes no bit of it"


def test_nothing_is_a_spike_before_there_are_enough_losses_or_where_it_is_turned_off():
    assert not any(judge(Trend((1.0, 1.1, 0.9)), 99.0, SHORT).bad)
    off = FaultConfig(spike_deviations=None, spike_window_steps=4)
    assert judge(Trend((1.0, 1.1, 0.9, 1.0)), 99.0, off).bad == ()
    assert judge(Trend((1.0, 1.1, 0.9, 1.0)), 99.0, SHORT).bad == (99.0,)


def test_steps_are_judged_once_and_the_last_bad_one_is_named_whenever_the_host_looks():
    curve = [1.0, 1.1, 0.9, 1.0, 9.0, 1.0, 9.0, 9.0, 9.0]
    for cuts in ([9], [3, 6, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9]):
        watch, told = LossWatch(SHORT, Trend(), seen=0), None
        for cut in cuts:
            try:
                watch.look(cut, curve[:cut])
            except RollBack as fault:
                told = told or (fault.first, fault.last)
        assert told == (7, 8)


def test_the_batches_of_the_steps_that_were_thrown_away_are_passed_over():
    """Against a loop that goes through two stages of 8 and 6 steps and reads each stage's batches in turn."""
    rollbacks = (Rollback(3, 7), Rollback(6, 10), Rollback(11, 13))
    stages = ((0, 8), (8, 6))
    reads: dict[int, tuple[int, int]] = {}
    turn, step, left = [0, 0], 0, list(rollbacks)
    while step < 14:
        step += 1
        stage = int(step > 8)
        reads[step] = (stage, turn[stage])
        turn[stage] += 1
        if left and step == left[0].last:
            step = left.pop(0).step
    for index, (first, count) in enumerate(stages):
        pairs = passed_over(rollbacks, first, count)
        for step in range(first + 1, first + count + 1):
            position = step - first - 1
            assert (index, position + sum(n for at, n in pairs if position >= at)) == reads[step]


def test_checkpoints_of_a_history_that_was_thrown_away_are_known():
    first, second = Rollback(3, 7), Rollback(9, 12)
    assert abandoned(6, (), (first, second)) and abandoned(12, (first,), (first, second))
    assert not abandoned(3, (), (first, second)) and not abandoned(9, (first,), (first, second))
    assert not abandoned(12, (first, second), (first, second))
    assert from_json(to_json((first, second))) == (first, second)
    told = [{"event": "start"}, {"event": "rollback", "step": 9, "last": 12, "rollbacks": to_json((first, second))}]
    assert recorded(told) == (first, second), "the last event tells of all, for the others may be lost"
    assert recorded(told[:1]) == ()


def test_where_to_go_back_to_and_when_to_give_up():
    fault = RollBack(6, 7, "the loss was not finite")
    assert check_allowed(fault, [3, 6, 1], (), SHORT) == 3
    with pytest.raises(UserError, match="not finite in steps 6 to 7, and no checkpoint is older"):
        check_allowed(fault, [6, 9], (), SHORT)
    with pytest.raises(UserError, match="1 rollbacks have not helped"):
        check_allowed(fault, [3], (Rollback(3, 5),), FaultConfig(max_rollbacks=1))


KILLED_AT_ONCE = "loop.roll_back = lambda *a, old=loop.roll_back: (old(*a), os.kill(os.getpid(), 9))\n"


@pytest.mark.slow
def test_a_spike_is_rolled_back_past_its_data_and_kills_change_nothing(cache, tmp_path):
    expected = start(tmp_path / "expected", cache, hook=SHIFTED)
    assert expected.returncode == 0, expected.stderr

    whole = start(tmp_path / "whole", cache, hook=WATCHED + POISON)
    assert whole.returncode == 0, whole.stderr
    assert "back to step 3, and past the data of steps 4 to 7" in whole.stdout
    assert losses(tmp_path / "whole") == losses(tmp_path / "expected")
    assert events(tmp_path / "whole").count("rollback") == 1
    assert [event["step"] for event in whole_events(tmp_path / "whole", "abandoned")] == [6]

    # Once right after the decision, while the checkpoint of step 6 still lies there; once further on.
    run = tmp_path / "killed"
    assert start(run, cache, hook=WATCHED + POISON + KILLED_AT_ONCE).returncode == -9
    assert (run / "checkpoints" / "6").exists()
    assert start(run, cache, hook=WATCHED + POISON + at_log(8, "os.kill(os.getpid(), 9)")).returncode == -9
    assert start(run, cache, hook=WATCHED + POISON).returncode == 0
    assert losses(run) == losses(tmp_path / "expected")
    assert events(run).count("rollback") == 1

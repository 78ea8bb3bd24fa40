"""Who keeps the others waiting, from times made by hand. Two real processes are in test_processes.py."""

from pomona.train.stragglers import HostTimes, compare


def test_one_slow_host_of_many():
    found = compare([0.10, 0.11, 0.09, 0.80, 0.10], step_seconds=1.0, slow_ratio=2.0)
    assert (found.slowest_process, found.slow) == (3, (3,))
    assert abs(found.slowest_ratio - 8.0) < 1e-9, "over the median of the others, which it does not pull up"


def test_of_two_the_other_one_is_the_measure():
    found = compare([0.3, 0.1], step_seconds=0.5, slow_ratio=2.0)
    assert (found.slowest_process, found.slow) == (0, (0,)) and abs(found.slowest_ratio - 3.0) < 1e-9


def test_what_the_device_does_not_feel_is_not_slow():
    found = compare([0.001, 0.009, 0.001], step_seconds=1.0, slow_ratio=2.0)
    assert (found.slowest_process, found.slow) == (1, ())
    assert compare([0.2, 0.3, 0.2], step_seconds=0.5, slow_ratio=2.0).slow == ()
    assert compare([0.0, 0.0, 0.0], step_seconds=0.0, slow_ratio=2.0).slow == ()


def test_medians_of_the_own_part_and_of_the_whole_step():
    now = [0.0]
    times = HostTimes(lambda: now[0])
    for own, rest in ((1, 9), (2, 8), (50, 100), (3, 7), (2, 8)):
        times.begin()
        now[0] += own
        times.ready()
        now[0] += rest
    assert times.take() == (2, 10), "an evaluation among the steps does not count"
    assert times.take() == (0.0, 0.0)

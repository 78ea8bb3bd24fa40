"""The shape of the schedule, at its borders and in between."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.core.config import from_json, to_json
from pomona.core.errors import UserError
from pomona.optim.build import build
from pomona.optim.config import AdamW, AdaStar, Schedule, check_optimizer, check_schedule
from pomona.optim.schedule import learning_rate, multiplier

CORE = Schedule()  # AFM's core stage


def test_the_borders_are_exact():
    total = 375_000
    assert multiplier(CORE, 0, total) == 0.0
    assert multiplier(CORE, 1, total) == 1 / 5000
    assert multiplier(CORE, 5000, total) == 1.0
    assert multiplier(CORE, total, total) == 0.005
    assert multiplier(CORE, (5000 + total) // 2, total) == pytest.approx((1 + 0.005) / 2, rel=1e-12)
    assert learning_rate(CORE, 5000, total) == 0.01
    traced = jax.jit(lambda step: multiplier(CORE, step, total))
    assert [float(traced(jnp.int32(s))) for s in (0, 5000)] == [0.0, 1.0]
    assert float(traced(jnp.int32(total))) == pytest.approx(0.005, rel=1e-6)


def test_it_rises_then_falls_and_stays_between_zero_and_one():
    schedule = dataclasses.replace(CORE, warmup_steps=10, floor=0.1)
    values = np.asarray(multiplier(schedule, jnp.arange(101), 100))
    assert np.all(np.diff(values[:11]) > 0) and np.all(np.diff(values[10:101]) < 0)
    assert values.min() == 0.0 and values.max() == 1.0
    beyond = float(multiplier(schedule, 250, 100))
    assert beyond == pytest.approx(0.1)  # a run made longer stays at the floor


def test_jit_and_plain_numbers_agree():
    steps = np.arange(0, 1001, 7)
    plain = [multiplier(dataclasses.replace(CORE, warmup_steps=100), int(s), 1000) for s in steps]
    traced = jax.jit(lambda s: multiplier(dataclasses.replace(CORE, warmup_steps=100), s, 1000))(jnp.asarray(steps))
    np.testing.assert_allclose(traced, plain, rtol=2e-6, atol=1e-7)
    assert isinstance(multiplier(CORE, 3, 10_000), float)


def test_a_constant_keeps_its_peak_and_no_warmup_starts_there():
    constant = Schedule(1e-3, 0.0, warmup_steps=4, shape="constant")
    assert [multiplier(constant, s, 50) for s in (0, 2, 4, 50)] == [0.0, 0.5, 1.0, 1.0]
    traced = jax.jit(lambda s: multiplier(dataclasses.replace(constant, warmup_steps=0), s, 50))
    assert float(traced(jnp.int32(1))) == 1.0
    assert multiplier(dataclasses.replace(CORE, warmup_steps=0), 0, 50) == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peak_learning_rate", 0.0),
        ("peak_learning_rate", math.nan),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("floor", 1.5),
        ("warmup_steps", 100),
        ("warmup_steps", -1),
    ],
)
def test_impossible_schedules_are_user_errors(field, value):
    schedule = dataclasses.replace(CORE, warmup_steps=10)
    check_schedule(schedule, 100)
    with pytest.raises(UserError, match=rf"stages\.0\.schedule\.{field} is ") as error:
        check_schedule(dataclasses.replace(schedule, **{field: value}), 100, "stages.0.schedule")
    assert error.value.fix.startswith(f"--stages.0.schedule.{field.replace('_', '-')} ")


@pytest.mark.parametrize(
    "optimizer",
    [
        AdaStar(second_moment_decay=1.0),
        AdaStar(clip_norm=0.0),
        AdaStar(mup_base_width=0),
        AdamW(epsilon=math.nan),
    ],
)
def test_impossible_optimizers_are_user_errors(optimizer):
    with pytest.raises(UserError, match=r"optimizer\."):
        check_optimizer(optimizer)
    with pytest.raises(UserError):
        build(optimizer, Schedule(warmup_steps=1), 10, {}, 64)


@pytest.mark.parametrize("optimizer", [AdaStar(skip_norm=50.0), AdamW(epsilon=1e-6)])
def test_configs_survive_json_as_a_union(optimizer):
    check_optimizer(optimizer)
    assert from_json(AdaStar | AdamW, to_json(optimizer)) == optimizer

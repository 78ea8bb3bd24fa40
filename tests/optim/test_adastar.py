"""AdaStar against an independent float64 NumPy implementation of afm-recipe section 5, and rule by rule."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pomona.model.spec import Spec, map_specs
from pomona.optim.adastar import adastar, width_multiplier
from pomona.optim.build import measure, start_stage, state_shardings
from pomona.optim.config import AdaStar, Schedule
from pomona.optim.schedule import learning_rate

MODEL_DIM = 1536  # twice the base width: mu is 1/2
SPECS = {
    "embedding": Spec((64, 16), ("vocab", "model"), "embedding", 16),
    "norm": Spec((16,), ("model",), "norm"),
    "stacked_norm": Spec((3, 16), ("layers", "model"), "norm"),
    "linear": Spec((16, 24), ("model", "ffn"), "linear", 16),
    "stacked": Spec((3, 16, 4, 8), ("layers", "model", "heads", "head_dim"), "linear", 16),
}
SCHEDULE = Schedule(peak_learning_rate=0.01, weight_decay=3.16e-4, warmup_steps=5, floor=0.005)
STEPS = 20


def arrays(seed: int, scale: float = 1.0, dtype: type = np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: (scale * random.standard_normal(spec.shape)).astype(dtype) for name, spec in SPECS.items()}


def gradients_of(step: int) -> dict[str, np.ndarray]:
    """Sizes over many orders: the clips of the norm and of blocks act at some steps and not at others."""
    gradients = arrays(100 + step, scale=10.0 ** ((step % 5) - 4.5))
    gradients["linear"] = gradients["linear"] * np.float32(1e-8)
    gradients["stacked"][1] *= np.float32(1.0 + 4 * (step % 3))
    gradients["norm"][:4] = 0.0
    return gradients


def reference(params, gradient_list, schedule=SCHEDULE, total_steps=STEPS, model_dim=MODEL_DIM):
    """Section 5 in float64, one block at a time, with nothing of the implementation in it."""
    blocks = {}  # (name, layer or None) -> [theta, v, m]
    for name, value in params.items():
        layers = range(len(value)) if SPECS[name].axes[0] == "layers" else [None]
        for layer in layers:
            theta = np.asarray(value if layer is None else value[layer], np.float64)
            blocks[name, layer] = [theta, np.zeros_like(theta), np.zeros_like(theta)]
    t = 0
    for gradients in gradient_list:
        g = {
            (name, layer): np.asarray(gradients[name] if layer is None else gradients[name][layer], np.float64)
            for name, layer in blocks
        }
        with np.errstate(over="ignore", invalid="ignore"):
            norm = math.sqrt(sum(float(np.sum(x**2)) for x in g.values()))
        if not math.isfinite(norm) or norm >= 100:
            continue
        t += 1
        if t <= schedule.warmup_steps:
            share = t / schedule.warmup_steps
        else:
            angle = math.pi * (t - schedule.warmup_steps) / (total_steps - schedule.warmup_steps)
            share = schedule.floor + (1 - schedule.floor) * (1 + math.cos(angle)) / 2
        for key, block in blocks.items():
            theta, v, m = block
            clipped = g[key] * min(1.0, 1.0 / norm)
            v = 0.95 * v + 0.05 * (clipped**2 + 1e-30)
            u = clipped / np.sqrt(v / (1 - 0.95**t))
            u = u / max(1.0, math.sqrt(np.mean(u**2)))
            m = 0.95 * m + 0.05 * u
            mu = min(1.0, 768 / model_dim) if SPECS[key[0]].role == "linear" else 1.0
            rate = schedule.peak_learning_rate * mu
            block[:] = [theta - share * (rate * m + schedule.weight_decay * theta), v, m]

    def gathered(index: int) -> dict[str, np.ndarray]:
        columns: dict[str, list[np.ndarray]] = {}
        for (name, _), block in blocks.items():
            columns.setdefault(name, []).append(block[index])
        return {n: np.stack(c) if SPECS[n].axes[0] == "layers" else c[0] for n, c in columns.items()}

    return gathered(0), gathered(1), gathered(2)


@functools.cache
def optimizer_of(peak_learning_rate: float = 0.01) -> optax.GradientTransformation:
    schedule = dataclasses.replace(SCHEDULE, peak_learning_rate=peak_learning_rate)
    return adastar(AdaStar(), schedule, STEPS, SPECS, MODEL_DIM)


@functools.cache
def step_of(transformation):
    def step(params, state, gradients):
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def run(params, gradient_list, transformation=None, state=None):
    """Updates under jit with donation, as the loop does it."""
    transformation = transformation or optimizer_of()
    # Copies: donated buffers must not be the caller's.
    params = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    state = transformation.init(params) if state is None else jax.tree.map(jnp.copy, state)
    for gradients in gradient_list:
        params, state = step_of(transformation)(params, state, gradients)
    return params, state


def relative_error(actual, expected) -> float:
    """The largest over tensors of |actual - expected| / |expected|, in Euclidean norms."""
    norm = np.linalg.norm
    return max(float(norm(np.asarray(actual[n], float) - x) / norm(x)) for n, x in expected.items())


@pytest.mark.parametrize(("wide", "tolerance"), [(False, 1e-6), (True, 1e-12)])
def test_twenty_steps_equal_the_reference(wide, tolerance):
    with jax.enable_x64(wide):
        dtype = np.float64 if wide else np.float32
        params = {name: x.astype(dtype) for name, x in arrays(0).items()}
        gradients = [{n: x.astype(dtype) for n, x in gradients_of(step).items()} for step in range(STEPS)]
        actual, state = run(params, gradients)
        assert actual["linear"].dtype == dtype
    theta, v, m = reference(params, gradients)
    assert relative_error(actual, theta) < tolerance
    assert relative_error(state.first_moment, m) < tolerance
    assert relative_error(state.second_moment, v) < tolerance
    for name, expected in theta.items():
        np.testing.assert_allclose(np.asarray(actual[name]), expected, rtol=tolerance, atol=0.1 * tolerance)
    assert int(state.updates) == int(state.stage_updates) == STEPS


def test_the_reference_run_meets_every_rule():
    norms = [math.sqrt(sum(np.sum(x.astype(np.float64) ** 2) for x in gradients_of(s).values())) for s in range(STEPS)]
    assert min(norms) < 1 < max(norms) < 100  # the norm clip acts at some steps, and none is skipped


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf", "norm 100", "overflow"])
def test_a_skipped_step_changes_not_one_bit(bad):
    transformation = optimizer_of()
    start = {name: jnp.asarray(x) for name, x in arrays(0).items()}
    start["norm"] = start["norm"].at[0].set(-0.0)
    params, state = run(start, [gradients_of(0), gradients_of(1)], transformation)
    params["norm"] = params["norm"].at[0].set(-0.0)
    gradients = gradients_of(2)
    if bad == "norm 100":
        gradients = {name: np.zeros_like(x) for name, x in gradients.items()}
        gradients["linear"][0, 0] = 100.0
    elif bad == "overflow":
        gradients["linear"][0, 0] = 3e38  # finite itself, but not its square
    else:
        gradients["stacked"][2, 3, 1, 1] = float(bad)
    new_params, new_state = run(params, [gradients], transformation, state)
    for old, new in zip(jax.tree.leaves((params, state)), jax.tree.leaves((new_params, new_state)), strict=True):
        assert np.asarray(old).tobytes() == np.asarray(new).tobytes()
    after, _ = run(new_params, [gradients_of(2)], transformation, new_state)
    without, _ = run(params, [gradients_of(2)], transformation, state)
    jax.tree.map(np.testing.assert_array_equal, after, without)


def test_the_norm_just_below_a_hundred_is_applied():
    gradients = {name: np.zeros(spec.shape, np.float32) for name, spec in SPECS.items()}
    gradients["linear"][0, 0] = np.float32(99.99)
    _, state = run(arrays(0), [gradients])
    assert int(state.updates) == 1


def test_the_first_step_skipped_leaves_an_empty_state():
    gradients = {name: np.full(spec.shape, np.nan, np.float32) for name, spec in SPECS.items()}
    params, state = run(arrays(0), [gradients])
    jax.tree.map(np.testing.assert_array_equal, params, arrays(0))
    assert all(not np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(state))


def test_only_the_second_moment_is_debiased():
    # After one step v / (1 - 0.95) = g^2, so u is the sign of g; m keeps the bias: 0.05 of it.
    params, gradients = arrays(0), gradients_of(3)
    _, state = run(params, [gradients])
    for name, g in gradients.items():
        expected = np.where(g == 0, 0.0, np.sign(g))
        np.testing.assert_allclose(np.asarray(state.first_moment[name]), 0.05 * expected, rtol=1e-5, atol=1e-9)


def test_a_stack_is_clipped_layer_by_layer():
    # The first steps make v; then one layer's gradient jumps, and only that layer may be scaled down.
    names = {f"layer{i}": Spec((16, 4, 8), ("model", "heads", "head_dim"), "linear", 16) for i in range(3)}
    stacked_spec = {"stacked": SPECS["stacked"]}
    params = {"stacked": arrays(0)["stacked"]}
    gradient_list = [{"stacked": 1e-3 * arrays(7 + i)["stacked"]} for i in range(4)]
    gradient_list[-1]["stacked"][1] *= 30.0
    split = lambda tree: {name: tree["stacked"][i] for i, name in enumerate(names)}
    make = lambda specs: adastar(AdaStar(), SCHEDULE, STEPS, specs, MODEL_DIM)
    together, together_state = run(params, gradient_list, make(stacked_spec))
    apart, apart_state = run(split(params), [split(g) for g in gradient_list], make(names))
    for i, name in enumerate(names):
        for a, b in [(together, apart), (together_state.first_moment, apart_state.first_moment)]:
            np.testing.assert_allclose(a["stacked"][i], b[name], rtol=2e-6, atol=1e-8)
    # One block over the whole stack would have held the calm layers back as well.
    as_one = {"stacked": dataclasses.replace(SPECS["stacked"], axes=(None, "model", "heads", "head_dim"))}
    _, one_state = run(params, gradient_list, make(as_one))
    assert not np.allclose(one_state.first_moment["stacked"][0], together_state.first_moment["stacked"][0], rtol=1e-3)


@pytest.mark.parametrize(("model_dim", "mu"), [(512, 1.0), (768, 1.0), (1536, 0.5), (3072, 0.25)])
def test_the_width_multiplier_follows_the_role(model_dim, mu):
    assert [width_multiplier(spec, 768, model_dim) for spec in SPECS.values()] == [1.0, 1.0, 1.0, mu, mu]
    schedule = dataclasses.replace(SCHEDULE, weight_decay=0.0)
    transformation = adastar(AdaStar(), schedule, STEPS, SPECS, model_dim)
    zeros = {name: np.zeros(spec.shape, np.float32) for name, spec in SPECS.items()}
    params, state = run(zeros, [gradients_of(0)], transformation)
    for name, spec in SPECS.items():
        expected = -0.2 * 0.01 * (mu if spec.role == "linear" else 1.0) * np.asarray(state.first_moment[name])
        np.testing.assert_allclose(params[name], expected, rtol=1e-6)


def test_decay_reaches_every_parameter_and_ignores_rate_and_width():
    zeros = {name: np.zeros(spec.shape, np.float32) for name, spec in SPECS.items()}
    params = arrays(0)
    for peak in (0.01, 1.0):
        decayed, _ = run(params, [zeros], optimizer_of(peak_learning_rate=peak))
        for name, x in params.items():
            np.testing.assert_allclose(decayed[name], x * (1 - 0.2 * 3.16e-4), rtol=1e-6)


def test_a_new_stage_restarts_the_schedule_only():
    params, state = run(arrays(0), [gradients_of(s) for s in range(7)])
    new = start_stage(state)
    assert (int(new.updates), int(new.stage_updates)) == (7, 0)
    jax.tree.map(np.testing.assert_array_equal, new.second_moment, state.second_moment)
    continued = Schedule(3e-4, 1e-5, warmup_steps=2, floor=0.001)
    transformation = adastar(AdaStar(), continued, 10, SPECS, MODEL_DIM)
    after, _ = run(params, [gradients_of(8)], transformation, new)
    # By hand: the first update of the stage is at half of its peak, with the bias correction of update 8.
    name, norm = "linear", math.sqrt(sum(np.sum(x.astype(float) ** 2) for x in gradients_of(8).values()))
    g = gradients_of(8)[name].astype(float) * min(1, 1 / norm)
    v = 0.95 * np.asarray(state.second_moment[name], float) + 0.05 * (g**2 + 1e-30)
    u = g / np.sqrt(v / (1 - 0.95**8))
    m = 0.95 * np.asarray(state.first_moment[name], float) + 0.05 * u / max(1, np.sqrt(np.mean(u**2)))
    theta = np.asarray(params[name], float)
    np.testing.assert_allclose(after[name], theta - 0.5 * (3e-4 * 0.5 * m + 1e-5 * theta), rtol=1e-6, atol=1e-8)


def test_bfloat16_gradients_give_a_float32_state():
    gradients = {name: jnp.asarray(x, jnp.bfloat16) for name, x in gradients_of(1).items()}
    params, state = run(arrays(0), [gradients])
    wide = {name: np.asarray(x, np.float32) for name, x in gradients.items()}
    expected, expected_state = run(arrays(0), [wide])
    for leaf in jax.tree.leaves((params, state.first_moment, state.second_moment)):
        assert leaf.dtype == jnp.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, expected_state)


def test_sharded_parameters_take_the_same_steps():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Explicit,))
    place = lambda spec: PartitionSpec(*("fsdp" if axis == "model" else None for axis in spec.axes))
    shardings = map_specs(lambda spec: NamedSharding(mesh, place(spec)), SPECS)
    replicated = NamedSharding(mesh, PartitionSpec())
    transformation = optimizer_of()
    gradient_list = [gradients_of(s) for s in range(3)]
    expected, _ = run(arrays(0), gradient_list)

    def step(params, state, gradients):
        updates, state = transformation.update(gradients, state, params)
        return (
            optax.apply_updates(params, updates),
            state,
            measure(gradients, state, AdaStar(), SCHEDULE, STEPS),
        )

    with jax.set_mesh(mesh):
        params = jax.device_put(arrays(0), shardings)
        placed = state_shardings(transformation, params, shardings, replicated)
        state = jax.jit(transformation.init, out_shardings=placed)(params)
        step = jax.jit(step, donate_argnums=(0, 1))
        for gradients in gradient_list:
            params, state, measured = step(params, state, jax.device_put(gradients, shardings))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), params, expected)
    for tree in (params, state.first_moment, state.second_moment):
        assert jax.tree.map(lambda x: x.sharding.spec, tree) == map_specs(place, SPECS)
    for scalar in (state.updates, state.stage_updates, *measured.values()):
        assert scalar.shape == () and scalar.sharding.is_fully_replicated


def test_what_the_loop_logs():
    transformation = optimizer_of()
    params, state = run(arrays(0), [gradients_of(0), gradients_of(1)], transformation)
    gradients = gradients_of(2)
    norm = math.sqrt(sum(np.sum(x.astype(float) ** 2) for x in gradients.values()))
    params, state = run(params, [gradients], transformation, state)
    measured = {k: float(v) for k, v in measure(gradients, state, AdaStar(), SCHEDULE, STEPS).items()}
    moments = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.first_moment)]).astype(float)
    assert measured == pytest.approx(
        {
            "gradient_norm": norm,
            "learning_rate": learning_rate(SCHEDULE, 3, STEPS),
            "skipped": 0.0,
            "update_rms": math.sqrt(np.mean(moments**2)),
        },
        rel=1e-6,
    )
    gradients["norm"][0] = np.nan
    measured = measure(gradients, state, AdaStar(), SCHEDULE, STEPS)
    assert float(measured["skipped"]) == 1.0 and np.isnan(measured["gradient_norm"])

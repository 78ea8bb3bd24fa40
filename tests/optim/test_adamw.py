"""AdamW against optax's own and against NumPy, with the schedule and width rule it shares with AdaStar."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pomona.model.spec import Spec, abstract
from pomona.optim.build import build, measure, stage_updates, start_stage, state_shardings
from pomona.optim.config import AdamW, Schedule
from pomona.optim.schedule import learning_rate, multiplier

SPECS = {
    "embedding": Spec((32, 16), ("vocab", "model"), "embedding", 16),
    "stacked": Spec((2, 16, 24), ("layers", "model", "ffn"), "linear", 16),
}
SCHEDULE = Schedule(peak_learning_rate=3e-3, weight_decay=1e-3, warmup_steps=3, floor=0.1)
STEPS = 20


def arrays(seed: int, scale: float = 1.0) -> dict[str, jax.Array]:
    random = np.random.default_rng(seed)
    return {name: jnp.asarray(scale * random.standard_normal(spec.shape), jnp.float32) for name, spec in SPECS.items()}


def run(transformation, params, gradient_list, state=None):
    state = transformation.init(params) if state is None else state

    @jax.jit
    def step(params, state, gradients):
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for gradients in gradient_list:
        params, state = step(params, state, gradients)
    return params, state


def test_equal_to_optax_where_no_width_multiplier_applies():
    config = AdamW()
    gradient_list = [arrays(1 + s, scale=10.0 ** (s % 4 - 3)) for s in range(STEPS)]
    ours, _ = run(build(config, SCHEDULE, STEPS, SPECS, model_dim=512), arrays(0), gradient_list)
    peer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            lambda count: learning_rate(SCHEDULE, count + 1, STEPS),
            b1=config.first_moment_decay,
            b2=config.second_moment_decay,
            eps=config.epsilon,
            weight_decay=SCHEDULE.weight_decay / SCHEDULE.peak_learning_rate,
        ),
    )
    theirs, _ = run(peer, arrays(0), gradient_list)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ours, theirs)


def test_equal_to_numpy_with_the_width_multiplier():
    gradient_list = [arrays(1 + s, scale=10.0 ** (s % 4 - 3)) for s in range(STEPS)]
    ours, _ = run(build(AdamW(), SCHEDULE, STEPS, SPECS, model_dim=3072), arrays(0), gradient_list)
    theta = {name: np.asarray(x, np.float64) for name, x in arrays(0).items()}
    m = {name: np.zeros_like(x) for name, x in theta.items()}
    v = {name: np.zeros_like(x) for name, x in theta.items()}
    for t, gradients in enumerate(gradient_list, start=1):
        norm = np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in gradients.values()))
        share = multiplier(SCHEDULE, t, STEPS)
        for name, gradient in gradients.items():
            g = np.asarray(gradient, np.float64) * min(1.0, 1.0 / norm)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            adam = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.95**t)) + 1e-8)
            rate = 3e-3 * (768 / 3072 if name == "stacked" else 1.0)
            theta[name] = theta[name] - share * (rate * adam + 1e-3 * theta[name])
    for name, expected in theta.items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-6, atol=1e-6)


def test_a_new_stage_restarts_the_schedule_only():
    transformation = build(AdamW(), SCHEDULE, STEPS, SPECS, model_dim=512)
    params, state = run(transformation, arrays(0), [arrays(s) for s in range(5)])
    new = start_stage(state)
    assert int(stage_updates(state)) == 5 and int(stage_updates(new)) == 0
    changed = [
        jax.tree_util.keystr(path)
        for (path, old), fresh in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(new))
        if not np.array_equal(old, fresh)
    ]
    assert len(changed) == 1
    before, _ = run(transformation, params, [arrays(9)], new)
    first, _ = run(transformation, params, [arrays(9)], state)
    assert not np.allclose(before["stacked"], first["stacked"], rtol=0, atol=1e-6)


def test_measures_and_shardings_of_its_state():
    transformation = build(AdamW(), SCHEDULE, STEPS, SPECS, model_dim=512)
    _, state = run(transformation, arrays(0), [arrays(1), arrays(2)])
    measured = measure(arrays(2), state, AdamW(), SCHEDULE, STEPS)
    assert set(measured) == {"gradient_norm", "learning_rate"}
    np.testing.assert_allclose(measured["gradient_norm"], optax.tree.norm(arrays(2)), rtol=1e-6)
    np.testing.assert_allclose(measured["learning_rate"], learning_rate(SCHEDULE, 2, STEPS), rtol=1e-6)
    places = state_shardings(transformation, abstract(SPECS), {"embedding": "E", "stacked": "S"}, "everywhere")
    assert jax.tree.structure(places) == jax.tree.structure(state)
    by_shape = {SPECS["embedding"].shape: "E", SPECS["stacked"].shape: "S", (): "everywhere"}
    jax.tree.map(lambda leaf, place: np.testing.assert_equal(place, by_shape[leaf.shape]), state, places)


def test_bfloat16_gradients_are_widened_first():
    transformation = build(AdamW(), SCHEDULE, STEPS, SPECS, model_dim=512)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays(1))
    params, state = run(transformation, arrays(0), [narrow])
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    expected, expected_state = run(transformation, arrays(0), [wide])
    # Two programs: XLA may contract a product and a sum in one of them, so the last bits are the processor's.
    # Gradients that stay narrow differ by 1e-3.
    close = lambda ours, reference: np.testing.assert_allclose(ours, reference, rtol=2e-6, atol=1e-12)
    jax.tree.map(close, (params, state), (expected, expected_state))
    assert params["stacked"].dtype == jnp.float32

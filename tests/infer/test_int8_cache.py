"""The int8 cache against the float one: the error of a number is half a step, and what follows stays within it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.infer.attention import Seen, attend
from pomona.infer.cache import Int8, cache_bytes, empty_cache, quantize
from pomona.infer.generate import generate
from pomona.infer.slots import Setting, _hidden, _logits
from pomona.model.config import Architecture, Execution, resolve
from pomona.model.decoder import parameter_specs
from pomona.model.sampling import Sampling
from pomona.model.spec import initialize

ARCHITECTURE = Architecture(97, 32, 3, 4, 2, 16, 48)
EXECUTION = resolve(Execution(layers="scanned"), "cpu")


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: x * 1.5, initialize(parameter_specs(ARCHITECTURE), jax.random.key(3)))


def numbers(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * np.exp(rng.normal(size=(*shape[:-1], 1)) * 3)).astype(np.float32)


def test_every_number_is_within_half_a_step_of_its_head_and_token():
    x = numbers(2, 5, 3, 16)
    x[0, 0, 0] = 0
    packed = quantize(jnp.asarray(x))
    assert packed.integers.dtype == jnp.int8 and packed.scales.shape == (2, 5, 3)
    steps = np.abs(x).max(axis=-1) / 127
    back = np.asarray(packed.integers, np.float64) * np.asarray(packed.scales, np.float64)[..., None]
    assert (np.abs(back - x) <= steps[..., None] * (0.5 + 1e-5)).all()
    assert np.abs(np.asarray(packed.integers)).max(axis=-1).reshape(-1)[1:].min() == 127, "the whole range is used"
    assert not np.asarray(packed.integers)[0, 0, 0].any() and packed.scales[0, 0, 0] == 0


def test_attention_is_that_over_the_numbers_the_cache_holds():
    q, k, v = numbers(2, 3, 4, 16, seed=1) / 4, numbers(2, 7, 2, 16, seed=2) / 4, numbers(2, 7, 2, 16, seed=3)
    visible = np.tril(np.ones((3, 7), bool), 4)[None].repeat(2, 0)
    keys, values = quantize(jnp.asarray(k)), quantize(jnp.asarray(v))
    cut = lambda x, part: jax.tree.map(lambda leaf: leaf.swapaxes(1, 2)[:, :, part], x)  # [B, K, S, H]
    parts = [
        Seen(cut(keys, part), cut(values, part), jnp.asarray(visible[..., part])) for part in (slice(4), slice(4, 7))
    ]
    out = attend(jnp.asarray(q), *parts)
    k, v = (np.asarray(x.integers, np.float64) * np.asarray(x.scales, np.float64)[..., None] for x in (keys, values))
    for b in range(2):
        for n in range(4):
            scores = q[b, :, n].astype(np.float64) @ k[b, :, n // 2].T / 4
            weights = np.where(visible[b], np.exp(scores - scores.max(axis=1, keepdims=True)), 0)
            weights /= weights.sum(axis=1, keepdims=True)
            expected = weights @ v[b, :, n // 2]
            np.testing.assert_allclose(out[b, :, n], expected, rtol=2e-4, atol=1e-5 * np.abs(v).max())


def test_logits_move_by_no_more_than_rounding_the_cache_can_move_them(params):
    """The bound is measured, not chosen: the float cache with each number moved by half its step, in random ways."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 97, (2, 20)))
    execution = resolve(Execution(layers="scanned"), "cpu")
    setting = Setting(ARCHITECTURE, execution, 1e4)
    step = jax.jit(lambda tokens, first, cache: _hidden(params, tokens, None, first, cache, setting, 24))

    def last(dtype, shake=None):
        cache = empty_cache(ARCHITECTURE, 2, 24, dtype, "scanned")
        _, cache = step(tokens[:, :19], jnp.zeros(2, jnp.int32), cache)
        if shake is not None:
            cache = shake(cache)
        hidden, cache = step(tokens[:, 19:], jnp.full(2, 19), cache)
        return np.asarray(_logits(params, hidden[:, -1])), cache

    exact, _ = last(jnp.float32)
    rounded, cache = last(jnp.int8)
    assert isinstance(cache.keys, Int8) and cache.keys.integers.dtype == jnp.int8

    def shaker(seed):
        rng = np.random.default_rng(seed)

        def moved(x):
            half = np.abs(x).max(axis=-1, keepdims=True) / 254
            return x + half * rng.choice([-1, 1], x.shape).astype(np.float32)

        return lambda cache: cache.__class__(moved(cache.keys), moved(cache.values))

    worst = max(np.abs(last(jnp.float32, shaker(seed))[0] - exact).max() for seed in range(4))
    moved = np.abs(rounded - exact).max()
    assert 0 < moved < 2 * worst, (moved, worst)


def test_it_generates_and_takes_a_quarter_of_the_memory(params):
    options = {"rope_base": 1e4, "max_tokens": 8, "sampling": Sampling(temperature=0)}
    prompts = [[1, 5, 9, 60], [1, 70]]
    rounded = generate(params, prompts, ARCHITECTURE, EXECUTION, cache_dtype="int8", **options)
    cache = empty_cache(ARCHITECTURE, 1, 12, jnp.int8, "scanned")
    setting = Setting(ARCHITECTURE, EXECUTION, 1e4)
    step = jax.jit(lambda tokens, first, cache: _hidden(params, tokens, None, first, cache, setting, 12))
    tokens, first = prompts[0], 0
    for expected in rounded[0]:  # token by token, in place of several in a dispatch
        hidden, cache = step(jnp.asarray([tokens]), jnp.asarray([first]), cache)
        first, tokens = first + len(tokens), [int(np.argmax(_logits(params, hidden[0, -1])))]
        assert tokens == [expected]
    sizes = [
        sum(x.nbytes for x in jax.tree.leaves(empty_cache(ARCHITECTURE, 2, 64, dtype, "scanned")))
        for dtype in (jnp.float32, jnp.int8)
    ]
    assert sizes == [cache_bytes(ARCHITECTURE, 2, 64, dtype) for dtype in (jnp.float32, jnp.int8)]
    assert sizes[1] / sizes[0] == pytest.approx(1 / 4 + 1 / 16, abs=0.01), "four bytes a scale for 16 numbers"

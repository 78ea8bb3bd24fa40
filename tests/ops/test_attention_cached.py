"""Attention over a cache by the kernel, interpreted, against float64 NumPy; and what it does not look at.

Shapes: L layers, B sequences of the cache, R sequences of this call, T new tokens, S cache columns, N query heads, K
key-value heads, H head.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.core.fleet import parse_fleet
from pomona.infer.cache import quantize
from pomona.ops import attention_cached
from pomona.ops.attention_cached import Columns, attend
from pomona.plan.topology import prepare_environment, topology_devices

L, B, LAYER = 2, 3, 1


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that a few columns are several blocks."""
    for name, size in {"COLUMNS": 32, "COLUMNS_OF_FEW_ROWS": 48, "MOST_ROWS": 32, "FEW_ROWS": 16}.items():
        monkeypatch.setattr(attention_cached, name, size)


def numbers(S, T, R, N=4, K=2, H=16, dtype=np.float32):
    """Queries, cached keys and values, own keys and values."""
    rng = np.random.default_rng(S + T)
    shapes = (R, T, N, H), (L, B, K, S, H), (L, B, K, S, H), (R, K, T, H), (R, K, T, H)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def packed(keys, values):
    """As a cache of integers keeps them, and what they stand for."""
    keys, values = quantize(keys), quantize(values)
    stand_for = [
        np.asarray(x.integers, np.float64) * np.asarray(x.scales, np.float64)[..., None] for x in (keys, values)
    ]
    return Columns(keys.integers, values.integers, keys.scales, values.scales), *stand_for


def by_definition(q, keys, values, own_keys, own_values, sequences, filled):
    """[R, T, N, H] in float64: softmax over what is filled, and the tokens up to itself."""
    q, keys, values, own_keys, own_values = (np.asarray(x, np.float64) for x in (q, keys, values, own_keys, own_values))
    (R, T, N, H), K = q.shape, keys.shape[2]
    out = np.empty_like(q)
    for r, t, n in np.ndindex(R, T, N):
        head, at = n * K // N, (LAYER, sequences[r], n * K // N)
        seen = np.concatenate([keys[at][: filled[r]], own_keys[r, head, : t + 1]])
        weights = np.exp(seen @ q[r, t, n] / H**0.5)
        out[r, t, n] = weights / weights.sum() @ np.concatenate([values[at][: filled[r]], own_values[r, head, : t + 1]])
    return out


@pytest.mark.parametrize(
    ("S", "span", "T", "sequences", "filled"),
    [
        (96, 96, 1, (0, 1, 2), (0, 5, 96)),  # a step: nothing yet, a part of a block, two whole blocks
        (100, 100, 1, (0, 1, 2), (97, 48, 100)),  # the last block goes beyond the cache's end
        (200, 64, 1, (0, 1, 2), (64, 63, 49)),  # as much as is looked at
        (100, 80, 3, (0, 1, 2), (0, 33, 77)),  # guesses
        (100, 100, 40, (2,), (60,)),  # a piece of a prompt: blocks of rows with two heads, several own blocks
        (100, 100, 64, (1,), (36,)),  # blocks of rows of one head
        (100, 16, 64, (1,), (0,)),  # the first piece
    ],
)
@pytest.mark.parametrize("kept", ["numbers", "integers"])
def test_it_is_attention_over_what_is_filled(S, span, T, sequences, filled, kept):
    q, keys, values, own_keys, own_values = numbers(S, T, len(sequences))
    cached, own = Columns(keys, values), Columns(own_keys, own_values)
    if kept == "integers":
        (cached, keys, values), (own, own_keys, own_values) = packed(keys, values), packed(own_keys, own_values)
    out = attend(q, cached, own, LAYER, jnp.asarray(sequences), jnp.asarray(filled), span, interpret=True)
    expected = by_definition(q, keys, values, own_keys, own_values, sequences, filled)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_bfloat16_stays_near():
    q, *others = numbers(100, 3, 3, dtype=jnp.bfloat16)
    filled = (0, 33, 77)
    out = attend(
        q, Columns(*others[:2]), Columns(*others[2:]), LAYER, jnp.arange(3), jnp.asarray(filled), 100, interpret=True
    )
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), by_definition(q, *others, range(3), filled), atol=3e-2)


def test_what_is_not_filled_may_be_anything():
    """What a slot held before, or no number at all: as long as no block that is read has it, nothing comes of it."""
    q, keys, values, own_keys, own_values = numbers(96, 1, 3)
    own, filled = Columns(own_keys, own_values), jnp.asarray((0, 40, 48))
    call = lambda *cached: attend(q, Columns(*cached), own, LAYER, jnp.arange(3), filled, 96, interpret=True)
    old = [x.at[:, :, :, 48:].set(jnp.nan).at[0].set(jnp.nan).at[:, 1, :, 40:48].set(1e4) for x in (keys, values)]
    assert np.array_equal(call(keys, values), call(*old))


def test_layer_and_sequences_and_lengths_are_data():
    q, *others = numbers(64, 1, 2)
    call = jax.jit(lambda *data: attend(q, Columns(*others[:2]), Columns(*others[2:]), *data, 64, interpret=True))
    for layer, sequences, filled in ((0, (2, 0), (3, 60)), (1, (1, 1), (0, 64))):
        found = call(jnp.asarray(layer), jnp.asarray(sequences), jnp.asarray(filled))
        turned = [x[::-1] if layer == 0 else x for x in others[:2]]
        np.testing.assert_allclose(found, by_definition(q, *turned, *others[2:], sequences, filled), atol=2e-6)
    assert call._cache_size() == 1


@pytest.mark.tpu
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5p:2x2x1", "v5e:2x4", "v6e:2x4"])
@pytest.mark.parametrize("kept", ["bfloat16", "int8"])
@pytest.mark.parametrize(
    ("R", "T", "N", "K", "S", "H"), [(8, 1, 8, 1, 4096, 128), (3, 5, 8, 2, 1000, 64), (1, 1024, 16, 2, 4096, 128)]
)
def test_tpus_take_it_at_its_real_sizes(chip, kept, R, T, N, K, S, H, monkeypatch):
    """A step, guesses, a piece of a prompt: by the real compiler, which refuses what on-chip memory does not hold."""
    monkeypatch.undo()
    prepare_environment()
    here = jax.sharding.SingleDeviceSharding(topology_devices(parse_fleet(chip))[0])
    array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=here)
    shapes = [(L, R, K, S, H)] * 2 + [(R, K, T, H)] * 2
    sides = [array(jnp.dtype(kept), *shape) for shape in shapes]
    scales = [array(jnp.float32, *shape[:-1]) for shape in shapes] if kept == "int8" else [None] * 4
    cached, own = Columns(*sides[:2], *scales[:2]), Columns(*sides[2:], *scales[2:])
    row = array(jnp.int32, R)
    data = (array(jnp.bfloat16, R, T, N, H), cached, own, array(jnp.int32), row, row)
    compiled = jax.jit(lambda *data: attend(*data, S)).lower(*data).compile()
    assert "cached_attention" in compiled.as_text()
    one_layer = 2 * R * K * S * H * sides[0].dtype.itemsize
    assert compiled.memory_analysis().temp_size_in_bytes < max(one_layer, 16 << 20), "nothing is cut out of the cache"

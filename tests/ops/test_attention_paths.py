"""Every attention path against a float64 NumPy loop, values and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from pomona.core.errors import UserError
from pomona.ops import attention_blocked, attention_splash
from pomona.ops.attention import attention


def brute_force(q, k, v, q_segments, k_segments, offset=0):
    """One query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    q_segments, k_segments = np.asarray(q_segments), np.asarray(k_segments)
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = [s for s in range(min(t + offset + 1, k.shape[1])) if k_segments[b, s] == q_segments[b, t]]
        if keys:
            scores = np.array([q[b, t, n] @ k[b, s, n // group] for s in keys]) / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, t, n] = (weights / weights.sum()) @ v[b, keys, n // group]
    return out


def inputs(B=2, T=9, S=None, N=4, K=2, H=6, seed=0):
    rng = np.random.default_rng(seed)
    S = S or T
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    segments = np.sort(rng.integers(1, 4, (B, S)), axis=1)
    segments[-1, S - S // 4 :] = 0  # padding at the end
    return draw(B, T, N, H), draw(B, S, K, H), draw(B, S, K, H), jnp.asarray(segments)


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("length", [1, 9, 16])
def test_equal_to_the_brute_force(implementation, heads, length, monkeypatch):
    monkeypatch.setattr(attention_blocked, "BLOCK", 4)  # 9 is no multiple of it
    q, k, v, segments = inputs(T=length, N=heads[0], K=heads[1])
    out = attention(q, k, v, segments, segments, implementation=implementation)
    np.testing.assert_allclose(out, brute_force(q, k, v, segments, segments), atol=2e-6)


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
@pytest.mark.parametrize("traced", [True, False])
def test_an_offset_places_queries_among_the_keys(implementation, traced, monkeypatch):
    monkeypatch.setattr(attention_blocked, "BLOCK", 4)
    q, k, v, segments = inputs(T=6, S=18)
    mine = segments[:, 12:]
    call = lambda offset: attention(q, k, v, mine, segments, q_offset=offset, implementation=implementation)
    out = jax.jit(call)(jnp.int32(12)) if traced else call(12)
    np.testing.assert_allclose(out, brute_force(q, k, v, mine, segments, 12), atol=2e-6)


def test_blocked_gradients_are_those_of_the_reference(monkeypatch):
    monkeypatch.setattr(attention_blocked, "BLOCK", 4)
    q, k, v, segments = inputs(T=13, N=6, K=2)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def gradients(implementation):
        loss = lambda *qkv: jnp.sum(direction * attention(*qkv, segments, segments, implementation=implementation))
        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    for ours, reference in zip(gradients("blocked"), gradients("reference")):
        np.testing.assert_allclose(ours, reference, atol=5e-6)


def test_bfloat16_stays_near():
    q, k, v, segments = inputs(T=16, H=8)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    out = attention(*half, segments, segments, implementation="blocked")
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), brute_force(*half, segments, segments), atol=3e-2)


def test_splash_in_its_interpreter():
    q, k, v, segments = inputs(B=1, T=256, N=4, K=2, H=128)
    out = attention_splash.attend(q, k, v, segments, segments, block=128, interpret=True)
    expected = attention(q, k, v, segments, segments, implementation="reference")
    np.testing.assert_allclose(out, expected, atol=2e-3)


def test_splash_takes_one_shard_of_the_queries_after_another():
    q, k, v, segments = inputs(B=1, T=512, N=2, K=1, H=128)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)
    cut = lambda x, offset: jax.lax.dynamic_slice_in_dim(x, offset, 128, axis=1)

    @jax.jit
    def shard(q, k, v, offset):
        """As a device of a sharded sequence sees it: the offset is traced."""

        def local(q, k, v):
            return attention_splash.attend(q, k, v, cut(segments, offset), segments, offset, block=128, interpret=True)

        out, pull = jax.vjp(local, cut(q, offset), k, v)
        return out, pull(cut(direction, offset))

    outs, gradients = zip(*(shard(q, k, v, jnp.int32(offset)) for offset in range(0, 512, 128)))
    np.testing.assert_allclose(jnp.concatenate(outs, axis=1), brute_force(q, k, v, segments, segments), atol=2e-3)
    call = lambda q, k, v: attention(q, k, v, segments, segments, implementation="reference")
    expected_q, *expected = jax.vjp(call, q, k, v)[1](direction)
    of_q, *of_keys = zip(*gradients)
    np.testing.assert_allclose(jnp.concatenate(of_q, axis=1), expected_q, atol=1e-2)
    for ours, reference in zip(of_keys, expected, strict=True):
        np.testing.assert_allclose(sum(ours), reference, atol=1e-2)


def kernels(call, kept, arguments, platform, name):
    """How often a kernel of this name is in the program of a gradient that keeps what bears one of the names; all
    where they are None."""
    if kept is not None:
        call = jax.checkpoint(call, policy=jax.checkpoint_policies.save_only_these_names(*kept))
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(call(*a) ** 2), argnums=(0, 1, 2)))
    return len(re.findall(name, gradient.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()))


def test_a_policy_that_keeps_attention_runs_splash_once():
    *arguments, segments = inputs(B=1, T=128, N=2, K=1, H=128)
    call = lambda q, k, v: attention(q, k, v, segments, segments, implementation="splash")
    forward = 'kernel_name = "splash_mha_fwd'
    assert [kernels(call, kept, arguments, "tpu", forward) for kept in (None, (), ("attention",))] == [1, 2, 1]


def test_cudnn_runs_again_whatever_a_policy_keeps(monkeypatch):
    """Its log-normalisers have no name; `plan.work.Layout.again` counts it so."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda *_: True)
    *arguments, segments = inputs(B=1, T=128, N=2, K=1, H=64)
    arguments = [x.astype(jnp.bfloat16) for x in arguments]
    call = lambda q, k, v: attention(q, k, v, segments, segments, implementation="cudnn")
    forward = r"@__cudnn\$fmha\w*Softmax\("
    assert [kernels(call, kept, arguments, "cuda", forward) for kept in (None, (), ("attention",))] == [1, 2, 2]


def test_cudnn_refuses_a_sharded_sequence():
    q, k, v, segments = inputs()
    with pytest.raises(UserError, match="sharded sequence"):
        attention(q, k, v, segments, segments, q_offset=4, implementation="cudnn")


def test_splash_refuses_shards_whose_square_does_not_divide_the_sequence():
    q, k, v, segments = inputs(B=1, T=128, S=384, N=2, K=2, H=128)
    with pytest.raises(UserError, match="384 keys in 3 parts"):
        attention(q, k, v, segments[:, :128], segments, q_offset=128, implementation="splash")

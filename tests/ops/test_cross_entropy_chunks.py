"""Chunked cross-entropy, its gradients and its sharded vocabulary against NumPy in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pomona.ops.cross_entropy import cross_entropy

Z = 1e-2  # large enough to show in the numbers


def problem(M=13, D=8, V=22):
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 2, M).astype(np.float32)
    return rng.normal(size=(M, D)), rng.normal(size=(V, D)), rng.integers(0, V, M), weights


def brute_force(hidden, table, targets, weights):
    """(nll, z, d hidden, d table) of the sum, in float64."""
    logits = hidden @ table.T
    normaliser = np.log(np.exp(logits).sum(-1))
    nll = (weights * (normaliser - logits[np.arange(len(targets)), targets])).sum()
    z = (weights * Z * normaliser**2).sum()
    softmax = np.exp(logits - normaliser[:, None])
    d_logits = softmax * (weights * (1 + 2 * Z * normaliser))[:, None]
    d_logits[np.arange(len(targets)), targets] -= weights
    return nll, z, d_logits @ table, d_logits.T @ hidden


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
def test_values_and_gradients(chunk):
    hidden, table, targets, weights = problem()
    expected = brute_force(hidden, table, targets, weights)
    call = partial(cross_entropy, targets_M=jnp.asarray(targets), weights_M=weights, z_loss=Z, chunk_tokens=chunk)
    args = jnp.asarray(hidden, jnp.float32), jnp.asarray(table, jnp.float32)
    total, nll, z = call(*args)
    np.testing.assert_allclose([nll, z, total], [expected[0], expected[1], expected[0] + expected[1]], rtol=1e-5)
    gradients = jax.grad(lambda h, t: 3 * call(h, t)[0], argnums=(0, 1))(*args)
    for ours, reference in zip(gradients, expected[2:]):
        np.testing.assert_allclose(ours, 3 * reference, atol=3e-5)


def test_a_sharded_vocabulary_gives_the_same():
    hidden, table, targets, weights = problem()
    expected = brute_force(hidden, table, targets, weights)
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])

    def local(hidden, table, targets, weights):
        return cross_entropy(hidden, table, targets, weights, z_loss=Z, chunk_tokens=4, vocab_axis="tensor")[0]

    none, rows = PartitionSpec(), PartitionSpec("tensor")
    with jax.set_mesh(mesh):
        sharded = jax.shard_map(local, in_specs=(none, rows, none, none), out_specs=none, check_vma=False)
        table_sharded = jax.device_put(jnp.asarray(table, jnp.float32), jax.NamedSharding(mesh, rows))
        call = lambda h, t: sharded(h, t, jnp.asarray(targets), jnp.asarray(weights))
        total, gradients = jax.value_and_grad(call, argnums=(0, 1))(jnp.asarray(hidden, jnp.float32), table_sharded)
    np.testing.assert_allclose(total, expected[0] + expected[1], rtol=1e-5)
    for ours, reference in zip(gradients, expected[2:]):
        np.testing.assert_allclose(ours, reference, atol=1e-5)


def test_no_logits_of_all_tokens_exist():
    hidden, table, targets, weights = problem(M=4096, D=8, V=512)
    args = [jnp.asarray(x, jnp.float32) for x in (hidden, table)]
    loss = lambda h, t: cross_entropy(h, t, jnp.asarray(targets), weights, z_loss=Z, chunk_tokens=64)[0]
    memory = jax.jit(jax.grad(loss)).lower(*args).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4096 * 512 * 4 / 4

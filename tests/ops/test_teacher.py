"""A student's losses and their gradients, and the teacher's most likely tokens, against NumPy in float64."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pomona.ops.cross_entropy import cross_entropy
from pomona.ops.teacher import taught_cross_entropy, top_token

Z, SHARE = 1e-2, 0.9


def problem(M=13, D=8, E=6, V=22):
    rng = np.random.default_rng(0)
    student, teacher = ((rng.normal(size=(M, size)), rng.normal(size=(V, size))) for size in (D, E))
    targets, weights = rng.integers(0, V, M), rng.integers(0, 2, M).astype(np.float64)
    return student, teacher, targets, weights


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def brute_force(student, targets, weights, wanted, temperature=1.0):
    """(total, nll, z, d hidden, d table): SHARE * t^2 * KL(wanted || student at t) + (1 - SHARE) * nll + z, where a
    one-hot `wanted` gives the cross-entropy with it, since it has no entropy of its own."""
    hidden, table = student
    logits = hidden @ table.T
    logs, soft = log_softmax(logits), log_softmax(logits / temperature)
    normaliser = np.log(np.exp(logits).sum(-1))
    nll = -logs[np.arange(len(targets)), targets]
    entropy = np.where(wanted > 0, wanted * np.log(np.where(wanted > 0, wanted, 1)), 0).sum(-1)
    divergence = entropy - (wanted * soft).sum(-1)
    z = (weights * Z * normaliser**2).sum()
    total = (weights * (SHARE * temperature**2 * divergence + (1 - SHARE) * nll)).sum() + z
    one_hot = np.eye(len(table))[targets]
    d_logits = SHARE * temperature * (np.exp(soft) - wanted) + (1 - SHARE) * (np.exp(logs) - one_hot)
    d_logits = weights[:, None] * (d_logits + 2 * Z * normaliser[:, None] * np.exp(logs))
    return total, (weights * nll).sum(), z, d_logits @ table, d_logits.T @ hidden


def floats(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def check(loss, student, expected):
    """`loss` of (hidden, table) has these sums and, three times over, these gradients."""
    args = floats(*student)
    np.testing.assert_allclose(jax.jit(loss)(*args), expected[:3], rtol=2e-5)
    gradients = jax.jit(jax.grad(lambda h, t: 3 * loss(h, t)[0], argnums=(0, 1)))(*args)
    for ours, reference in zip(gradients, expected[3:], strict=True):
        np.testing.assert_allclose(ours, 3 * reference, atol=5e-5)


@contextlib.contextmanager
def two_shards(sharded=True):
    """Inside, `by_vocabulary` has two devices; without `sharded` it is not to be used."""
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh) if sharded else contextlib.nullcontext():
        yield


def by_vocabulary(loss, tables):
    """`loss` with the arguments at these places sharded by their rows."""

    def call(*args):
        specs = tuple(PartitionSpec("tensor") if i in tables else PartitionSpec() for i in range(len(args)))
        placed = [jax.sharding.reshard(x, spec) for x, spec in zip(args, specs)]
        return jax.shard_map(loss, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)(*placed)

    return call


@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_the_teachers_most_likely_token_beside_the_label(chunk, sharded):
    student, teacher, targets, weights = problem()
    taught = np.argmax(teacher[0] @ teacher[1].T, axis=-1)
    expected = brute_force(student, targets, weights, np.eye(22)[taught])
    how = {"z_loss": Z, "chunk_tokens": chunk, "taught_share": SHARE, "vocab_axis": "tensor" if sharded else None}

    def loss(hidden, table, targets, weights, taught):
        return cross_entropy(hidden, table, targets, weights, taught_M=taught, **how)

    call = by_vocabulary(loss, {1}) if sharded else loss
    with two_shards(sharded):
        rest = jnp.asarray(targets), *floats(weights), jnp.asarray(taught)
        check(lambda hidden, table: call(hidden, table, *rest), student, expected)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_the_teachers_whole_distribution(temperature, sharded):
    student, teacher, targets, weights = problem()
    wanted = np.exp(log_softmax(teacher[0] @ teacher[1].T / temperature))
    expected = brute_force(student, targets, weights, wanted, temperature)
    how = {"share": SHARE, "temperature": temperature, "z_loss": Z, "chunk_tokens": 4}

    loss = partial(taught_cross_entropy, vocab_axis="tensor" if sharded else None, **how)
    call = by_vocabulary(loss, {1, 3}) if sharded else loss
    with two_shards(sharded):
        rest = *floats(*teacher), jnp.asarray(targets), *floats(weights)
        check(lambda hidden, table: call(hidden, table, *rest), student, expected)
        to_teacher = jax.jit(jax.grad(lambda h, t: call(*floats(*student), h, t, *rest[2:])[0], argnums=(0, 1)))(
            *rest[:2]
        )
    assert not any(np.any(gradient) for gradient in to_teacher)


def test_a_student_that_is_its_teacher_is_at_the_minimum():
    (hidden, table), _, targets, weights = problem()
    args = floats(hidden, table)
    how = {"share": 1.0, "temperature": 1.0, "z_loss": 0.0, "chunk_tokens": 5}
    loss = lambda h, t: taught_cross_entropy(h, t, *args, jnp.asarray(targets), *floats(weights), **how)[0]
    assert abs(loss(*args)) < 1e-5
    for gradient in jax.grad(loss, argnums=(0, 1))(*args):
        np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("chunk", [4, 100])
def test_top_tokens(chunk):
    _, (hidden, table), _, _ = problem(M=37)
    table[15] = table[3]  # an equal of a token on the other shard: the lower id counts
    hidden[0] = 9 * table[3]
    expected = np.argmax(hidden @ table.T, axis=-1)
    assert expected[0] == 3
    args = floats(hidden, table)
    assert np.array_equal(top_token(*args, chunk_tokens=chunk), expected)
    sharded = by_vocabulary(partial(top_token, chunk_tokens=chunk, vocab_axis="tensor"), {1})
    with two_shards():
        assert np.array_equal(sharded(*floats(hidden, table)), expected)


def test_no_logits_of_all_tokens_exist():
    student, teacher, targets, weights = problem(M=4096, V=512)
    how = {"share": SHARE, "temperature": 2.0, "z_loss": Z, "chunk_tokens": 64}
    rest = *floats(*teacher), jnp.asarray(targets), *floats(weights)
    gradient = jax.grad(lambda h, t: taught_cross_entropy(h, t, *rest, **how)[0], argnums=(0, 1))
    for function, args in (
        (gradient, floats(*student)),
        (partial(top_token, chunk_tokens=64), floats(*teacher)),
    ):
        memory = jax.jit(function).lower(*args).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 4096 * 512 * 4 / 4

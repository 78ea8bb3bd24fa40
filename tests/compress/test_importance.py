"""Importance: squared gradients against finite differences, squared inputs against a float64 NumPy decoder."""

from operator import attrgetter

import jax
import numpy as np
import pytest

from pomona.compress import importance
from pomona.compress.importance import Measured, measure, read
from pomona.data.loader import Batch
from pomona.model.config import PROJECTIONS, Architecture, Execution, resolve
from pomona.model.decoder import parameter_specs
from pomona.model.objective import TokenBatch, next_token_loss
from pomona.model.spec import initialize

SHAPE = Architecture(vocab_size=50, model_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=24)
EXECUTION = resolve(Execution(attention="reference", layers="scanned"), "cpu")  # which compiles fast
BASE, SAMPLES, TOKENS = 10_000.0, 3, 12


class Sequences:
    """Two documents and some padding in every sequence."""

    def batch(self, step):
        rng = np.random.default_rng(step)
        ids = rng.integers(0, 50, (1, TOKENS + 1)).astype(np.int32)
        segments = np.array([[1] * 5 + [2] * 4 + [0] * 3], np.int32)
        positions = np.array([[*range(5), *range(4), 0, 0, 0]], np.int32)
        return Batch(ids[:, :-1], ids[:, 1:], segments, positions)


def parameters():
    params = initialize(parameter_specs(SHAPE), jax.random.key(0))
    scramble = lambda x: x * (1 + 0.3 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32))
    return jax.tree.map(scramble, params)


def importance_of(weights, place, params):
    """h of every projection, [L, I, O] or [L, I, 1], as the stage reads it from disk."""
    measure(weights, Measured(params, SHAPE, EXECUTION, BASE, Sequences(), SAMPLES), place, lambda text: None)
    return {name: np.stack([read(place, name, layer) for layer in range(2)]) for name in PROJECTIONS}


def test_fisher_is_the_sum_of_squared_differences_of_the_loss_per_token(tmp_path):
    params = parameters()
    found = importance_of("fisher", tmp_path, params)
    each = [Sequences().batch(step) for step in range(SAMPLES)]
    batches = [TokenBatch(b.tokens, b.targets, b.segments, b.positions) for b in each]
    loss = jax.jit(lambda p, batch: next_token_loss(p, batch, SHAPE, EXECUTION, BASE).total)
    for name in PROJECTIONS:
        leaf = attrgetter(name)(params.layers)
        assert found[name].shape[0] == 2 and found[name].size == leaf.size
        place = int(np.argmax(found[name]))  # a gradient that float32 differences can see
        total = 0.0
        for batch in batches:
            slope = 0.0
            for steps, factor in ((1, 8), (-1, -8), (2, -1), (-2, 1)):  # exact up to the fourth order
                moved = np.array(leaf)
                moved.reshape(-1)[place] += 0.01 * steps
                changed = jax.tree.map(lambda x: moved if x is leaf else x, params)
                slope += factor * float(loss(changed, batch)) / 0.12
            total += slope**2
        assert float(found[name].reshape(-1)[place]) == pytest.approx(total / (9 * SAMPLES), rel=0.02), name


def numpy_inputs(params, batch):
    """The inputs of every projection in a decoder written out in float64: name -> [L] of [tokens, I]."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    norm = lambda x, w: x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + SHAPE.norm_epsilon) * w
    angle = batch.positions[0][:, None] * BASE ** (-np.arange(4) / 4)

    def turn(x_TNH):
        a, b = x_TNH[..., :4], x_TNH[..., 4:]
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    segments = batch.segments[0]
    allowed = np.tri(TOKENS, dtype=bool) & (segments[:, None] == segments[None, :])
    x, found = p.embedding[batch.tokens[0]], {name: [] for name in PROJECTIONS}
    for index in range(2):
        a, f = (jax.tree.map(lambda leaf: leaf[index], part) for part in (p.layers.attention, p.layers.ffn))
        h = norm(x, p.layers.attention_norm[index])
        q, k, v = (np.einsum("td,dnh->tnh", h, w) for w in (a.query, a.key, a.value))
        q, k = turn(norm(q, a.query_norm)), turn(norm(k, a.key_norm))
        k, v = np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1)
        scores = np.where(allowed, np.einsum("tnh,snh->nts", q, k) / np.sqrt(8), -1e30)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = np.einsum("nts,snh->tnh", shares / shares.sum(axis=-1, keepdims=True), v)
        x = x + np.einsum("tnh,nhd->td", out, a.output)
        h2 = norm(x, p.layers.ffn_norm[index])
        gate, up = h2 @ f.gate, h2 @ f.up
        inner = gate / (1 + np.exp(-gate)) * up
        x = x + inner @ f.down
        for name, value in zip(PROJECTIONS, (h, h, h, out.reshape(TOKENS, -1), h2, h2, inner)):
            found[name].append(value)
    return p, found


def test_activation_is_the_mean_square_of_the_inputs_over_that_of_the_outputs(tmp_path):
    params = parameters()
    found = importance_of("activation", tmp_path, params)
    inputs, outputs = dict.fromkeys(PROJECTIONS, 0.0), dict.fromkeys(PROJECTIONS, 0.0)
    for step in range(SAMPLES):
        batch = Sequences().batch(step)
        wide, each = numpy_inputs(params, batch)
        real = batch.segments[0] > 0
        for name in PROJECTIONS:
            x = np.stack(each[name])[:, real]
            weight = attrgetter(name)(wide.layers).reshape(2, x.shape[-1], -1)
            inputs[name] = inputs[name] + np.sum(x**2, axis=1)
            outputs[name] = outputs[name] + np.mean(np.sum((x @ weight) ** 2, axis=1), axis=1)
    for name in PROJECTIONS:
        expected = inputs[name] / outputs[name][:, None]
        np.testing.assert_allclose(found[name][:, :, 0], expected, rtol=2e-4, err_msg=name)


@pytest.mark.parametrize("weights", ["fisher", "activation"])
@pytest.mark.parametrize("at_once", [1, 2])
def test_however_many_sequences_at_once_and_wherever_it_is_killed_the_sums_are_the_same(
    tmp_path, monkeypatch, weights, at_once
):
    params = parameters()
    whole = importance_of(weights, tmp_path / "whole", params)
    monkeypatch.setattr(importance, "TOKENS_AT_ONCE", at_once * TOKENS)
    for killed_after in range(4):
        place, written = tmp_path / str(killed_after), []

        def write(path, sums, samples, real=importance._write):
            if len(written) == killed_after:
                raise KeyboardInterrupt
            written.append(path.name)
            real(path, sums, samples)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(importance, "_write", write)
            importance_of(weights, place, params)
        found = importance_of(weights, place, params)
        for name in PROJECTIONS:
            np.testing.assert_array_equal(found[name], whole[name], err_msg=f"{name} after {written}")
        assert sorted(path.name for path in place.iterdir()) == ["layers.00.npz", "layers.01.npz"]

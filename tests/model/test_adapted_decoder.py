"""The decoder with palettized weights and adapters computes what it computes with the dense weights they stand for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.model import spec
from pomona.model.adapter import (
    Adapter,
    Factors,
    adapter_specs,
    attach,
    attach_bank,
    base_axes,
    map_projections,
    palettized_shapes,
    projection,
)
from pomona.model.config import Architecture, Execution
from pomona.model.decoder import parameter_specs
from pomona.model.objective import TokenBatch, hidden_states, next_token_loss
from pomona.model.projection import matrix_shape
from pomona.ops.palette import unpack_nibbles
from pomona.parallel import rules, zigzag
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh

SMALL = Architecture(vocab_size=96, model_dim=64, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=16, ffn_dim=128)
LAYERS = parameter_specs(SMALL).layers
RANK, SCALE, BASE = 3, 0.5, 1e4
PLAIN = Execution("float32", "blocked", layers="unrolled", weight_gradients="plain", rotation="split")


def draw(seed=0):
    """A palettized decoder and an adapter whose correction is as large as the weights."""
    rng = np.random.default_rng(seed)

    def one(shape):
        if shape.dtype == jnp.uint8:
            return rng.integers(0, 256, shape.shape, np.uint8)
        return (1 + 0.1 * rng.normal(size=shape.shape)).astype(shape.dtype) * (0.1 if shape.dtype == jnp.float16 else 1)

    base = jax.tree.map(one, palettized_shapes(SMALL))
    tables = lambda p: rng.normal(size=p.tables.shape).astype(np.float16)
    base = map_projections(lambda _, p: dataclasses.replace(p, tables=tables(p)), base)
    base = dataclasses.replace(base, embedding=rng.normal(size=base.embedding.shape).astype(np.float32) / 8)
    factor = lambda s: (rng.normal(size=s.shape) * 0.2).astype(np.float32)
    return jax.tree.map(jnp.asarray, (base, spec.map_specs(factor, adapter_specs(SMALL, RANK))))


def dense(base, adapter, scale=SCALE):
    """The weights they stand for, written out in float64 from the definitions."""

    def one(name, palettized):
        p = jax.tree.map(np.asarray, palettized)
        rows = np.arange(p.scales.shape[1])
        entries = unpack_nibbles(p.indices)
        weights = []
        for layer in range(SMALL.num_layers):
            table = p.tables[layer].astype(np.float64)[rows // 16]
            W_OI = p.scales[layer].astype(np.float64)[:, None] * np.take_along_axis(
                table, entries[layer].astype(int), 1
            )
            factors = jax.tree.map(lambda x: np.asarray(x[layer], np.float64), getattr(adapter, name))
            weights.append(W_OI.T + scale * factors.a @ factors.b)
        return jnp.asarray(np.stack(weights).reshape(projection(LAYERS, name).shape), jnp.float32)

    return map_projections(one, base)


def make_batch(B=8, T=32):
    rng = np.random.default_rng(1)
    segments = np.sort(rng.integers(0, 4, (B, T)), axis=1)[:, ::-1]
    arrays = rng.integers(0, 96, (B, T)), rng.integers(0, 96, (B, T)), segments, rng.integers(0, 30, (B, T))
    return TokenBatch(*(jnp.asarray(x, jnp.int32) for x in arrays))


def mean_loss(params, batch, execution=PLAIN):
    sums = next_token_loss(params, batch, SMALL, execution, BASE)
    return sums.total / sums.tokens


def run(function, *arguments):
    """Compiled without LLVM's optimizations, which would be most of this file's time."""
    return jax.jit(function).lower(*arguments).compile({"xla_backend_optimization_level": 0})(*arguments)


@pytest.fixture(scope="module")
def parts():
    return draw()


@pytest.fixture(scope="module")
def reference(parts):
    """The loss of the dense decoder, and its gradient by A and B through W = base + scale A B."""
    base, adapter = parts
    value, gradient = run(jax.value_and_grad(mean_loss), dense(base, adapter), make_batch())

    def chain(name):
        shape = matrix_shape(projection(LAYERS, name))
        dW = np.asarray(projection(gradient.layers, name), np.float64).reshape(SMALL.num_layers, *shape)
        a, b = (np.asarray(x, np.float64) for x in jax.tree.leaves(getattr(adapter, name)))
        return Factors(SCALE * dW @ b.transpose(0, 2, 1), SCALE * a.transpose(0, 2, 1) @ dW)

    return float(value), Adapter(**{field.name: chain(field.name) for field in dataclasses.fields(Adapter)})


MESHES = {
    "one": None,
    "data and fsdp": MeshConfig(data=2, fsdp=4),
    "sequence and tensor": MeshConfig(data=1, fsdp=2, seq=2, tensor=2),
}


@pytest.mark.parametrize(("mesh", "layers"), [("one", "unrolled"), *((mesh, "scanned") for mesh in MESHES)])
def test_loss_and_gradient_are_those_of_the_dense_weights(parts, reference, mesh, layers):
    execution = dataclasses.replace(PLAIN, layers=layers, remat="qkv" if layers == "scanned" else "none")
    config = MESHES[mesh]
    mesh = build_mesh(config or MeshConfig(fsdp=1), jax.devices()[: 8 if config else 1])
    base, adapter = parts
    batch = make_batch()
    with jax.set_mesh(mesh):
        is_axes = lambda x: isinstance(x, tuple)
        places = jax.tree.map(lambda axes: rules.sharding(mesh, axes), base_axes(SMALL, base), is_leaf=is_axes)
        base = jax.device_put(base, places)
        own = spec.map_specs(lambda s: rules.sharding(mesh, s.axes), adapter_specs(SMALL, RANK))
        adapter = jax.device_put(adapter, own)
        order = zigzag.order(batch.tokens.shape[1], config.seq if config else 1)
        batch = jax.device_put(jax.tree.map(lambda x: x[:, order], batch), rules.sharding(mesh, ("batch", "tokens")))
        loss = lambda adapter, base: mean_loss(attach(base, adapter, SCALE), batch, execution)
        value, gradient = run(jax.value_and_grad(loss), adapter, base)
    assert jax.tree.map(lambda x: x.sharding, gradient) == own
    assert float(value) == pytest.approx(reference[0], rel=2e-6)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(reference[1]))
    for mine, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(reference[1])):
        np.testing.assert_allclose(mine, theirs, atol=3e-6 * largest)


def test_a_dense_base_takes_an_adapter_too(parts, reference):
    base, adapter = parts
    zero = jax.tree.map(jnp.zeros_like, adapter)
    for way in ("plain", "transposed"):
        execution = dataclasses.replace(PLAIN, weight_gradients=way)
        loss = lambda adapter, base: mean_loss(attach(base, adapter, SCALE), make_batch(), execution)
        value, gradient = run(jax.value_and_grad(loss), adapter, dense(base, zero))
        assert float(value) == pytest.approx(reference[0], rel=2e-6)
        np.testing.assert_allclose(gradient.query.a, reference[1].query.a, atol=1e-5)


def test_every_sequence_has_the_adapter_of_its_choice(parts):
    base, _ = parts
    adapters, scales = [draw(seed)[1] for seed in (1, 2, 3)], jnp.array([0.5, 1.0, 0.25])
    bank = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *adapters)
    batch, choice = make_batch(), jnp.array([2, 0, 1, 1, 0, 2, 0, 2])
    hidden = lambda params: run(lambda params: hidden_states(params, batch, SMALL, PLAIN, BASE), params)
    mixed = hidden(attach_bank(base, bank, scales, choice))
    for number, adapter in enumerate(adapters):
        alone = hidden(dense(base, adapter, float(scales[number])))
        np.testing.assert_allclose(mixed[choice == number], alone[choice == number], atol=2e-4)
        assert np.abs(mixed[choice != number] - alone[choice != number]).max() > 0.1


def test_only_one_layer_is_dense_at_a_time(parts):
    """What the backward pass keeps of a palettized decoder is activations: nothing of a dense weight's size."""
    base, adapter = parts
    loss = lambda adapter: mean_loss(attach(base, adapter, SCALE), make_batch(1, 8))
    back = jax.eval_shape(lambda adapter: jax.vjp(loss, adapter)[1], adapter)
    kept = [x.shape for x in jax.tree.leaves(back) if x.dtype == jnp.float32 and x.ndim == 2]
    assert kept and not {(64, 64), (64, 128), (128, 64)} & set(kept)

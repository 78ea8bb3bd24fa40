"""One loss and one gradient on every mesh, with every remat policy, layer form and attention path."""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.model import spec
from pomona.model.config import KEPT, Architecture, Execution
from pomona.model.decoder import parameter_specs
from pomona.model.objective import TokenBatch, next_token_loss
from pomona.parallel import rules, zigzag
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh

SMALL = Architecture(vocab_size=512, model_dim=64, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=16, ffn_dim=128)
POLICIES = ("none", *KEPT)
ONE = MeshConfig(fsdp=1)


def make_batch(B=8, T=64):
    rng = np.random.default_rng(1)
    segments = np.sort(rng.integers(0, 4, (B, T)), axis=1)[:, ::-1]
    arrays = rng.integers(0, 512, (B, T)), rng.integers(0, 512, (B, T)), segments, rng.integers(0, 30, (B, T))
    return TokenBatch(*(jnp.asarray(x, jnp.int32) for x in arrays))


def execution(**how):
    weight_gradients = how.pop("weight_gradients", "plain")
    return Execution("float32", weight_gradients=weight_gradients, loss_chunk_tokens=48, **how)


def loss_and_gradients(mesh_config, execution):
    specs = parameter_specs(SMALL)
    params, batch = spec.initialize(specs, jax.random.key(0)), make_batch()

    def loss(params, batch):
        sums = next_token_loss(params, batch, SMALL, execution, 5e5)
        return sums.total / sums.tokens

    mesh = build_mesh(mesh_config, jax.devices()[: 1 if mesh_config == ONE else 8])
    with jax.set_mesh(mesh):
        params = jax.device_put(params, spec.map_specs(lambda s: rules.sharding(mesh, s.axes), specs))
        order = zigzag.order(batch.tokens.shape[1], mesh_config.seq)
        batch = jax.device_put(jax.tree.map(lambda x: x[:, order], batch), rules.sharding(mesh, ("batch", "tokens")))
        lowered = jax.jit(jax.value_and_grad(loss)).lower(params, batch)
        # Dozens of programs of a few milliseconds each: LLVM's optimization would be most of this file's time.
        value, gradients = lowered.compile({"xla_backend_optimization_level": 0})(params, batch)
    assert jax.tree.map(lambda x: x.sharding, gradients) == jax.tree.map(lambda x: x.sharding, params)
    return float(value), jax.tree.map(np.asarray, gradients)


@pytest.fixture(scope="module")
def reference():
    return loss_and_gradients(ONE, execution(attention="reference", layers="unrolled", rotation="split"))


def check(reference, mesh, **how):
    value, gradients = loss_and_gradients(mesh, execution(**how))
    assert value == pytest.approx(reference[0], rel=1e-6)
    for ours, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(reference[1]), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


SEQ, TENSOR = MeshConfig(data=2, fsdp=2, seq=2), MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
    ("mesh", "remat"), [*((SEQ, policy) for policy in POLICIES), (TENSOR, "none"), (TENSOR, "ffn")], ids=str
)
def test_of_every_policy(reference, mesh, remat):
    """The other policies meet tensor shards below."""
    check(reference, mesh, attention="reference", layers="scanned", rotation="split", remat=remat)


@pytest.mark.parametrize(
    ("mesh", "policies"),
    [
        (ONE, ("none", "full")),
        (MeshConfig(), ("products", "gate")),
        (MeshConfig(data=8, fsdp=1), ("qkv", "attention")),
        (MeshConfig(data=2, fsdp=4), ("full", "none")),
        (MeshConfig(fsdp=1, seq=8), ("none", "products")),
        (MeshConfig(fsdp=4, seq=2), ("attention", "qkv")),
        (MeshConfig(seq=2, tensor=2), ("gate", "full")),
        (MeshConfig(fsdp=2, tensor=4), ("products", "attention")),
        (MeshConfig(data=2, fsdp=1, tensor=4), ("qkv", "gate")),
    ],
    ids=str,
)
def test_of_every_mesh(reference, mesh, policies):
    """With the first policy as on accelerators but for their kernels, with the second as on a CPU."""
    check(reference, mesh, attention="reference", layers="scanned", rotation="split", remat=policies[0])
    cpu = {"attention": "blocked", "layers": "unrolled", "rotation": "split"}
    gradients = "transposed" if mesh == ONE else "plain"
    check(reference, mesh, remat=policies[1], weight_gradients=gradients, **cpu)


@pytest.mark.parametrize("mesh", [ONE, MeshConfig(data=2, fsdp=2, seq=2), MeshConfig(fsdp=4, tensor=2)], ids=str)
def test_a_tpu_turns_heads_by_the_kernel(mesh):
    """On every mesh: what XLA makes of a Pallas kernel on sharded arrays otherwise, it refuses. Forward, and in the
    backward pass again, where the policy keeps only what was projected; queries and keys each."""
    how = execution(attention="reference", layers="scanned", rotation="kernel", remat="gate")
    rows = jax.ShapeDtypeStruct((8, 64), jnp.int32)
    wide = dataclasses.replace(SMALL, head_dim=128)

    def loss(params, batch):
        return next_token_loss(params, batch, wide, how, 5e5).total

    with jax.set_mesh(built := build_mesh(mesh, jax.devices()[: 1 if mesh == ONE else 8])):
        place = lambda axes: rules.sharding(built, axes)
        params = spec.map_specs(
            lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32, sharding=place(s.axes)), parameter_specs(wide)
        )
        batch = TokenBatch(*[rows.update(sharding=place(("batch", "tokens")))] * 4)
        program = jax.jit(jax.grad(loss)).trace(params, batch).lower(lowering_platforms=("tpu",)).as_text()
    kernels = collections.Counter(re.findall(r'kernel_name = "(\w+)"', program))
    assert kernels == {"norm_rope": 4, "norm_rope_backward": 2}

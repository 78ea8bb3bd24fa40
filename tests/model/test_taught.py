"""What a student learns from its teacher is the same on every mesh, gradients included."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from pomona.model import spec
from pomona.model.config import Architecture, Execution
from pomona.model.decoder import parameter_specs
from pomona.model.objective import TokenBatch, next_token_loss
from pomona.model.taught import Reading, divergence_loss, top_tokens
from pomona.parallel import rules, zigzag
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh

STUDENT = Architecture(vocab_size=256, model_dim=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=64)
TEACHER = Architecture(vocab_size=256, model_dim=48, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=16, ffn_dim=96)
HOW = Execution(
    "float32", "reference", layers="scanned", weight_gradients="plain", rotation="split", loss_chunk_tokens=24
)
ONE = MeshConfig(fsdp=1)


def make_batch(B=8, T=32):
    rng = np.random.default_rng(1)
    segments = np.sort(rng.integers(0, 4, (B, T)), axis=1)[:, ::-1]
    tokens, targets, labels = rng.integers(0, 256, (3, B, T))
    arrays = tokens, targets, segments, rng.integers(0, 30, (B, T)), labels
    return TokenBatch(*(jnp.asarray(x, jnp.int32) for x in arrays))


def loss(params, teacher, batch, target):
    if target == "top1":
        sums = next_token_loss(params, batch, STUDENT, HOW, 5e5, taught_share=0.9)
    else:
        student = params, Reading(STUDENT, HOW, 5e5)
        sums = divergence_loss(student, (teacher, Reading(TEACHER, HOW, 1e6)), batch, 0.9, 2.0)
    return sums.total / sums.tokens, sums


@functools.cache
def computed(mesh_config, target):
    """(total, nll), the gradients and the teacher's top tokens of real documents."""
    mesh = build_mesh(mesh_config, jax.devices()[: 1 if mesh_config == ONE else 8])
    batch = make_batch()
    with jax.set_mesh(mesh):
        place = lambda specs: spec.map_specs(lambda s: rules.sharding(mesh, s.axes), specs)
        student, teacher = (
            jax.device_put(spec.initialize(specs, jax.random.key(seed)), place(specs))
            for seed, specs in enumerate((parameter_specs(STUDENT), parameter_specs(TEACHER)))
        )
        real = np.asarray(batch.segments) > 0
        order = zigzag.order(batch.tokens.shape[1], mesh_config.seq)
        batch = jax.device_put(jax.tree.map(lambda x: x[:, order], batch), rules.sharding(mesh, ("batch", "tokens")))

        def both(params, teacher, batch):
            result = jax.value_and_grad(loss, has_aux=True)(params, teacher, batch, target)
            return *result, top_tokens(teacher, batch, Reading(TEACHER, HOW, 1e6))

        lowered = jax.jit(both).lower(student, teacher, batch)
        (total, sums), gradients, top = lowered.compile({"xla_backend_optimization_level": 0})(student, teacher, batch)
    assert jax.tree.map(lambda x: x.sharding, gradients) == jax.tree.map(lambda x: x.sharding, student)
    return (
        [float(total), float(sums.nll)],
        jax.tree.leaves(jax.tree.map(np.asarray, gradients)),
        np.asarray(top)[:, np.argsort(order)][real],
    )


@pytest.mark.parametrize("target", ["top1", pytest.param("logits", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=2, seq=2), MeshConfig(fsdp=2, seq=2, tensor=2)], ids=str)
def test_of_every_mesh(mesh, target):
    sums, gradients, top = computed(mesh, target)
    expected_sums, expected_gradients, expected_top = computed(ONE, target)
    assert sums == pytest.approx(expected_sums, rel=2e-6)
    for ours, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())
    assert np.array_equal(top, expected_top)

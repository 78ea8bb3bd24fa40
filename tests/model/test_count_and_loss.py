"""The arithmetic of the presets, and one loss on every mesh, layer form and attention path."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.core.errors import UserError
from pomona.model import spec
from pomona.model.config import Architecture, Execution, check_architecture, resolve
from pomona.model.count import count_parameters, training_flops
from pomona.model.decoder import parameter_specs
from pomona.model.objective import TokenBatch, next_token_loss
from pomona.model.presets import AFM_DEVICE, AFM_DEVICE_PARENT, AFM_SERVER, PRESETS
from pomona.parallel import rules
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh

SMALL = Architecture(vocab_size=512, model_dim=64, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=16, ffn_dim=128)


def test_afm_device_has_the_published_size():
    parameters = count_parameters(AFM_DEVICE)
    assert round(parameters.without_embedding / 1e9, 3) == 2.587
    assert round(parameters.embedding / 1e9, 3) == 0.151
    assert 6.3e9 < count_parameters(AFM_DEVICE_PARENT).total < 6.7e9
    assert 69e9 < count_parameters(AFM_SERVER).total < 70e9


@pytest.mark.parametrize("name", PRESETS)
def test_the_count_is_the_tree(name):
    assert count_parameters(PRESETS[name]).total == spec.count(parameter_specs(PRESETS[name]))


def test_flops_by_hand():
    flops = training_flops(SMALL, 8)
    layer = 64 * 16 * (8 + 4 + 4) + 8 * 16 * 64 + 3 * 64 * 128
    matmul = 2 * (2 * layer + 512 * 64)
    scores = 2 * sum(2 * 2 * 8 * 16 * seen for seen in range(1, 9)) / 8
    norms = 2 * (2 * 64 + 2 * 16) * 0
    assert flops.causal == 3 * (matmul + scores + norms)
    assert flops.full == 3 * (matmul + 2 * 2 * 2 * 8 * 16 * 8)


def test_counting_imports_neither_jax_nor_numpy():
    code = "import sys, pomona.model.count, pomona.model.presets; assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("change", [{"num_kv_heads": 3}, {"head_dim": 15}, {"num_layers": 0}])
def test_impossible_shapes_are_refused(change):
    with pytest.raises(UserError):
        check_architecture(dataclasses.replace(SMALL, **change))


def test_initial_variance_follows_the_fan():
    params = spec.initialize(parameter_specs(SMALL), jax.random.key(0))
    assert float(params.layers.ffn.down.std()) == pytest.approx(128**-0.5, rel=0.05)
    assert float(params.embedding.std()) == pytest.approx(64**-0.5, rel=0.05)
    assert (np.asarray(params.final_norm) == 1).all()


def make_batch(B=8, T=64):
    rng = np.random.default_rng(1)
    segments = np.sort(rng.integers(0, 4, (B, T)), axis=1)[:, ::-1]
    arrays = rng.integers(0, 512, (B, T)), rng.integers(0, 512, (B, T)), segments, rng.integers(0, 30, (B, T))
    return TokenBatch(*(jnp.asarray(x, jnp.int32) for x in arrays))


def loss_and_gradients(mesh_config, execution):
    specs = parameter_specs(SMALL)
    params, batch = spec.initialize(specs, jax.random.key(0)), make_batch()

    def loss(params, batch):
        sums = next_token_loss(params, batch, SMALL, execution, 5e5)
        return sums.total / sums.tokens

    mesh = build_mesh(mesh_config, None if mesh_config.fsdp == -1 else jax.devices()[: mesh_config.fsdp])
    with jax.set_mesh(mesh):
        params = jax.device_put(params, spec.map_specs(lambda s: rules.sharding(mesh, s.axes), specs))
        batch = jax.device_put(batch, rules.sharding(mesh, ("batch", "tokens")))
        value, gradients = jax.jit(jax.value_and_grad(loss))(params, batch)
    return float(value), jax.tree.map(np.asarray, gradients)


@pytest.fixture(scope="module")
def reference():
    return loss_and_gradients(MeshConfig(fsdp=1), Execution("float32", "reference", "unrolled", "plain"))


@pytest.mark.parametrize(
    ("mesh", "attention", "layers", "remat"),
    [
        (MeshConfig(fsdp=1), "blocked", "scanned", "dots"),
        (MeshConfig(), "blocked", "unrolled", "none"),
        (MeshConfig(seq=2, tensor=2), "blocked", "unrolled", "full"),
        (MeshConfig(data=2, tensor=2), "reference", "scanned", "dots"),
        (MeshConfig(seq=8), "blocked", "scanned", "none"),
        (MeshConfig(data=2, tensor=4), "blocked", "scanned", "none"),
    ],
)
def test_the_loss_does_not_depend_on_how_it_is_computed(reference, mesh, attention, layers, remat):
    gradients = "transposed" if mesh == MeshConfig(fsdp=1) else "plain"
    value, gradients = loss_and_gradients(mesh, Execution("float32", attention, layers, gradients, remat, 48))
    assert value == pytest.approx(reference[0], rel=1e-6)
    for ours, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(reference[1])):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_auto_is_decided_by_the_platform():
    assert resolve(Execution(), "tpu").attention == "splash"
    assert resolve(Execution(), "gpu").compute_dtype == "bfloat16"
    assert resolve(Execution(attention="reference"), "cpu") == Execution(
        "float32", "reference", "unrolled", "transposed"
    )
    assert resolve(Execution(), "cpu", num_devices=8).weight_gradients == "plain"
    with pytest.raises(UserError, match="weight_gradients is 'transposed' on 8 devices"):
        resolve(Execution(weight_gradients="transposed"), "cpu", num_devices=8)

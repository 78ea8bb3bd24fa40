"""The arithmetic of the presets, initial weights, and how an execution is decided."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from pomona.core.errors import UserError
from pomona.model import spec
from pomona.model.config import Architecture, Execution, check_architecture, resolve
from pomona.model.count import count_parameters, training_flops
from pomona.model.decoder import parameter_specs
from pomona.model.presets import AFM_DEVICE, AFM_DEVICE_PARENT, AFM_SERVER, PRESETS

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


def test_auto_is_decided_by_the_platform():
    assert resolve(Execution(), "tpu").attention == "splash"
    assert resolve(Execution(), "gpu").compute_dtype == "bfloat16"
    assert [resolve(Execution(), platform).rotation for platform in ("tpu", "gpu", "cpu")] == [
        "kernel",
        *["split"] * 2,
    ]
    assert resolve(Execution(attention="reference"), "cpu") == Execution(
        "float32", "reference", layers="unrolled", weight_gradients="transposed", rotation="split"
    )
    assert resolve(Execution(), "cpu", num_devices=8).weight_gradients == "plain"
    with pytest.raises(UserError, match="weight_gradients is 'transposed' on 8 devices"):
        resolve(Execution(weight_gradients="transposed"), "cpu", num_devices=8)


@pytest.mark.parametrize(
    ("execution", "platform"),
    [
        (Execution(attention="splash"), "cpu"),
        (Execution(attention="splash"), "gpu"),
        (Execution(attention="cudnn"), "tpu"),
        (Execution(rotation="kernel"), "cpu"),
    ],
)
def test_a_kernel_of_another_platform_is_refused(execution, platform):
    with pytest.raises(UserError, match="this kernel is made for"):
        resolve(execution, platform)

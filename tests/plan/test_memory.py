"""The plan's memory beside the real state's shapes and shardings, and beside what autodiff really keeps."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from pomona.core.fleet import Fleet, parse_fleet
from pomona.model import spec
from pomona.model.config import Architecture, Execution
from pomona.model.count import REMAT, activation_bytes, product_flops, recomputed_flops, training_flops, weights
from pomona.model.decoder import layer, parameter_specs
from pomona.model.presets import PRESETS
from pomona.ops.rope import rotation
from pomona.optim.config import AdamW, AdaStar
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.plan.memory import memory
from pomona.plan.work import lay_out
from pomona.train.config import Run, Stage
from pomona.train.state import abstract_state

SMALL = Architecture(
    vocab_size=512, model_dim=512, num_layers=3, num_heads=8, num_kv_heads=4, head_dim=64, ffn_dim=1024
)
EIGHT = parse_fleet("v5e-8")
NO_REMAT, ADASTAR = Execution(), AdaStar()


def make_run(mesh, execution=NO_REMAT, optimizer=ADASTAR, **stage):
    stage = Stage("core", **({"steps": 10_000, "batch_size": 16, "sequence_length": 64} | stage))
    return Run("small", SMALL, (stage,), optimizer=optimizer, execution=execution, mesh=mesh)


@pytest.mark.parametrize("optimizer", [AdaStar(), AdamW()])
@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(),
        MeshConfig(data=8, fsdp=1),
        MeshConfig(data=2, fsdp=2, tensor=2),
        MeshConfig(fsdp=2, tensor=4),
        MeshConfig(fsdp=1, seq=2, tensor=4),
    ],
)
def test_parameters_and_moments_are_those_of_the_real_state(mesh, optimizer):
    run = make_run(mesh, optimizer=optimizer)
    planned = memory(lay_out(run, run.stages[0], EIGHT))
    real = abstract_state(run, build_mesh(mesh))

    def bytes_on_one_device(tree):
        leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 0]  # counters are none of them
        return sum(jnp.prod(jnp.array(x.sharding.shard_shape(x.shape))).item() * x.dtype.itemsize for x in leaves)

    assert planned.parameters == planned.gradients == bytes_on_one_device(real.params)
    assert planned.moments == bytes_on_one_device(real.optimizer)


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_weights_is_the_decoder(name):
    leaves = jax.tree_util.tree_flatten_with_path(parameter_specs(PRESETS[name]), is_leaf=spec.is_spec)[0]
    real = {jax.tree_util.keystr(path, simple=True, separator="."): (s.shape, s.axes) for path, s in leaves}
    assert {w.name: (w.shape, w.axes) for w in weights(PRESETS[name])} == real


@jax.custom_vjp
def fused_attention(q, k, v):
    """What a kernel keeps: its inputs, its output and a number per head."""
    return q + 1


def forward(q, k, v):
    out = q + 1
    return out, (q, k, v, out, jnp.zeros(q.shape[:3]))


fused_attention.defvjp(forward, lambda saved, dq: (dq, *saved[1:3]))


@pytest.mark.parametrize("policy", REMAT)
def test_what_a_policy_keeps_is_what_autodiff_keeps(policy):
    B, T = 2, 32
    execution = Execution("bfloat16", layers="scanned", weight_gradients="plain", remat=policy)
    one = spec.map_specs(lambda s: jax.ShapeDtypeStruct(s.shape[1:], jnp.float32), parameter_specs(SMALL).layers)
    x = jax.ShapeDtypeStruct((B, T, SMALL.model_dim), jnp.bfloat16)
    body = partial(
        layer,
        attend=lambda q, k, v, state: (fused_attention(q, k, v), state),
        rotary=rotation(jnp.zeros((B, T), jnp.int32), SMALL.head_dim, 5e5),
        architecture=SMALL,
        execution=execution,
    )
    if policy != "none":
        keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
        body = jax.checkpoint(body, policy=keep)
    kept = jax.eval_shape(lambda x, w: jax.vjp(lambda x, w: body(x, w, None)[0], x, w)[1], x, one)
    of_tokens = [leaf for leaf in jax.tree.leaves(kept) if leaf.shape[:2] == (B, T)]
    rotary = 2 * 4 * SMALL.head_dim // 2  # once for all layers
    real = sum(leaf.size * leaf.dtype.itemsize for leaf in of_tokens) / (B * T) - rotary * (
        1 if policy != "none" else 2
    )
    assert activation_bytes(SMALL, REMAT[policy]) == pytest.approx(real, rel=0.015)


def test_activations_by_hand():
    run = make_run(MeshConfig(data=2, fsdp=2, tensor=2), Execution(remat="dots"), batch_size=32)
    tokens = 32 * 64 / 4
    per_layer = 2 * (512 + 512) + (2 * 8 * 64 + 2 * 2 * 4 * 64 + 2 * 2 * 1024) / 2
    planned = memory(lay_out(run, run.stages[0], EIGHT))
    assert planned.activations == 3 * tokens * per_layer
    halved = make_run(run.mesh, run.execution, batch_size=32, micro_batches=2)
    cut = memory(lay_out(halved, halved.stages[0], EIGHT))
    assert cut.activations == planned.activations / 2 and cut.gradients == 2 * planned.gradients


def test_a_policy_that_keeps_weights_keeps_them_all():
    a, run = SMALL, make_run(MeshConfig(fsdp=8), Execution(remat="none"))
    one_layer = 512 * 64 * (8 + 4 + 4) + 8 * 64 * 512 + 3 * 512 * 1024 + 2 * 512 + 2 * 64
    planned = memory(lay_out(run, run.stages[0], EIGHT))
    assert planned.weights == pytest.approx(2 * ((a.num_layers + 1) * one_layer + 512 * 512), rel=1e-3)
    full = memory(lay_out(make_run(run.mesh, Execution(remat="full")), run.stages[0], EIGHT))
    assert full.weights == pytest.approx(2 * (3 * one_layer + 512 * 512), rel=1e-3)


def test_recomputation_by_hand():
    T = 64
    qkv, output = 2 * 512 * 64 * (8 + 4 + 4), 2 * 8 * 64 * 512
    gate_up, down = 2 * 2 * 512 * 1024, 2 * 1024 * 512
    attention = sum(2 * 2 * 8 * 64 * seen for seen in range(1, T + 1)) / T
    assert product_flops(SMALL, T) == {
        "qkv": qkv, "attention": attention, "output": output, "gate_up": gate_up, "down": down
    }  # fmt: skip
    kernel = attention / 2
    assert recomputed_flops(SMALL, T, "none") == 3 * kernel
    assert recomputed_flops(SMALL, T, "dots") == 3 * (kernel + attention)
    assert recomputed_flops(SMALL, T, "full") == 3 * (kernel + attention + qkv + output + gate_up)
    forward = 3 * (qkv + attention + output + gate_up + down) + 2 * 512 * 512
    assert training_flops(SMALL, T).causal == 3 * forward


def test_two_devices_of_one_chip_share_its_memory():
    fleet = Fleet(parse_fleet("tpu7x-8").chip, (2, 2, 1))
    run = make_run(MeshConfig())
    planned = memory(lay_out(run, run.stages[0], fleet))
    assert planned == memory(lay_out(run, run.stages[0], EIGHT))
    assert dataclasses.astuple(planned)[0] > 0

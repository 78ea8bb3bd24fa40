"""The plan's memory beside the real state's shapes and shardings, and beside hand computations."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pomona.core.fleet import Fleet, parse_fleet
from pomona.model import spec
from pomona.model.config import Architecture, Execution
from pomona.model.count import REMAT, product_flops, recomputed_flops, training_flops, weights
from pomona.model.decoder import parameter_specs
from pomona.model.presets import PRESETS
from pomona.optim.config import AdamW, AdaStar
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.plan.memory import memory
from pomona.plan.work import lay_out
from pomona.recipes.registry import HARDWARE, recipe
from pomona.train.config import Run, Stage
from pomona.train.fault_config import FaultConfig
from pomona.train.state import abstract_state

SMALL = Architecture(
    vocab_size=512, model_dim=512, num_layers=3, num_heads=8, num_kv_heads=4, head_dim=64, ffn_dim=1024
)
EIGHT = parse_fleet("v5e-8")
FLEET_JSON = Path(__file__).parents[2] / "docs/benchmarks/fleet.json"
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


def test_a_checked_step_holds_the_state_twice():
    run = make_run(MeshConfig())
    checked = dataclasses.replace(run, faults=FaultConfig(check_every_steps=10))
    alone, twice = (memory(lay_out(each, each.stages[0], EIGHT)) for each in (run, checked))
    assert twice.total - alone.total == alone.parameters + alone.moments > 0


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_weights_is_the_decoder(name):
    leaves = jax.tree_util.tree_flatten_with_path(parameter_specs(PRESETS[name]), is_leaf=spec.is_spec)[0]
    real = {jax.tree_util.keystr(path, simple=True, separator="."): (s.shape, s.axes) for path, s in leaves}
    assert {w.name: (w.shape, w.axes) for w in weights(PRESETS[name])} == real


def test_activations_by_hand():
    run = make_run(MeshConfig(data=2, fsdp=2, tensor=2), Execution(remat="products"), batch_size=32)
    tokens = 32 * 64 / 4
    per_layer = 2 * (512 + 512) + (2 * 2 * 8 * 64 + 2 * 2 * 4 * 64 + 2 * 2 * 1024) / 2
    planned = memory(lay_out(run, run.stages[0], EIGHT))
    assert planned.activations == 3 * tokens * per_layer
    halved = make_run(run.mesh, run.execution, batch_size=32, micro_batches=2)
    cut = memory(lay_out(halved, halved.stages[0], EIGHT))
    assert cut.activations == planned.activations / 2 and cut.gradients == 2 * planned.gradients


def test_a_policy_that_keeps_weights_keeps_them_all():
    a, run = SMALL, make_run(MeshConfig(fsdp=8), Execution(remat="none"))
    one_layer = 512 * 64 * (8 + 4 + 4) + 8 * 64 * 512 + 3 * 512 * 1024 + 2 * 512 + 2 * 64
    planned = memory(lay_out(run, run.stages[0], EIGHT))
    assert planned.kept_weights == pytest.approx(2 * a.num_layers * one_layer, rel=1e-3)
    assert planned.cast == planned.parameters / 2
    full = memory(lay_out(make_run(run.mesh, Execution(remat="full")), run.stages[0], EIGHT))
    assert full.weights == planned.weights and full.kept_weights == 0


def small_stage(**execution):
    run = make_run(MeshConfig(data=2, fsdp=2, tensor=2), Execution(remat="full", **execution), batch_size=32)
    return run, run.stages[0]


def test_a_layer_at_work_by_hand():
    tokens, heads = 32 * 64 / 4, 8 * 64 / 2
    at_work = 8 * 512 + 8 * heads + 8 * 4 * 64 / 2 + 12 * 1024 / 2
    whole, four_blocks = small_stage(), small_stage(attention_block_tokens=16)
    assert memory(lay_out(*whole, EIGHT)).layer == tokens * (at_work + 2 * heads)
    assert memory(lay_out(*four_blocks, EIGHT)).layer == tokens * (at_work + 4 * 2 * heads)
    assert memory(lay_out(*four_blocks, parse_fleet("h100-8"))).layer == tokens * at_work  # cuDNN leaves nothing
    sharded = dataclasses.replace(four_blocks[0], mesh=MeshConfig(data=2, seq=2, tensor=2))  # one part after the other
    assert memory(lay_out(sharded, sharded.stages[0], EIGHT)).layer == tokens * (at_work + 2 * 2 * heads)
    one_layer = (512 * 64 * (8 + 4 + 4) + 8 * 64 * 512 + 3 * 512 * 1024) / 2 + 2 * 512 + 2 * 64
    weights = memory(lay_out(*whole, EIGHT)).weights
    assert weights == pytest.approx(2 * one_layer + 2 * 512 * 512 / 2, rel=1e-3)


def test_the_loss_by_hand_counts_where_it_is_larger_than_a_layer_at_work():
    tokens, shard, hidden = 32 * 64 / 4, 512 * 512 / 2, 4 * 512 * 512
    whole, halves = (memory(lay_out(*small_stage(loss_chunk_tokens=each), EIGHT)) for each in (512, 256))
    assert whole.loss == 4 * tokens * 512 / 2 + hidden + 4 * shard
    assert halves.loss == 2 * tokens * 512 / 2 + hidden + 12 * shard
    assert halves.weights - whole.weights == 2 * shard
    gpu = memory(lay_out(*small_stage(loss_chunk_tokens=512), parse_fleet("h100-8")))
    assert gpu.loss == 10 * tokens * 512 / 2 + hidden + 4 * shard
    state = whole.parameters + whole.gradients + whole.moments + whole.cast + whole.activations
    assert whole.layer + whole.weights > whole.loss and whole.total == state + whole.layer + whole.weights
    assert dataclasses.replace(whole, loss=2 * whole.total).total == state + 2 * whole.total


def test_the_servers_plan_is_near_what_its_programs_take():
    """Those of docs/benchmarks/fleet.json: where memory is scarce. With memory to spare the compiler takes more."""
    compiled = json.loads(FLEET_JSON.read_text())
    for name, low in {"afm_server": 0.87, "afm_device": 0.87, "afm_device_parent": 0.97}.items():
        run = recipe(name)()
        for stage, found in zip(run.stages, [each for each in compiled if each["name"] == name]):
            assert found["stage"] == stage.name
            planned = memory(lay_out(run, stage, HARDWARE[name].fleet)).total / 2**30
            assert low <= planned / found["hbm_gib"] <= 1.0, (name, stage.name)
            if found["hbm_gib"] > 0.95 * found["hbm_limit_gib"]:
                assert planned == pytest.approx(found["hbm_gib"], rel=0.05)


def test_recomputation_by_hand():
    T = 64
    query, kv, output = 2 * 512 * 64 * 8, 2 * 512 * 64 * (4 + 4), 2 * 8 * 64 * 512
    gate = up = 2 * 512 * 1024
    down = 2 * 1024 * 512
    attention = sum(2 * 2 * 8 * 64 * seen for seen in range(1, T + 1)) / T
    assert product_flops(SMALL, T) == {
        "query": query,
        "kv": kv,
        "attention": attention,
        "output": output,
        "gate": gate,
        "up": up,
        "down": down,
    }
    kernel = attention / 2
    by_hand = {
        "none": 0,
        "products": 0,
        "ffn": query + output,
        "gate": up,
        "qkv": gate + up,
        "attention": gate + up + query + kv + output,
        "full": gate + up + query + kv + output + attention,
    }
    assert {p: recomputed_flops(SMALL, T, REMAT[p].again) for p in REMAT} == {
        policy: 3 * (kernel + again) for policy, again in by_hand.items()
    }
    forward = 3 * (query + kv + attention + output + gate + up + down) + 2 * 512 * 512
    assert training_flops(SMALL, T).causal == 3 * forward


def test_two_devices_of_one_chip_share_its_memory():
    fleet = Fleet(parse_fleet("tpu7x-8").chip, (2, 2, 1))
    run = make_run(MeshConfig())
    planned = memory(lay_out(run, run.stages[0], fleet))
    assert planned == memory(lay_out(run, run.stages[0], EIGHT))
    assert dataclasses.astuple(planned)[0] > 0

"""What is summed over which devices: a weight's gradient is scattered over its shards before its copies are added.

Seen in the program that XLA makes of the gradient for eight CPU devices, data 2 and fsdp 4.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest

from pomona.model import spec
from pomona.model.config import Architecture, Execution
from pomona.model.decoder import parameter_specs
from pomona.model.objective import TokenBatch, next_token_loss
from pomona.parallel import rules
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh

# No two tensors of one shape, and no activation that is shaped like a shard.
ODD = Architecture(vocab_size=560, model_dim=96, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=20, ffn_dim=136)
MESH = MeshConfig(data=2, fsdp=4)
EXECUTION = Execution("float32", "reference", layers="scanned", weight_gradients="plain", rotation="split")


def gradient_program(remat="qkv"):
    """The gradient of a loss, lowered for eight devices."""
    execution = dataclasses.replace(EXECUTION, remat=remat)
    mesh = build_mesh(MESH)
    shape = lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32, sharding=rules.sharding(mesh, s.axes))
    rows = jax.ShapeDtypeStruct((8, 64), jnp.int32, sharding=rules.sharding(mesh, ("batch", "tokens")))

    def loss(params, batch):
        return next_token_loss(params, batch, ODD, execution, 5e5).total

    with jax.set_mesh(mesh):
        params = spec.map_specs(shape, parameter_specs(ODD))
        return jax.jit(jax.grad(loss)).lower(params, TokenBatch(rows, rows, rows, rows))


def sums(program, kind):
    """(numbers of a tensor, devices) of everything that the compiled program sums in this way."""
    found = []
    for line in program.splitlines():
        if not (match := re.search(rf" = (.*?) {kind}(?:-start)?\(", line)):
            continue
        if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
            devices = len(listed[1].split(","))
        else:
            sizes, over = re.search(r"replica_groups=mesh\[(.*?)\].*? \{(.*?)\}", line).groups()
            each = dict(re.findall(r"'(\w+)'=(\d+)", sizes))
            devices = math.prod(int(each[axis]) for axis in re.findall(r"'(\w+)'", over))
        shapes = re.findall(r"f32\[([\d,]*)\]", match[1])
        found += [(math.prod(int(n) for n in shape.split(",") if n), devices) for shape in shapes]
    return [each for each in found if each[1] > 1]


MATRICES = [
    *(math.prod(s.shape[1:]) for s in jax.tree.leaves(parameter_specs(ODD).layers.attention, is_leaf=spec.is_spec)[:4]),
    *[ODD.model_dim * ODD.ffn_dim] * 3,
]
TABLE = ODD.vocab_size * ODD.model_dim


def test_all_matrices_are_scattered_over_four_and_added_over_two():
    program = gradient_program().compile().as_text()
    added = sums(program, "all-reduce")
    norms = 2 * [ODD.model_dim, ODD.head_dim] + [ODD.model_dim]
    assert sorted(n for n, devices in added if devices == 8 and n > 1) == sorted(norms), "only norms, over all"
    shards = sorted(n // 4 for n in (*MATRICES, TABLE, TABLE))
    assert sorted(n for n, devices in added if devices == 2) == shards
    # XLA:CPU writes most reduce-scatters as an all-reduce over the same devices, of which each keeps its part.
    scattered = [n for n, devices in added if devices == 4]
    scattered += [4 * n for n, devices in sums(program, "reduce-scatter") if devices == 4]
    assert sorted(scattered) == sorted((*MATRICES, TABLE, TABLE))


def test_a_gather_that_does_not_say_so_sums_whole_matrices_over_all_devices(monkeypatch):
    """What the types are there for; where this fails, XLA has learned it and `rules.gather` can be simple again."""

    def simple(weight, axes, dtype):
        axes = [None if axis == "model" else axis for axis in axes]
        return jax.sharding.reshard(weight.astype(dtype), rules.partition(axes))

    monkeypatch.setattr(rules, "gather", simple)
    added = sums(gradient_program().compile().as_text(), "all-reduce")
    assert set(MATRICES) <= {n for n, devices in added if devices == 8}


@pytest.mark.parametrize("remat", ["none", "qkv", "full"])
def test_the_types_are_in_the_program_before_xla(remat):
    text = gradient_program(remat).as_text()
    constraints = re.findall(r'sdy.sharding_constraint .* unreduced=\{"data"\}> : tensor<([\dx]+)xf32>', text)
    assert sorted(math.prod(map(int, shape.split("x"))) for shape in constraints) == sorted(MATRICES)

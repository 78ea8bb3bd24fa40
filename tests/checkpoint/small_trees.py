"""Small named trees on a mesh, for the tests of checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np

from pomona.checkpoint.config import CheckpointConfig
from pomona.checkpoint.store import Store
from pomona.parallel import rules
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh


def trees(step, devices=8):
    mesh = build_mesh(MeshConfig(), jax.devices()[:devices])
    rows = rules.sharding(mesh, ("model", None))
    values = jax.random.normal(jax.random.key(step), (64, 8))
    return {
        "params": {"a": jax.device_put(values, rows), "b": jax.device_put(values.astype(jnp.bfloat16), rows)},
        "optimizer": {"count": jax.device_put(jnp.int32(step), rules.sharding(mesh, ()))},
    }


def abstract(devices):
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return lambda step: jax.tree.map(shape, trees(0, devices))


def write(folder, *numbers, **config):
    store = Store(folder, CheckpointConfig(**config))
    for step in numbers:
        store.save(step, trees(step), {"step": step})
    store.close()


def assert_equal(found, step):
    assert found.step == step and found.about == {"step": step}
    for ours, expected in zip(jax.tree.leaves(found.trees), jax.tree.leaves(trees(step)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))


def data_files(folder):
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size and p.name != "manifest.json"]

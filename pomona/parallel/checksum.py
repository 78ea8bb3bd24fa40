"""Checksums of sharded arrays, one per device, made where the data lies: nothing but 4 bytes a device moves.

Shapes: P devices of the mesh, in the order of `mesh.devices.flat`.
"""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

PROBE_SIZE = 256
PROBE_ROUNDS = 64


def device_checksums(mesh: Mesh, shardings: Any) -> Callable[[Any], jax.Array]:
    """A compiled function from a tree with these shardings to uint32 [P]: each device's checksum of its own shards.

    Any single changed bit changes it. It is a sum modulo 2**32 of the bit patterns, so their order does not matter.
    """

    def local(tree: Any) -> jax.Array:
        total = jnp.zeros((), jnp.uint32)
        for leaf in jax.tree.leaves(tree):
            total = total * jnp.uint32(31) + jnp.sum(_bits(leaf), dtype=jnp.uint32)
        return total[None]

    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    everywhere = PartitionSpec(mesh.axis_names)
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=everywhere, check_vma=False))


def differing(mesh: Mesh) -> Callable[[jax.Array, jax.Array], np.ndarray]:
    """A function from two uint32 [P] to bool [P] on every host: which devices do not agree with themselves."""
    everywhere = jax.sharding.NamedSharding(mesh, PartitionSpec())
    compare = jax.jit(lambda a, b: jax.sharding.reshard(a != b, PartitionSpec()), out_shardings=everywhere)
    return lambda a, b: np.asarray(compare(a, b))


def probe(mesh: Mesh) -> np.ndarray:
    """The same work on every device by itself; bool [P]: whose result is not what most devices have.

    What a collective has spread to all devices cannot be traced back; a device that is broken for good can be found
    by what it computes alone. One that errs once in a while may pass.
    """

    def local() -> jax.Array:
        start = jnp.cos(jnp.arange(PROBE_SIZE * PROBE_SIZE, dtype=jnp.float32)).reshape(PROBE_SIZE, PROBE_SIZE)
        turn = lambda x, _: (jnp.tanh(x @ start * PROBE_SIZE**-0.5 + start), None)
        end, _ = jax.lax.scan(turn, start, None, PROBE_ROUNDS)
        return jnp.sum(_bits(end), dtype=jnp.uint32)[None]

    everywhere = PartitionSpec(mesh.axis_names)
    run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(), out_specs=everywhere, check_vma=False))
    together = jax.sharding.NamedSharding(mesh, PartitionSpec())
    sums = np.asarray(jax.jit(lambda x: jax.sharding.reshard(x, PartitionSpec()), out_shardings=together)(run()))
    usual, _ = collections.Counter(sums.tolist()).most_common(1)[0]
    return sums != usual


def _bits(leaf: jax.Array) -> jax.Array:
    """The bit patterns of an array as uint32."""
    width = leaf.dtype.itemsize
    assert width in (1, 2, 4), leaf.dtype
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)

"""The few ways the rest of the code uses the table from logical axes to mesh axes (`parallel.config`).

Model code names what a dimension is (`batch`, `heads`, `vocab`); the table says where it lives. Parameters are kept
sharded over `fsdp` along `model`, and are gathered along it just before use (`gather`). All functions read the mesh
set by `jax.set_mesh`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from pomona.parallel.config import TABLE, Axes


def partition(axes: Axes, mesh: Mesh | AbstractMesh | None = None) -> PartitionSpec:
    """The `PartitionSpec` of a tensor with these logical axes; mesh axes of size one are left out."""
    sizes = (mesh or jax.sharding.get_abstract_mesh()).shape
    places = [tuple(a for a in TABLE[axis] if sizes.get(a, 1) > 1) if axis else () for axis in axes]
    used = [mesh_axis for place in places for mesh_axis in place]
    assert len(used) == len(set(used)), f"two dimensions of {tuple(axes)} live on one mesh axis: {used}"
    return PartitionSpec(*(place[0] if len(place) == 1 else place or None for place in places))


def sharding(mesh: Mesh | AbstractMesh, axes: Axes) -> NamedSharding:
    """The `NamedSharding` of a tensor with these logical axes."""
    return NamedSharding(mesh, partition(axes, mesh))


def gather(weight: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
    """A parameter in the compute dtype, whole along `model`: the all-gather of fully sharded data parallelism.

    The cast comes first, so that bfloat16 travels. The result is typed as reduced over the axes of the batch: its
    gradient arrives as the devices' own unreduced parts, and the transpose of the two steps scatters their sum over
    the shards, then adds the copies. In one step XLA would sum everything everywhere and throw most of it away.
    """
    weight = weight.astype(dtype)
    if _one_device():
        return weight
    summed = _present("batch") | _present("tokens")
    copies = summed - _present("model")
    weight = jax.sharding.reshard(weight, partition(axes).update(reduced=copies)) if copies else weight
    gathered = partition([None if axis == "model" else axis for axis in axes])
    return jax.sharding.reshard(weight, gathered.update(reduced=summed))


def place(value: jax.Array, axes: Axes) -> jax.Array:
    """The same array, laid out along these logical axes."""
    return value if _one_device() else jax.sharding.reshard(value, partition(axes))


def project(subscripts: str, value: jax.Array, weight: jax.Array, axes: Axes, dtype: Any = None) -> jax.Array:
    """An einsum whose result has these logical axes; a contraction over a sharded axis is summed over it. `dtype` is
    that of sums and result, where it is another than the arguments'."""
    out: Any = {} if _one_device() else {"out_sharding": partition(axes)}
    return jnp.einsum(subscripts, value, weight, preferred_element_type=dtype, **out)


def pick(table: jax.Array, rows: jax.Array, axes: Axes) -> jax.Array:
    """Rows of a table, which is whole along them; the result has these logical axes."""
    if _one_device():
        return table[rows]
    return table.at[rows].get(out_sharding=partition(axes))


def on_shards(
    function: Callable[..., Any], arguments: Sequence[Axes], results: Sequence[Axes] | Axes
) -> Callable[..., Any]:
    """Runs `function` on every device's own shards. Where a result lacks an axis, the function has summed over it."""
    if _one_device():
        return function
    nested = bool(results) and not isinstance(results[0], (str, type(None)))
    outputs = tuple(partition(axes) for axes in results) if nested else partition(results)  # type: ignore[arg-type]
    return jax.shard_map(
        function, in_specs=tuple(partition(axes) for axes in arguments), out_specs=outputs, check_vma=False
    )


def sum_over(value: Any, logical_axis: str) -> Any:
    """Inside `on_shards`: the sum over the devices that share a logical axis."""
    names = manual_axes(logical_axis)
    return jax.lax.psum(value, names) if names else value


def whole(weight: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
    """Inside `on_shards`: what `gather` gives outside. Its transpose scatters the gradient's sum over the shards."""
    return gathered(weight.astype(dtype), "model", list(axes).index("model"))


def gathered(value: jax.Array, logical_axis: str, dimension: int) -> jax.Array:
    """Inside `on_shards`: the shards of a logical axis side by side. Its transpose scatters the gradient's sum."""
    names = manual_axes(logical_axis)
    return jax.lax.all_gather(value, names, axis=dimension, tiled=True) if names else value


def manual_axes(logical_axis: str) -> tuple[str, ...]:
    """Inside `on_shards`: the mesh axes behind a logical axis that are larger than one."""
    mesh = jax.sharding.get_abstract_mesh()
    return () if mesh.empty else tuple(axis for axis in TABLE[logical_axis] if mesh.shape[axis] > 1)


def shard_index(logical_axis: str) -> jax.Array | int:
    """Inside `on_shards`: which shard of a logical axis this device holds; 0 where the axis is whole."""
    names = manual_axes(logical_axis)
    return jax.lax.axis_index(names) if names else 0


def shard_count(logical_axis: str) -> int:
    """Inside `on_shards`: over how many devices a logical axis is spread."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in manual_axes(logical_axis))


def _present(logical_axis: str) -> frozenset[str]:
    """The mesh axes behind a logical axis that are larger than one."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return frozenset(axis for axis in TABLE[logical_axis] if sizes.get(axis, 1) > 1)


def _one_device() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1

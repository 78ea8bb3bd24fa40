"""A parameter before it has numbers: `Spec`, and the tree maps that read it.

A model's parameters are a tree of frozen dataclasses. Built with `Spec` leaves it answers what every other part
asks (shapes, sharding, optimizer roles, initial values) without allocating anything; `initialize` gives the same
tree with arrays.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

Role = Literal["linear", "embedding", "norm", "score"]
"""`score`: one number a unit, by which a mask chooses."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """One parameter: its shape, a logical axis name per dimension, and its role.

    A first logical axis `layers` says that the tensor stacks one block per layer. `fan` is the variance scale of a
    linear layer or an embedding: the number of inputs (linear) or outputs (embedding) of one block.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    role: Role
    fan: int = 1

    def __post_init__(self):
        assert len(self.shape) == len(self.axes), (self.shape, self.axes)

    @property
    def stacked(self) -> bool:
        return self.axes[:1] == ("layers",)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def is_spec(leaf: Any) -> bool:
    """For `is_leaf` of tree maps over specs."""
    return isinstance(leaf, Spec)


def map_specs(function: Callable[..., Any], specs: Any, *rest: Any) -> Any:
    """`jax.tree.map` with `Spec` leaves in the first tree."""
    return jax.tree.map(function, specs, *rest, is_leaf=is_spec)


def abstract(specs: Any, dtype: Any = jnp.float32) -> Any:
    """The tree of `ShapeDtypeStruct`s."""
    return map_specs(lambda spec: jax.ShapeDtypeStruct(spec.shape, dtype), specs)


def count(specs: Any) -> int:
    """The number of parameters."""
    return sum(spec.size for spec in jax.tree.leaves(specs, is_leaf=is_spec))


def initialize(specs: Any, key: jax.Array, dtype: Any = jnp.float32) -> Any:
    """The tree of initial arrays: norms one, everything else normal with variance 1 / fan.

    Every parameter draws from a key of its own path, so that adding one does not change the others.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)
    return jax.tree.unflatten(structure, [_draw(spec, path, key, dtype) for path, spec in leaves])


def _draw(spec: Spec, path: Any, key: jax.Array, dtype: Any) -> jax.Array:
    if spec.role == "norm":
        return jnp.ones(spec.shape, dtype)
    name = jax.tree_util.keystr(path)
    own_key = jax.random.fold_in(key, int.from_bytes(_digest(name), "little"))
    return (jax.random.normal(own_key, spec.shape, jnp.float32) * spec.fan**-0.5).astype(dtype)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:4]

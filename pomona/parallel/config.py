"""How many devices along each mesh axis, and the one table from logical axes to them. No JAX: plans are made without
it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from pomona.core.errors import UserError

AXES = ("data", "fsdp", "seq", "tensor")
"""Mesh axes from outermost (least communication: it may cross slices) to innermost (most)."""

TABLE: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "tokens": ("seq",),
    # parameters
    "layers": (),
    "model": ("fsdp",),
    "norm": (),  # too small to gather
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "ffn": ("tensor",),
}

ZIGZAG = ("first_part", "last_part")
"""The parts of a sequence that each of its shards holds, where there are several (`zigzag.py`); programs call by these
names what is computed for them."""

Axes = Sequence[str | None]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1, which takes all devices that are left."""

    data: int = 1
    """Copies of the model; only gradients cross this axis."""
    fsdp: int = -1
    """Shards of parameters and optimizer state, gathered layer by layer."""
    seq: int = 1
    """Shards of the sequence."""
    tensor: int = 1
    """Shards of heads, feed-forward units and vocabulary."""


def mesh_shape(config: MeshConfig, num_devices: int, option: str = "--mesh") -> dict[str, int]:
    """The size of every axis, -1 resolved.

    Args:
        option: what one types for this mesh, here and below: the run's own, or `--stages.2.mesh`.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(
            f"the mesh {_text(sizes)} is not a mesh.",
            "every axis is at least 1, and at most one is -1 (all devices that are left).",
            f"{option}.data 1 {option}.fsdp -1",
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if num_devices % fixed or (not free and fixed != num_devices):
        raise UserError(
            f"the mesh {_text(sizes)} does not fit {num_devices} device{'s' if num_devices > 1 else ''}.",
            f"the axes multiply to the number of devices; these fix {fixed}.",
            f"sizes that divide {num_devices}, for instance "
            + " ".join(f"{option}.{axis} {-1 if axis == 'fsdp' else 1}" for axis in AXES),
        )
    return sizes | dict.fromkeys(free, num_devices // fixed)


def shards(axis: str | None, sizes: Mapping[str, int]) -> int:
    """Over how many devices a logical axis is spread on a mesh with these axis sizes."""
    return math.prod(sizes[mesh_axis] for mesh_axis in TABLE[axis]) if axis is not None else 1


def sequence_parts(sizes: Mapping[str, int]) -> int:
    """Into how many equal parts a sequence divides on a mesh with these axis sizes."""
    held_by = shards("tokens", sizes)
    return held_by if held_by == 1 else len(ZIGZAG) * held_by


def check_divides(
    name: str, shape: Sequence[int], axes: Axes, sizes: Mapping[str, int], option: str = "--mesh"
) -> None:
    """Checks that every sharded dimension splits evenly over a mesh with these axis sizes.

    Raises:
        UserError: it does not; the message names the dimension and the mesh axes.
    """
    for length, axis in zip(shape, axes, strict=True):
        if length % (number := shards(axis, sizes)):
            place = TABLE[axis or ""]
            raise UserError(
                f"{name} has {length} along {axis!r}, which does not divide over {number} devices.",
                f"{axis!r} is sharded over the mesh axes {' and '.join(place)}: "
                + ", ".join(f"{mesh_axis} {sizes[mesh_axis]}" for mesh_axis in place)
                + ".",
                f"{option}.{place[-1]} N with N a divisor of {length}.",
            )


def _text(sizes: dict[str, int]) -> str:
    return "(" + ", ".join(f"{axis} {size}" for axis, size in sizes.items()) + ")"

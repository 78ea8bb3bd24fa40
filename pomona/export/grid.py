"""Weights on the balanced 2-bit grid, for the formats that hold it bit for bit. Shapes: O outputs, I inputs."""

import numpy as np

from pomona.core.errors import UserError
from pomona.model.adapter import projection
from pomona.model.decoder import Decoder
from pomona.ops.palette import Palettized, is_balanced, unpack_nibbles


def balanced(params: Decoder, name: str, layer: int, dtype: str, instead: str) -> tuple[np.ndarray, np.ndarray]:
    """One projection as uint8 indices [O, I] and float16 scales [O]: scale * (index - 1.5).

    Args:
        name: the projection's, as `pomona.model.config.PLACES` has it.
        dtype: what is to hold it, and `instead` what could hold any weights.

    Raises:
        UserError: the weights are not on the grid.
    """
    weight = projection(params.layers, name)
    if not isinstance(weight, Palettized) or not is_balanced(np.asarray(weight.tables[layer])):
        raise UserError(
            f"layer {layer}'s {name} is not on the balanced 2-bit grid.",
            f"{dtype} holds that grid bit for bit, and no other palette.",
            f"--dtype {instead}, or a run of pomona palettize --bits 2 --grid balanced",
        )
    return unpack_nibbles(np.asarray(weight.indices[layer])), np.asarray(weight.scales[layer])

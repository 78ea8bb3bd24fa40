"""What the one loop needs to know of a kind of training: what it changes, what it only reads, and the loss.

A stage of a model's life that trains is an `Objective` for the same loop: faults, checkpoints, meshes and resume come
with it. Shapes: B batch, T tokens.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from pomona.model.config import Execution
from pomona.model.decoder import Decoder
from pomona.model.objective import LossSums, TokenBatch

Loss = Callable[[Any, Any, TokenBatch, jax.Array, Execution, float], LossSums]
"""(trained, frozen, batch, done, execution, rotary base) -> sums over the batch's tokens."""


def nothing(mesh: Mesh) -> None:
    """What most objectives keep frozen."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """One kind of training of one run.

    `done` is the share of the stage's updates that were applied, a float32 scalar from 0 to 1.
    """

    trained: Any
    """A tree of `Spec`s: what the optimizer changes, and a checkpoint's `params`."""
    model: Callable[[Any, Any, jax.Array], Decoder]
    """(trained, frozen, done) -> the decoder that is evaluated, and that generates."""
    loss: Loss
    frozen: Any = None
    """A tree of `ShapeDtypeStruct`s: what the loss reads besides, the same in every step."""
    load_frozen: Callable[[Mesh], Any] = nothing
    """The arrays of `frozen`, laid out on a mesh."""
    begin: Callable[[Mesh], Any] | None = None
    """The trained tree before the first step, laid out on a mesh; None: drawn from the run's seed."""
    labels: bool = False
    """Whether the loss reads the labels that a teacher gave to a batch."""

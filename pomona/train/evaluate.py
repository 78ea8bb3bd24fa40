"""Bits per byte on the held-out documents: the measure that does not depend on the tokenizer."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pomona.data.loader import Batch, take
from pomona.train.feed import Feed
from pomona.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Everything an evaluation needs; `step` is the compiled evaluation step."""

    batches: list[Callable[[], Batch]]
    token_bytes: np.ndarray  # int32 [V]
    feed: Feed
    step: Callable[..., jax.Array]
    frozen: Any = None


def evaluate(state: TrainState, heldout: HeldOut) -> dict[str, float]:
    """heldout_loss (nats per token) and bits_per_byte."""
    nats, tokens, size = 0.0, 0, 0
    for make in heldout.batches:
        batch = make()
        real = batch.counts > 0
        inputs = heldout.feed.put(take(batch, heldout.feed.rows))
        nats += float(heldout.step(state, inputs, heldout.frozen))
        tokens += int(real.sum())
        size += int(heldout.token_bytes[batch.targets][real].sum())
    return {"heldout_loss": nats / tokens, "bits_per_byte": nats / math.log(2) / size}

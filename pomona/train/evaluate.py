"""Bits per byte on the held-out documents: the measure that does not depend on the tokenizer."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pomona.data.loader import Batch
from pomona.train.feed import Feed


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Everything an evaluation needs; `step` is the compiled evaluation step."""

    batches: list[Callable[[], Batch]]
    token_bytes: np.ndarray  # int32 [V]
    feed: Feed
    step: Callable[[Any, Any], jax.Array]


def evaluate(params: Any, heldout: HeldOut) -> dict[str, float]:
    """heldout_loss (nats per token) and bits_per_byte."""
    nats, tokens, size = 0.0, 0, 0
    for make in heldout.batches:
        batch = make()
        real = batch.segments > 0
        local = Batch(*(getattr(batch, name)[heldout.feed.rows] for name in Batch.__dataclass_fields__))
        nats += float(heldout.step(params, heldout.feed.put(local)))
        tokens += int(real.sum())
        size += int(heldout.token_bytes[batch.targets][real].sum())
    return {"heldout_loss": nats / tokens, "bits_per_byte": nats / math.log(2) / size}

"""Batches from host memory to the mesh: every process makes and sends only the rows its devices hold.

Shapes: A micro-batches, B sequences of a micro-batch, T tokens. Row a * B + b of the global batch is [a, b].
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pomona.data.loader import Batch, Batches, stream
from pomona.model.objective import TokenBatch
from pomona.parallel import rules, zigzag
from pomona.parallel.config import shards
from pomona.train.config import Stage

BATCH_AXES = (None, "batch", "tokens")  # of the arrays [A, B, T]


class Feed:
    """Turns host batches of a stage into device arrays [A, B, T], in the order of `parallel/zigzag.py` where sequences
    are sharded; `check_stage_mesh` has seen that they divide."""

    def __init__(self, mesh: Mesh, stage: Stage):
        assert stage.micro_batches, "decide() the run first"
        self._shape = (stage.micro_batches, stage.batch_size // stage.micro_batches, stage.sequence_length)
        self._sharding = rules.sharding(mesh, BATCH_AXES)
        self._order = zigzag.order(stage.sequence_length, shards("tokens", mesh.shape))
        places = self._sharding.addressable_devices_indices_map(self._shape).values()
        spans = {place[1].indices(self._shape[1])[:2] for place in places if place is not None}
        columns = sorted({b for first, last in spans for b in range(first, last)})
        self.rows = [a * self._shape[1] + b for a in range(stage.micro_batches) for b in columns]
        self._local = {row: i for i, row in enumerate(self.rows)}

    def put(self, batch: Batch) -> TokenBatch:
        """The device arrays of a host batch that holds `rows`."""
        fields: dict[str, Any] = {n: None if rows is None else self._put(rows) for n, rows in vars(batch).items()}
        return TokenBatch(**fields)

    def take(self, computed: jax.Array) -> np.ndarray:
        """What was computed of every token of a batch, [A, B, T] on every device, as rows [A * B, T] of records."""
        rows = np.empty((self._shape[0] * self._shape[1], self._shape[2]), computed.dtype)
        rows[:, self._order] = np.asarray(computed).reshape(rows.shape)
        return rows

    def stream(self, batches: Batches, first: int, last: int) -> Iterator[Batch]:
        """This process's rows of the batches of steps `first` to `last`, made ahead of time."""
        return stream(batches, first, last, self.rows)

    def _put(self, local: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            a, b = (range(n)[i] for i, n in zip(index[:2], self._shape))
            rows, places = [self._local[x * self._shape[1] + y] for x in a for y in b], self._order[index[2]]
            return local[rows][:, places].reshape(len(a), len(b), len(places))

        return jax.make_array_from_callback(self._shape, self._sharding, shard)

"""Best-fit packing of documents into records of fixed length, offline: a plan, not a second copy of the tokens.

A document of n ids makes n - 1 predictions. It is cut into pieces of at most T predictions, and the pieces are put
into records of T (Ding et al. 2024, "Fewer Truncations Improve Language Modeling": longest first, each into the
fullest record it fits). Pieces of one document overlap by one id, so every id but `begin` is predicted exactly once.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which pieces make which record. Piece i predicts `lengths[i]` ids, the inputs beginning at `starts[i]`."""

    starts: np.ndarray  # int64 [pieces], in record order
    lengths: np.ndarray  # int32 [pieces]
    records: np.ndarray  # int64 [records + 1]: record r holds the pieces records[r] to records[r + 1]

    @property
    def num_records(self) -> int:
        return len(self.records) - 1


def pack(starts: np.ndarray, lengths: np.ndarray, record_length: int) -> Plan:
    """Packs documents (first id and number of ids each) into records of `record_length` predictions."""
    piece_starts, piece_lengths = _cut(starts, lengths - 1, record_length)
    order = np.argsort(-piece_lengths, kind="stable")
    piece_starts, piece_lengths = piece_starts[order], piece_lengths[order]
    record = _best_fit_decreasing(piece_lengths, record_length)
    by_record = np.argsort(record, kind="stable")
    counts = np.bincount(record, minlength=int(record.max(initial=-1)) + 1)
    return Plan(
        starts=piece_starts[by_record],
        lengths=piece_lengths[by_record].astype(np.int32),
        records=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def _cut(starts: np.ndarray, predictions: np.ndarray, record_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces (first id, predictions), documents in order and each from its beginning."""
    pieces = -(-predictions // record_length)
    document = np.repeat(np.arange(len(starts)), pieces)
    first_piece = np.concatenate([[0], np.cumsum(pieces)[:-1]]) if len(pieces) else np.zeros(0, np.int64)
    offset = (np.arange(len(document)) - first_piece[document]) * record_length
    return starts[document] + offset, np.minimum(predictions[document] - offset, record_length)


def _best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The record of every piece; `lengths` descend. Open records wait on one stack per free length, and the bits of
    one big integer say which stacks hold any, so the best fit is its lowest set bit above the piece's length."""
    full = int(np.searchsorted(-lengths, -capacity, side="right"))  # pieces that fill a record alone
    record = np.arange(len(lengths))
    next_record = full
    waiting: list[list[int]] = [[] for _ in range(capacity + 1)]
    bits = 0
    for piece, length in enumerate(lengths[full:].tolist(), start=full):
        fits = bits >> length
        if fits:
            free = length + (fits & -fits).bit_length() - 1
            place = waiting[free].pop()
            if not waiting[free]:
                bits &= ~(1 << free)
        else:
            free, place = capacity, next_record
            next_record += 1
        record[piece] = place
        if free > length:
            waiting[free - length].append(place)
            bits |= 1 << (free - length)
    return record

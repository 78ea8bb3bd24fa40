"""Several adapters at hand, and one of them for every sequence of a batch.

Contents and choice are arrays of fixed shapes, so that loading another adapter into a slot, or choosing otherwise,
compiles nothing. Shapes: L layers, N slots, I inputs, O outputs, R rank, B sequences.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomona.adapters.bundle import Bundle
from pomona.core.errors import UserError
from pomona.model.adapter import Adapter, adapter_specs, attach_bank, from_named
from pomona.model.config import Architecture
from pomona.model.decoder import Decoder
from pomona.model.spec import map_specs

NONE = -1
"""The choice of a sequence that the bare base computes."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bank:
    """N slots for adapters of at most one rank; a lower rank is filled up with zeros."""

    adapter: Adapter[jax.Array]  # leaves [L, N, I, R] and [L, N, R, O]
    scales: jax.Array  # float32 [N]; 0 in an empty slot

    @property
    def slots(self) -> int:
        return self.scales.shape[0]

    @property
    def rank(self) -> int:
        return self.adapter.query.a.shape[-1]


def empty_bank(architecture: Architecture, slots: int, rank: int, dtype: str = "float32") -> Bank:
    """A bank without adapters, in the type they are multiplied in."""
    specs = adapter_specs(architecture, rank)
    zeros = lambda spec: jnp.zeros((spec.shape[0], slots, *spec.shape[1:]), dtype)
    return Bank(map_specs(zeros, specs), jnp.zeros(slots, jnp.float32))


def bank_axes(architecture: Architecture) -> Bank:
    """The logical axes of a bank's arrays, as tuples: those of an adapter, with the slots between."""
    axes = lambda spec: (spec.axes[0], None, *spec.axes[1:])
    adapter: Any = map_specs(axes, adapter_specs(architecture, 1))
    scales: Any = (None,)
    return Bank(adapter, scales)


def load(bank: Bank, slot: int, bundle: Bundle) -> Bank:
    """The bank with a bundle in a slot; the old bank's arrays are used up.

    Raises:
        UserError: there is no such slot, or the rank is above the bank's.
    """
    if not 0 <= slot < bank.slots or bundle.rank > bank.rank:
        raise UserError(
            f"the adapter {bundle.name!r} of rank {bundle.rank} is to go into slot {slot}.",
            f"the bank has the slots 0 to {bank.slots - 1}, for ranks of at most {bank.rank}.",
            "a bank with more slots or a higher rank.",
        )
    missing = bank.rank - bundle.rank
    pad = {"a": ((0, 0), (0, 0), (0, missing)), "b": ((0, 0), (0, missing), (0, 0))}
    widen = lambda path, x: np.pad(x, pad[path[-1].name])
    adapter = jax.tree_util.tree_map_with_path(widen, from_named(bundle.weights))
    return _set(bank, adapter, jnp.int32(slot), jnp.float32(bundle.scale))


def attached(params: Decoder, bank: Bank) -> Decoder:
    """The decoder with a bank at hand; each sequence's adapter is chosen when it is computed (infer/slots.py)."""
    return attach_bank(params, bank.adapter, bank.scales, jnp.full(1, NONE, jnp.int32))


@partial(jax.jit, donate_argnums=0)
def _set(bank: Bank, adapter: Adapter, slot: jax.Array, scale: jax.Array) -> Bank:
    put = lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one.astype(all_.dtype), slot, axis=1)
    return Bank(jax.tree.map(put, bank.adapter, adapter), bank.scales.at[slot].set(scale))

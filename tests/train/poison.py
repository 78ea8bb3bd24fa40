"""Hooks for a run whose data makes its loss leap, and for the curve that it should have in the end."""

from small_run import LOOP, with_faults

# Batches 5 and 6 of the first stage, read at first by steps 6 and 7, have targets that no model could foresee.
POISON = (
    LOOP
    + """
import jax.numpy as jnp
class Poisoned:
    def __init__(self, dataset): self.dataset = dataset
    def __getitem__(self, index):
        record = self.dataset[index].copy()
        if 5 * 8 <= index < 7 * 8: record[1] = 399
        return record
def poisoned(prepared, length, *rest, old=loop.open_batches):
    batches = old(prepared, length, *rest)
    return dataclasses.replace(batches, dataset=Poisoned(batches.dataset)) if length == 32 else batches
def loud(step):
    def louder(state, batch):
        state, about = step(state, batch)
        return state, about | {"loss": about["loss"] + 50.0 * jnp.all(batch.targets == 399)}
    return louder
loop.open_batches = poisoned
loop.train_step = lambda *arguments, old=loop.train_step: loud(old(*arguments))
"""
)
# The same curve by brute force: from the fourth step on, the first stage reads four batches further.
SHIFTED = (
    LOOP
    + """
class Shifted:
    def __init__(self, dataset): self.dataset = dataset
    def __getitem__(self, index): return self.dataset[index + (4 * 8 if index >= 3 * 8 else 0)]
def shifted(prepared, length, *rest, old=loop.open_batches):
    batches = old(prepared, length, *rest)
    return dataclasses.replace(batches, dataset=Shifted(batches.dataset)) if length == 32 else batches
loop.open_batches = shifted
"""
)
WATCHED = with_faults("spike_window_steps=3, spike_deviations=6.0, bad_steps=2")

"""What computes, as the engine sees it: slots, each with room for one sequence, and work for some of them at a time.

Shapes: V vocabulary, D model.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pomona.model.sampling import Sampling
from pomona.serve.messages import Likely


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a request's tokens are chosen, and what is told of them."""

    sampling: Sampling
    seed: int
    logprobs: int | None = None
    """How many of the most likely tokens are told with each; None tells nothing."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Tokens that come next in a slot, and what is wanted after them."""

    slot: int
    position: int
    """Of the first of the tokens: all before it are in the slot."""
    tokens: Sequence[int]
    choice: Choice
    draws: int = 1
    """Tokens to draw after them, each following the one before; 0 where the prompt goes on."""
    guesses: int = 0
    """How many of the tokens, at their end, are guesses: a token is drawn after each, and after the one before them."""
    adapter: str | None = None
    mask: np.ndarray | None = None
    """int32 [V / 32, rounded up]: a bit for each token that may be drawn; for one draw."""
    followed_by: Sequence[int] | None = None
    """With a prompt whose log-probabilities are asked for: the token after each of these, as far as there is one."""
    hidden: bool = False
    """The sum of the last hidden states of these tokens is wanted."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a work. A draw depends on the seed and its position, never on what else is computed."""

    tokens: list[int]
    likely: list[Likely] = dataclasses.field(default_factory=list)
    prompt: list[Likely] = dataclasses.field(default_factory=list)
    """Of `followed_by`."""
    hidden: np.ndarray | None = None
    """float32 [D]."""


class Backend(Protocol):
    """A model in memory with its slots."""

    @property
    def slots(self) -> int: ...

    @property
    def context(self) -> int:
        """Tokens that a slot has room for."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def chunk(self) -> int:
        """Tokens of prompts that are computed between two draws of the others, at most."""

    @property
    def draws(self) -> int:
        """Draws in one dispatch, where nothing asks for single ones."""

    @property
    def guesses(self) -> int:
        """Guesses that are checked for a slot in one dispatch, at most; 0 where none are."""

    @property
    def adapters(self) -> Sequence[str]:
        """Their names."""

    @property
    def device(self) -> str:
        """What computes, in words."""

    @property
    def memory_bytes(self) -> int:
        """Of weights and slots."""

    @property
    def compiled(self) -> int:
        """Programs that were compiled after `warm`."""

    @property
    def copies(self) -> bool:
        """Whether `copy` can be called."""

    def warm(self) -> None:
        """Compiles all that requests will need."""

    def run(self, works: Sequence[Work]) -> list[Result]:
        """Computes works of different slots; those that draw all draw equally often, once or `draws` times."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Makes the first tokens of a slot those of another too."""


def likely_of(logits_V: np.ndarray, token: int, count: int) -> Likely:
    """A token's log-probability and the most likely ones, of equals the lower ids; in float64."""
    logits = logits_V.astype(np.float64)
    shifted = logits - logits.max()
    normal = shifted - np.log(np.exp(shifted).sum())
    few = np.argpartition(-logits, count)[:count] if 0 < count < len(logits) else np.arange(min(count, len(logits)))
    if count:
        least = logits[few].min()
        few = np.flatnonzero(logits >= least)
        few = few[np.argsort(-logits[few], kind="stable")][:count]
    return Likely(float(normal[token]), few.tolist(), normal[few].tolist())


def allowed(mask: np.ndarray, vocab_size: int) -> np.ndarray:
    """bool [V] of a mask's bits."""
    return np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocab_size].astype(bool)

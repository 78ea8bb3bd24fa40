"""A backend without a model: what it says is a hash of what came before. For tests of everything around it, and to time
what the engine itself takes."""

import time
from collections.abc import Sequence

import numpy as np

from pomona.data.tokenizer import END
from pomona.serve.backend import Result, Work, allowed, likely_of
from pomona.serve.messages import Likely

FIRST_TEXT = 259
"""Ids before it are control tokens and bytes."""


class MockBackend:
    """As the models, it says the same whatever else is computed, and whatever the sizes of chunks."""

    def __init__(
        self,
        vocab_size: int,
        slots: int = 4,
        context: int = 1024,
        chunk: int = 64,
        draws: int = 4,
        adapters: Sequence[str] = (),
        step_seconds: float = 0.0,
        end_every: int = 0,
        crash_on: int = -1,
    ) -> None:
        """
        Args:
            step_seconds: how long a dispatch takes.
            end_every: one in so many tokens is the end of the document; 0 for none.
            crash_on: a token of a prompt at which the process dies.
        """
        self.vocab_size, self.slots, self.context = vocab_size, slots, context
        self.chunk, self.draws, self.adapters = chunk, draws, tuple(adapters)
        self.step_seconds, self.end_every, self.crash_on = step_seconds, end_every, crash_on
        self.device, self.memory_bytes, self.compiled, self.copies, self.guesses = "mock", 0, 0, True, 5
        self.kept: list[list[int]] = [[] for _ in range(slots)]

    def warm(self) -> None:
        """Nothing to compile."""

    def run(self, works: Sequence[Work]) -> list[Result]:
        if self.step_seconds:
            time.sleep(self.step_seconds)
        return [self._one(work) for work in works]

    def copy(self, source: int, target: int, length: int) -> None:
        assert len(self.kept[source]) >= length
        self.kept[target] = self.kept[source][:length]

    def _one(self, work: Work) -> Result:
        kept = self.kept[work.slot]
        assert len(kept) >= work.position, "tokens are missing before these"
        assert work.position + len(work.tokens) + max(0, work.draws - 1) <= self.context
        del kept[work.position :]
        prompt: list[Likely] = []
        said: list[int] = []
        likely: list[Likely] = []
        for i, token in enumerate(work.tokens):
            if token == self.crash_on:
                raise SystemExit(f"token {token}")
            kept.append(token)
            if len(work.tokens) - work.guesses <= i + 1 < len(work.tokens):
                self._say(kept, work, said, likely)
            if work.followed_by is not None and i < len(work.followed_by):
                logits = self._logits(kept, work)
                prompt.append(likely_of(logits, work.followed_by[i], work.choice.logprobs or 0))
        for number in range(work.draws):
            if number:
                kept.append(said[-1])
            self._say(kept, work, said, likely)
        hidden = np.ones(8, np.float32) * sum(work.tokens) if work.hidden else None
        return Result(said, likely, prompt, hidden)

    def _say(self, kept: list[int], work: Work, said: list[int], likely: list[Likely]) -> None:
        said.append(self._draw(kept, work))
        if work.choice.logprobs is not None:
            likely.append(likely_of(self._logits(kept, work), said[-1], work.choice.logprobs))

    def _number(self, kept: list[int], work: Work) -> int:
        seed = work.choice.seed if work.choice.sampling.temperature else 0
        return hash((tuple(kept), sum((work.adapter or "").encode()), seed))

    def _draw(self, kept: list[int], work: Work) -> int:
        number = self._number(kept, work)
        if work.mask is not None:
            open_ids = np.flatnonzero(allowed(work.mask, self.vocab_size))
            return int(open_ids[number % len(open_ids)])
        if self.end_every and number % self.end_every == 0:
            return END
        return FIRST_TEXT + number % (self.vocab_size - FIRST_TEXT)

    def _logits(self, kept: list[int], work: Work) -> np.ndarray:
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self._draw(kept, work)] = 5
        return logits

"""A device file in the native runtime: what all slots need next is one batch, for which the weights are read once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pomona.device.engine import DeviceModel, load
from pomona.device.sample import draw
from pomona.device.session import Part, kept_bytes
from pomona.device.speculate import MOST
from pomona.serve.backend import Result, Work, allowed, likely_of


class DeviceBackend:
    """See `pomona.serve.backend.Backend`."""

    copies = False
    draws = 1
    guesses = MOST
    compiled = 0

    def __init__(
        self,
        file: Path,
        adapters: Mapping[str, Path] | None = None,
        slots: int = 8,
        context: int = 4096,
        threads: int | None = None,
        instruction_set: str = "",
        chunk: int = 64,
    ) -> None:
        """
        Raises:
            UserError: the file is damaged, an adapter is of another base, or there is no memory for the slots.
        """
        self.model: DeviceModel = load(file, check=True)
        self.tokenizer = self.model.tokenizer
        self.slots, self.context, self.chunk = slots, context, chunk
        self.vocab_size = self.model.file.architecture.vocab_size
        self._adapters = {name: self.model.adapter(path) for name, path in (adapters or {}).items()}
        self.adapters = tuple(self._adapters)
        engine = self.model.engine(threads, instruction_set)
        self._engine, self._sessions = engine, [engine.open(context) for _ in range(slots)]
        self._using: list[str | None] = [None] * slots
        self.device = f"{engine.instruction_set}, {engine.threads} threads"
        self.memory_bytes = self.model.file.weight_bytes + slots * kept_bytes(self.model.file, context)

    def warm(self) -> None:
        """Reads the weights once, so that the first request does not wait for the disk."""
        self._engine.advance([Part(self._sessions[0], [1])])
        self._sessions[0].forget(0)

    def run(self, works: Sequence[Work]) -> list[Result]:
        parts = []
        for work in works:
            session = self._sessions[work.slot]
            if self._using[work.slot] != work.adapter:
                session.use(None if work.adapter is None else self._adapters[work.adapter])
                self._using[work.slot] = work.adapter
            session.forget(work.position)
            assert session.length == work.position, "tokens are missing before these"
            every = work.followed_by is not None or work.guesses > 0
            parts.append(Part(session, work.tokens, every, work.hidden))
        return [self._result(work, logits) for work, logits in zip(works, self._engine.advance(parts))]

    def copy(self, source: int, target: int, length: int) -> None:
        raise NotImplementedError

    def _result(self, work: Work, logits: np.ndarray) -> Result:
        if work.hidden:
            return Result([], hidden=logits.sum(axis=0))
        prompt, count = [], work.choice.logprobs or 0
        if work.followed_by is not None:
            prompt = [likely_of(row, token, count) for row, token in zip(logits, work.followed_by)]
            logits = logits[-1]
        if not work.draws:
            return Result([], [], prompt)
        rows = logits if work.guesses else logits[None]
        first = work.position + len(work.tokens) - work.guesses
        tokens = [self._draw(work, row, first + number) for number, row in enumerate(rows)]
        told = (
            [] if work.choice.logprobs is None else [likely_of(row, token, count) for row, token in zip(rows, tokens)]
        )
        return Result(tokens, told, prompt)

    def _draw(self, work: Work, logits_V: np.ndarray, position: int) -> int:
        if work.mask is not None:
            logits_V = np.where(allowed(work.mask, self.vocab_size), logits_V, -np.inf)
        return draw(logits_V, work.choice.sampling, np.random.default_rng((work.choice.seed, position)))

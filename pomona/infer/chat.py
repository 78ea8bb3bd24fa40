"""A conversation with a model, as one text that grows: what was said before stays computed."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from pomona.core.errors import UserError
from pomona.data.stream import stream_text
from pomona.data.tokenizer import BEGIN, Tokenizer
from pomona.model.sampling import Sampling

TURN = "User: {}\nAssistant:"


class Speaker(Protocol):
    """One sequence that a model computes: a slot, or a session of the device runtime."""

    @property
    def context(self) -> int:
        """Tokens that it has room for."""

    @property
    def length(self) -> int:
        """Tokens that are kept."""

    def keep(self, tokens: list[int]) -> list[int]:
        """Keeps the beginning that a text shares with what is here; returns the rest of it, one token at least."""

    def generate(self, tokens: list[int], max_tokens: int, sampling: Sampling | None, seed: int) -> Iterator[int]:
        """The tokens that follow."""


Speak = Callable[[list[int], int, Sampling | None, int], Iterator[int]]


class Chat:
    """Turns of one conversation; the oldest are forgotten where the context ends."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        session: Speaker,
        turn: str = TURN,
        system: str = "",
        sampling: Sampling | None = None,
        speak: Speak | None = None,
    ) -> None:
        """
        Args:
            turn: how a turn reads, `{}` being what the user says; the model goes on after it.
            system: what comes before all turns, and is never forgotten.
            speak: how the session goes on from tokens, where not by itself: with guesses, for one.

        Raises:
            UserError: a turn without `{}`.
        """
        if turn.count("{}") != 1:
            raise UserError(f"the turn {turn!r}.", "a turn has {} once, for what the user says.", f"--turn {TURN!r}")
        self.tokenizer, self.session, self.turn, self.system = tokenizer, session, turn, system
        self.sampling, self.speak = sampling, speak or session.generate
        self.turns: list[str] = []
        self.forgotten = 0
        """Turns that were left out of the last prompt."""
        self.tokens, self.seconds, self.first = 0, 0.0, 0.0
        """Of the last answer: its tokens, the seconds they took, and those before the first of them."""

    def say(self, text: str, max_tokens: int = 500, seed: int = 0) -> Iterator[str]:
        """The answer, as it comes; what has come of it is part of the conversation, also where one stops asking.

        Raises:
            UserError: what is said has no room in the context.
        """
        self.turns.append(self.turn.replace("{}", text))
        self.tokens, self.seconds, self.first = 0, 0.0, 0.0
        prompt, began, answer = self._prompt(), time.perf_counter(), ""
        stop = "\n" + self.turn.partition("{}")[0].strip() if self.turn.partition("{}")[0].strip() else "\n"
        try:
            for piece in stream_text(self.tokenizer, self._spoken(prompt, max_tokens, seed, began), (stop,)):
                answer += piece
                yield piece
        finally:
            self.turns[-1] += f"{answer.rstrip()}\n"

    def forget(self) -> None:
        """Begins anew."""
        self.turns.clear()

    def _prompt(self) -> list[int]:
        """The newest turns that fit, with room for an answer; raises where the last one does not."""
        room = self.session.context - min(64, self.session.context // 4)
        for first in range(len(self.turns)):
            tokens = [BEGIN, *self.tokenizer.encode(self.system + "".join(self.turns[first:]))]
            if len(tokens) <= room:
                self.forgotten = first
                return tokens
        self.turns.pop()
        raise UserError(
            f"what is said is {len(tokens)} tokens long.",
            f"the context is {self.session.context} tokens, and a part of it is left for the answer.",
            f"a shorter text, or --context {2 * len(tokens)}",
        )

    def _spoken(self, prompt: list[int], max_tokens: int, seed: int, began: float) -> Iterator[int]:
        for token in self.speak(self.session.keep(prompt), max_tokens, self.sampling, seed):
            self.tokens, self.seconds = self.tokens + 1, time.perf_counter() - began
            self.first = self.first or self.seconds
            yield token

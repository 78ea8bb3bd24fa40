"""Several tokens for the reading of one: guesses that the model checks together (Leviathan et al. 2023, section 2.3).

A drafter guesses how a text goes on, the model computes all guesses at once, and keeps those that it would have said
itself. What comes out has the distribution that plain decoding has: a guess x, drawn from q, is kept with probability
min(1, p(x) / q(x)); the first that is not is replaced by a draw from max(0, p - q). Greedy decoding is the same text,
token by token, since a row's numbers do not depend on the rows beside it.

How many tokens are guessed follows from what was measured on the way (`Pace`): none where it does not pay.

Shapes: V vocabulary.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from pomona.data.tokenizer import END
from pomona.device.sample import draw, pick, probabilities
from pomona.device.session import Session
from pomona.model.sampling import Sampling, check_sampling

MOST = 7
"""Guesses at once: with the token before them, the 8 rows that the kernels multiply together."""


class Guess(NamedTuple):
    """A token, and the distribution it was drawn from; without one it was certain."""

    token: int
    drawn_from: np.ndarray | None = None  # float64 [V]


class Drafter(Protocol):
    """Guesses how a text goes on."""

    def guess(self, text: Sequence[int], count: int) -> list[Guess]:
        """At most `count` tokens after the text, which is longer than that of the last call, or another."""


class LookUp:
    """Guesses that what followed the same few tokens before follows again (Saxena 2023, prompt look-up)."""

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self.sizes = range(longest, shortest - 1, -1)
        self.text: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}
        """Where the text goes on after some tokens, the last time that they came."""

    def guess(self, text: Sequence[int], count: int) -> list[Guess]:
        if list(text[: len(self.text)]) != self.text:
            self.text, self.after = [], {}
        for end in range(len(self.text), len(text)):
            for size in self.sizes:
                if end >= size:
                    self.after[tuple(text[end - size : end])] = end
        self.text = list(text)
        for size in self.sizes:
            place = self.after.get(tuple(text[-size:])) if len(text) >= size else None
            if place is not None:
                return [Guess(token) for token in text[place : place + count]]
        return []


class DraftModel:
    """Guesses what a smaller model with the same tokenizer would say."""

    def __init__(self, session: Session, sampling: Sampling | None = None, seed: int = 0) -> None:
        self.session, self.sampling = session, sampling or Sampling(0.0)
        self.rng = np.random.default_rng(seed)

    def guess(self, text: Sequence[int], count: int) -> list[Guess]:
        count = min(count, self.session.context - len(text))
        found: list[Guess] = []
        waiting = self.session.keep(text)
        for _ in range(count):
            shares_V = probabilities(self.session.advance(waiting), self.sampling)
            found.append(Guess(pick(np.arange(len(shares_V)), shares_V, self.rng), shares_V))
            waiting = [found[-1].token]
        return found


@dataclasses.dataclass
class Pace:
    """How many tokens to guess: as many as make the most tokens a second, by what steps have taken and given."""

    most: int = MOST
    plain: float | None = None
    """Seconds of a step without guesses."""
    each: float | None = None
    """Seconds that one guess adds to a step, the guessing included."""
    kept: float = 0.7
    """The share of guesses that are right when those before them were."""
    steps: int = 0
    guessed: int = 0
    right: int = 0
    wrong: int = 0
    """Steps that ended at a wrong guess."""

    LOOK_AGAIN = 32
    SLOWLY = 0.15

    def count(self) -> int:
        """Tokens to guess at the next step."""
        if self.plain is None or self.steps % (2 * self.LOOK_AGAIN) == self.LOOK_AGAIN:
            return 0
        if self.each is None:
            return min(4, self.most)
        best = max(range(self.most + 1), key=self.rate)
        return 1 if best == 0 and self.most and self.steps % self.LOOK_AGAIN == 0 else best

    def rate(self, guesses: int) -> float:
        """Tokens a second, as expected with so many guesses."""
        assert self.plain is not None and self.each is not None, "both are measured first"
        tokens = sum(self.kept**number for number in range(guesses + 1))
        return tokens / (self.plain + guesses * self.each)

    def learn(self, guessed: int, right: int, seconds: float) -> None:
        """Takes a step into account."""
        self.steps += 1
        self.guessed, self.right = self.guessed + guessed, self.right + right
        self.wrong += right < guessed
        if guessed == 0:
            self.plain = self._towards(self.plain, seconds)
        elif self.plain is not None:
            self.each = self._towards(self.each, max(0.0, (seconds - self.plain) / guessed))
        for number in range(min(right + 1, guessed)):
            self.kept += 0.05 * ((number < right) - self.kept)

    def _towards(self, old: float | None, new: float) -> float:
        return new if old is None else old + self.SLOWLY * (new - old)


def generate(
    session: Session,
    tokens: Sequence[int],
    drafter: Drafter,
    max_tokens: int = 100,
    sampling: Sampling | None = None,
    seed: int = 0,
    pace: Pace | None = None,
) -> Iterator[int]:
    """The tokens that follow, as `Session.generate`, with guesses; `pace` tells afterwards how many were right.

    Args:
        tokens: the rest of the text that the session does not have yet.

    Raises:
        UserError: as `Session.generate`.
    """
    sampling, rng, pace = sampling or Sampling(), np.random.default_rng(seed), pace or Pace()
    check_sampling(sampling)
    said, last = 0, draw(session.advance(tokens), sampling, rng)
    while said < max_tokens and last != END:
        yield last
        said += 1
        if said == max_tokens or session.length == session.context:
            return
        began = time.perf_counter()
        text = [*session.tokens, last]
        room = min(pace.count(), max_tokens - said - 1, session.context - session.length - 1)
        guesses = drafter.guess(text, room) if room > 0 else []
        logits_TV = session.advance([last, *(guess.token for guess in guesses)], every=True)
        right, last = _check(logits_TV, guesses, sampling, rng)
        session.forget(len(text) + right)
        pace.learn(len(guesses), right, time.perf_counter() - began)
        for guess in guesses[:right]:
            if guess.token == END:
                return
            yield guess.token
            said += 1


def _check(
    logits_TV: np.ndarray, guesses: Sequence[Guess], sampling: Sampling, rng: np.random.Generator
) -> tuple[int, int]:
    """How many of the guesses are kept, and the token after them."""
    for number, guess in enumerate(guesses):
        if sampling.temperature == 0:
            best = int(np.argmax(logits_TV[number]))
            if best != guess.token:
                return number, best
            continue
        p = probabilities(logits_TV[number], sampling)
        q = np.zeros(len(p)) if guess.drawn_from is None else guess.drawn_from
        certain = 1.0 if guess.drawn_from is None else q[guess.token]
        if rng.random() * certain >= p[guess.token]:
            rest = np.maximum(0, p - q)
            if guess.drawn_from is None:
                rest[guess.token] = 0
            return number, pick(np.arange(len(p)), rest if rest.any() else p, rng)
    return len(guesses), draw(logits_TV[len(guesses)], sampling, rng)

"""A conversation with a model, as one text that grows: what was said before stays computed."""

import time
from collections.abc import Iterator

from pomona.core.errors import UserError
from pomona.data.stream import stream_text
from pomona.device.engine import DeviceModel
from pomona.device.session import Session
from pomona.device.speculate import Drafter, Pace, generate
from pomona.model.sampling import Sampling

TURN = "User: {}\nAssistant:"


class Chat:
    """Turns of one conversation; the oldest are forgotten where the context ends."""

    def __init__(
        self,
        model: DeviceModel,
        session: Session,
        turn: str = TURN,
        system: str = "",
        sampling: Sampling | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """
        Args:
            turn: how a turn reads, `{}` being what the user says; the model goes on after it.
            system: what comes before all turns, and is never forgotten.

        Raises:
            UserError: a turn without `{}`.
        """
        if turn.count("{}") != 1:
            raise UserError(f"the turn {turn!r}.", "a turn has {} once, for what the user says.", f"--turn {TURN!r}")
        self.model, self.session, self.turn, self.system = model, session, turn, system
        self.sampling, self.drafter, self.pace = sampling, drafter, Pace()
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
            for piece in stream_text(self.model.tokenizer, self._spoken(prompt, max_tokens, seed, began), (stop,)):
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
            tokens = self.model.encode(self.system + "".join(self.turns[first:]))
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
        rest = self.session.keep(prompt)
        if self.drafter is None:
            tokens = self.session.generate(rest, max_tokens, self.sampling, seed)
        else:
            tokens = generate(self.session, rest, self.drafter, max_tokens, self.sampling, seed, self.pace)
        for token in tokens:
            self.tokens, self.seconds = self.tokens + 1, time.perf_counter() - began
            self.first = self.first or self.seconds
            yield token

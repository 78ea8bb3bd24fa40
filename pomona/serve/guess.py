"""Guesses for all that draw: what each text may go on with, and how many guesses pay at this number of sequences.

What a sequence draws is decided by its seed and position, so a guess is right when it is what would have been drawn:
what is said is the same with and without guesses, token by token, for every temperature.
"""

from collections.abc import Callable

from pomona.data.tokenizer import Tokenizer
from pomona.device.engine import load_drafter
from pomona.device.speculate import Drafter, DraftModel, LookUp, Pace


class Guesses:
    """A drafter for each slot, and the pace for each number of slots that draw."""

    def __init__(self, drafter: Callable[[], Drafter], slots: int, most: int) -> None:
        self.drafters, self.most = [drafter() for _ in range(slots)], most
        self.paces: dict[int, Pace] = {}
        self.guessed = self.right = 0

    def count(self, drawing: int) -> int:
        """Guesses for each of so many slots at the next step."""
        return self._pace(drawing).count()

    def of(self, slot: int, text: list[int], count: int) -> list[int]:
        """At most so many guesses of how a slot's text goes on."""
        return [guess.token for guess in self.drafters[slot].guess(text, count)] if count > 0 else []

    def learn(self, drawing: int, told: list[tuple[int, int]], seconds: float) -> None:
        """Takes a step into account: of each slot how many were guessed and how many of those were right."""
        pace, some = self._pace(drawing), any(guessed for guessed, _ in told)
        for guessed, right in told:
            self.guessed, self.right = self.guessed + guessed, self.right + right
            if guessed or not some:
                pace.learn(guessed, right, seconds)

    def _pace(self, drawing: int) -> Pace:
        return self.paces.setdefault(drawing, Pace(self.most))


def drafter_of(speculate: str, tokenizer: Tokenizer, context: int) -> Callable[[], Drafter] | None:
    """What makes drafters: nothing for `none`, look-ups in the text for `lookup`, or the smaller model of a file.

    Raises:
        UserError: the file cannot be opened, or has another tokenizer.
    """
    if speculate == "none":
        return None
    if speculate == "lookup":
        return LookUp
    smaller = load_drafter(speculate, tokenizer)
    engine = smaller.engine()
    return lambda: DraftModel(engine.open(context))

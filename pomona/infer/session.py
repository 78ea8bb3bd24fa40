"""One sequence in a slot of its own, token by token: what a conversation in the terminal needs."""

from collections.abc import Iterator, Sequence

from pomona.data.tokenizer import END
from pomona.infer.sample import choices
from pomona.infer.slots import Slots, Wanted
from pomona.model.sampling import Sampling, check_sampling


class SlotSession:
    """The only slot of a `Slots`, with the tokens that are in it. See `infer.chat.Speaker`."""

    def __init__(self, slots: Slots, adapter: int = -1) -> None:
        """
        Args:
            adapter: with a bank of adapters in the parameters, the one that speaks.
        """
        assert slots.slots == 1
        self.slots, self.adapter = slots, adapter
        self.tokens: list[int] = []

    @property
    def context(self) -> int:
        return self.slots.context

    @property
    def length(self) -> int:
        return len(self.tokens)

    def keep(self, tokens: Sequence[int]) -> list[int]:
        most = min(self.length, len(tokens) - 1)
        same = next((i for i in range(most) if self.tokens[i] != tokens[i]), most)
        del self.tokens[same:]
        return list(tokens[same:])

    def generate(
        self, tokens: Sequence[int], max_tokens: int = 100, sampling: Sampling | None = None, seed: int = 0
    ) -> Iterator[int]:
        """The tokens that follow, up to `max_tokens`, the end of a document or the end of the context.

        Raises:
            UserError: sampling values out of range.
        """
        sampling = sampling or Sampling()
        check_sampling(sampling)
        wanted = self.slots.wanted(choices([sampling], [seed]), [self.adapter])
        token = self._read(list(tokens), wanted)
        for number in range(1, max_tokens + 1):
            if token == END:
                return
            yield token
            if number == max_tokens or self.length == self.context:
                return
            self.tokens.append(token)
            token = int(self.slots.decode([[token]], [self.length - 1], wanted, 1).token[0, 0])

    def _read(self, tokens: list[int], wanted: Wanted) -> int:
        chunk = self.slots.chunks[-1]
        for first in range(0, len(tokens), chunk):
            piece = tokens[first : first + chunk]
            found = self.slots.read(0, self.length, piece, wanted)
            self.tokens += piece
        return int(found.drawn.token[0])

"""Text from tokens as they come: whole characters, up to a text that stops it."""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from pomona.data.tokenizer import ESCAPE, Tokenizer, unescape


class TextStream:
    """Tokens go in, pieces of text come out, which together are `tokenizer.decode` of all tokens, up to the first stop,
    which is left out. A piece ends with a whole character, and holds nothing that may be the beginning of a stop."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.stopped = False
        """Whether a stop was found: there is no more to come."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._raw = self._waiting = ""

    @property
    def held_back(self) -> int:
        """Characters that are known but not yet sure."""
        return len(self._waiting) + len(self._raw)

    def push(self, token: int) -> str:
        """What is sure after one more token."""
        self._raw += self._decoder.decode(self.tokenizer.decode_bytes((token,)))
        if self._raw.endswith(ESCAPE):  # what it stands for is said by the next character
            return ""
        self._waiting, self._raw = self._waiting + unescape(self._raw), ""
        sure = until_stop(self._waiting, self.stops)
        if len(sure) < len(self._waiting):
            self.stopped, self._waiting = True, ""
            return sure
        sure = self._waiting[: len(self._waiting) - _held_back(self._waiting, self.stops)]
        self._waiting = self._waiting[len(sure) :]
        return sure

    def finish(self) -> str:
        """What is left when no more tokens come."""
        if self.stopped:
            return ""
        last = unescape(self._raw + self._decoder.decode(b"", final=True))
        left = until_stop(self._waiting + last, self.stops)
        self._raw = self._waiting = ""
        return left


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int], stops: Sequence[str] = ()) -> Iterator[str]:
    """The pieces of a `TextStream`, as tokens come; none is empty."""
    stream = TextStream(tokenizer, stops)
    for token in tokens:
        sure = stream.push(token)
        if sure:
            yield sure
        if stream.stopped:
            return
    left = stream.finish()
    if left:
        yield left


def until_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the stop that is complete first; of two that end together, before the longer."""
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return text[: min(found)[1]] if found else text


def _held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop."""
    sizes = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(sizes, default=0)

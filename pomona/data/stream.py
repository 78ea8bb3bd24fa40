"""Text from tokens as they come: whole characters, up to a text that stops it."""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from pomona.data.tokenizer import ESCAPE, Tokenizer, unescape


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int], stops: Sequence[str] = ()) -> Iterator[str]:
    """Pieces of text which together are `tokenizer.decode` of all tokens, up to the first stop, which is left out.

    A piece ends with a whole character, and holds nothing that may be the beginning of a stop.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    raw = waiting = ""
    for token in tokens:
        raw += decoder.decode(tokenizer.decode_bytes((token,)))
        if raw.endswith(ESCAPE):  # what it stands for is said by the next character
            continue
        waiting, raw = waiting + unescape(raw), ""
        sure = until_stop(waiting, stops)
        if len(sure) < len(waiting):
            yield sure
            return
        sure = waiting[: len(waiting) - _held_back(waiting, stops)]
        if sure:
            yield sure
        waiting = waiting[len(sure) :]
    waiting = until_stop(waiting + unescape(raw + decoder.decode(b"", final=True)), stops)
    if waiting:
        yield waiting


def until_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the stop that is complete first; of two that end together, before the longer."""
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return text[: min(found)[1]] if found else text


def _held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop."""
    sizes = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(sizes, default=0)

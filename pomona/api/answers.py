"""From the engine's tokens to text: pieces of one or several choices, as they come."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from pomona.api.errors import ApiError
from pomona.api.service import Service
from pomona.data.stream import TextStream
from pomona.serve.link import Unavailable
from pomona.serve.messages import Finished, Likely, Prompted, Said, Submit


@dataclasses.dataclass(frozen=True)
class Entry:
    """A token of an answer, and what is told of it."""

    token: int
    likely: Likely | None


@dataclasses.dataclass
class Piece:
    """The next part of a choice; `reason` is set in its last."""

    index: int
    text: str = ""
    entries: list[Entry] = dataclasses.field(default_factory=list)
    prompted: Prompted | None = None
    reason: str | None = None
    tokens: int = 0
    """Of the answer so far."""
    ended: bool = False
    """Whether it stopped by itself: at the end of its document, or of its grammar."""


async def pieces(service: Service, orders: Sequence[Submit], stops: Sequence[str]) -> AsyncGenerator[Piece, None]:
    """The pieces of all choices, mixed as they come. Whoever stops listening ends them all.

    Raises:
        ApiError: the engine was lost, or could not compute one of them.
    """
    merged: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    async def one(index: int, order: Submit) -> None:
        try:
            async with contextlib.aclosing(_choice(service, index, order, stops)) as choice:
                async for piece in choice:
                    merged.put_nowait(piece)
        except Exception as error:
            merged.put_nowait(error)

    tasks = [asyncio.create_task(one(index, order)) for index, order in enumerate(orders)]
    open_choices = len(tasks)
    try:
        while open_choices:
            piece = await merged.get()
            if isinstance(piece, Exception):
                raise piece
            open_choices -= piece.reason is not None
            yield piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def whole(service: Service, orders: Sequence[Submit], stops: Sequence[str]) -> list[Piece]:
    """Each choice as one piece."""
    found = [Piece(index) for index in range(len(orders))]
    async with contextlib.aclosing(pieces(service, orders, stops)) as coming:
        async for piece in coming:
            own = found[piece.index]
            own.text, own.entries = own.text + piece.text, own.entries + piece.entries
            own.prompted = own.prompted or piece.prompted
            own.reason, own.tokens, own.ended = piece.reason, piece.tokens, piece.ended
    return found


async def _choice(service: Service, index: int, order: Submit, stops: Sequence[str]) -> AsyncGenerator[Piece, None]:
    stream, waiting = TextStream(service.tokenizer, stops), _Entries()
    began, first, count = time.monotonic(), 0.0, 0
    async with contextlib.aclosing(_events(service, order)) as events:
        async for event in events:
            if isinstance(event, Prompted):
                yield Piece(index, prompted=event)
            elif isinstance(event, Said):
                first = first or time.monotonic()
                text = ""
                for number, token in enumerate(event.tokens):
                    count += 1
                    new = stream.push(token)
                    text += new
                    waiting.add(Entry(token, event.likely[number] if event.likely else None), new, stream)
                    if stream.stopped:
                        break
                if text or stream.stopped:
                    reason = "stop" if stream.stopped else None
                    yield Piece(index, text, waiting.take(stream.stopped), reason=reason, tokens=count)
                if stream.stopped:
                    break
            elif isinstance(event, Finished):
                text, reason = stream.finish(), _reason(event)
                entries = waiting.take(False, last=True)
                yield Piece(index, text, entries, reason=reason, tokens=count, ended=reason == "stop")
    _measure(service, began, first, count)


async def _events(service: Service, order: Submit) -> AsyncGenerator[Any, None]:
    try:
        async with contextlib.aclosing(service.link.events(order)) as events:
            async for event in events:
                yield event
    except Unavailable as error:
        raise ApiError(503, str(error), "engine_restarting", retry_after=2) from error


def _reason(event: Finished) -> str:
    if event.reason == "lost":
        raise ApiError(503, event.text, "engine_restarting", retry_after=2)
    if event.reason == "failed":
        raise ApiError(500, event.text, "engine_failed")
    return event.reason


def _measure(service: Service, began: float, first: float, count: int) -> None:
    now = time.monotonic()
    service.counters.whole.observe(now - began)
    if first:
        service.counters.first.observe(first - began)
    if count > 1:
        service.counters.each.observe((now - first) / (count - 1))


class _Entries:
    """Tokens whose text is not yet sure, which may turn out to belong to a stop."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Entry, int]] = []
        self.said = 0  # characters that are out
        self.known = 0  # characters that any token stands for so far

    def add(self, entry: Entry, new: str, stream: TextStream) -> None:
        self.waiting.append((entry, self.known))
        self.said += len(new)
        self.known = max(self.known, self.said + stream.held_back)

    def take(self, stopped: bool, last: bool = False) -> list[Entry]:
        """Those whose text has begun to come out."""
        out = [entry for entry, begins in self.waiting if last or begins < self.said]
        self.waiting = [] if stopped else self.waiting[len(out) :]
        return out

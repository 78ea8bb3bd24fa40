"""Requests over a connection to an engine, and the events of each to who waits for it."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from typing import Any

from pomona.serve.messages import Cancel, Finished, Order, Ready, Stats, Submit

LOST = "the engine has stopped; it is being started again"


class Unavailable(Exception):
    """The engine does not run at the moment."""


class Link:
    """One connection, for one event loop. Whoever reads it hands on what comes with `bring`."""

    def __init__(self, context: int, send: Callable[[Order], None]) -> None:
        """
        Args:
            context: tokens of a prompt and its answer at most, as long as the engine has not said so itself.
            send: puts an order on its way; it does not wait.
        """
        self._context, self._send = context, send
        self.ready: Ready | None = None
        """None while it does not run."""
        self.stats = Stats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)
        self.restarts = 0
        self.elsewhere = 0
        """Requests of others to the same engine, as last heard."""
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Queue[Any]] = {}

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer together at most."""
        return self.ready.context if self.ready else self._context

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._waiting) + self.elsewhere

    async def events(self, order: Submit) -> AsyncGenerator[Any, None]:
        """Submits a request under an id of our own and brings its events, `Finished` last; whoever stops listening
        cancels it.

        Raises:
            Unavailable: the engine does not run.
        """
        if self.ready is None:
            raise Unavailable(LOST)
        id = next(self._ids)
        own: asyncio.Queue[Any] = asyncio.Queue()
        self._waiting[id] = own
        fields = {name: getattr(order, name) for name in order.__struct_fields__} | {"id": id}
        self._send(Submit(**fields))
        ended = False
        try:
            while not ended:
                event = await own.get()
                ended = isinstance(event, Finished)
                yield event
        finally:
            self._waiting.pop(id, None)
            if not ended and self.ready is not None:
                self._send(Cancel(id))

    def bring(self, event: Any) -> None:
        """An event has come."""
        if isinstance(event, Stats):
            self.stats = event
        elif event.id in self._waiting:
            self._waiting[event.id].put_nowait(event)

    def lose(self, why: str) -> None:
        """The engine is gone, and with it all that was asked."""
        self.ready = None
        for id, own in self._waiting.items():
            own.put_nowait(Finished(id, "lost", why))

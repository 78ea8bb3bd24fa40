"""Who is computed next: requests of several principals, in a fixed number of slots.

Between priorities the higher goes first, and a waiting request takes the slot of a running one of lower priority.
Within a priority the principal that has been served least goes first: the virtual token counter (Sheng et al. 2024,
"Fairness in Serving Large Language Models", algorithm 2), by which two principals with work waiting are served alike
whatever their requests' sizes and numbers, up to what one batch holds. Within a principal, first come, first served.

Plain Python: it knows neither tokens' meaning nor what computes them.
"""

import dataclasses
from collections import deque
from typing import Generic, Protocol, TypeVar

PROMPT_WEIGHT, SAID_WEIGHT = 1.0, 2.0
"""What a token of a prompt and one that is said count, as in the paper: the second takes a step, the first a row."""
REMEMBERED = 4096
"""Principals without work whose counters are kept at most."""


class Request(Protocol):
    """What the scheduler asks of a request."""

    @property
    def id(self) -> int: ...

    @property
    def principal(self) -> str: ...

    @property
    def priority(self) -> int: ...


R = TypeVar("R", bound=Request)


@dataclasses.dataclass
class Scheduler(Generic[R]):
    """Waiting and running requests; every one is in exactly one of the two."""

    slots: int
    most_waiting: int
    running: dict[int, R] = dataclasses.field(default_factory=dict)
    """By slot, in the order in which they were admitted."""
    served: dict[str, float] = dataclasses.field(default_factory=dict)
    """The counters."""
    _waiting: dict[tuple[int, str], deque[R]] = dataclasses.field(default_factory=dict)
    """By priority and principal; never empty."""
    _level: float = 0.0
    """The counter of whoever was admitted last: a principal that comes back does not fall behind it."""

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    def submit(self, request: R) -> bool:
        """Takes a request; False where too many wait already."""
        if self.waiting >= self.most_waiting:
            return False
        if not self._has_work(request.principal):
            self._lift(request.principal)
        self._waiting.setdefault((request.priority, request.principal), deque()).append(request)
        return True

    def cancel(self, id: int) -> int | None:
        """Forgets a request, wherever it is; returns the slot that it leaves, if it had one."""
        for slot, request in self.running.items():
            if request.id == id:
                del self.running[slot]
                return slot
        for key, queue in self._waiting.items():
            for request in queue:
                if request.id == id:
                    queue.remove(request)
                    if not queue:
                        del self._waiting[key]
                    return None
        return None

    def next(self) -> R | None:
        """The request that should run next; it stays where it is until `admit`."""
        key = self._first()
        return self._waiting[key][0] if key else None

    def victim(self) -> int | None:
        """The slot that a waiting request may take: the last admitted of the lowest priority that is below its own."""
        key = self._first()
        if key is None or not self.running:
            return None
        lowest = min(request.priority for request in self.running.values())
        if lowest >= key[0]:
            return None
        return next(slot for slot, request in reversed(self.running.items()) if request.priority == lowest)

    def admit(self, slot: int) -> R:
        """Lets the next request into a free slot."""
        assert 0 <= slot < self.slots and slot not in self.running, f"slot {slot} is not free"
        key = self._first()
        assert key is not None, "nobody waits"
        request = self._waiting[key].popleft()
        if not self._waiting[key]:
            del self._waiting[key]
        self._level = max(self._level, self.served[request.principal])
        self.running[slot] = request
        return request

    def release(self, slot: int) -> None:
        """A request has ended."""
        del self.running[slot]

    def preempt(self, slot: int) -> R:
        """Puts a running request back, before all others of its principal and priority."""
        request = self.running.pop(slot)
        self._waiting.setdefault((request.priority, request.principal), deque()).appendleft(request)
        return request

    def charge(self, principal: str, prompt: int = 0, said: int = 0) -> None:
        """Counts tokens that were computed for a principal."""
        self.served[principal] = self.served.get(principal, self._level) + PROMPT_WEIGHT * prompt + SAID_WEIGHT * said

    def _first(self) -> tuple[int, str] | None:
        """Of the highest priority, the principal that was served least; of equals, the one that came first."""
        if not self._waiting:
            return None
        highest = max(priority for priority, _ in self._waiting)
        return min(
            (key for key in self._waiting if key[0] == highest),
            key=lambda key: (self.served[key[1]], self._waiting[key][0].id),
        )

    def _has_work(self, principal: str) -> bool:
        return any(key[1] == principal for key in self._waiting) or any(
            request.principal == principal for request in self.running.values()
        )

    def _lift(self, principal: str) -> None:
        """A principal that comes, or comes back, has no claim from the time in which it asked for nothing."""
        floor = min((self.served[key[1]] for key in self._waiting), default=self._level)
        self.served[principal] = max(self.served.pop(principal, 0.0), floor)
        if len(self.served) > REMEMBERED:
            idle = sorted(
                (p for p in self.served if p != principal and not self._has_work(p)), key=self.served.__getitem__
            )
            for each in idle[: len(self.served) - REMEMBERED]:  # the least served have the least to answer for
                del self.served[each]

"""Steps between the moment the device gets them and the moment they are logged."""

from collections.abc import Callable
from typing import Any

import jax

About = dict[str, jax.Array]  # scalars about one step


class Flight:
    """Keeps one step in flight: the device works on it while the host measures, logs and makes the next batch.

    Args:
        finished: called with the number of every step that is done and the scalars of all steps since it last
            returned True, this step's last.
    """

    def __init__(self, finished: Callable[[int, list[About]], bool]):
        self._finished = finished
        self._running: tuple[int, Any] | None = None
        self.unlogged: list[About] = []

    def started(self, step: int, about: About) -> None:
        """A step was given to the device; waits for the one before it."""
        self.land()
        self._running = step, about

    def land(self) -> None:
        """Waits for the step in flight, if there is one. Call before the state is used for anything but a step."""
        if self._running is None:
            return
        (step, about), self._running = self._running, None
        self.unlogged.append(jax.block_until_ready(about))
        if self._finished(step, self.unlogged):
            self.unlogged = []

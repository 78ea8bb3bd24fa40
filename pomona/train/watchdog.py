"""A step that never ends stops the run: stacks on stderr, a line in events.jsonl, exit code 124."""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable

from pomona.core.errors import STALLED

FIRST_STEP_FACTOR = 5  # the first step compiles


class Watchdog:
    """Call `progress` after every step; use as a context manager around the loop.

    A hung device call cannot be interrupted, so the process is ended from a thread, without clean-up. Checkpoints are
    atomic, so nothing is lost but the steps since the last one.
    """

    def __init__(self, limit_seconds: float, on_stall: Callable[[], None]):
        self._limit, self._on_stall, self._factor = limit_seconds, on_stall, 1
        self._progress, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._progress.set()
        self._thread.join()

    def progress(self) -> None:
        """A step was finished."""
        self._progress.set()

    def compiling(self) -> None:
        """The next step may take as long as the first one: it compiles, or a checkpoint is read before it."""
        self._factor = FIRST_STEP_FACTOR
        self._progress.set()

    def _watch(self) -> None:
        limit = FIRST_STEP_FACTOR * self._limit
        while self._progress.wait(limit):
            if self._stop.is_set():
                return
            self._progress.clear()
            limit, self._factor = self._factor * self._limit, 1
        print(f"no step was finished in {limit:.0f} s; the stacks of all threads follow", file=sys.stderr)
        faulthandler.dump_traceback(file=sys.stderr)
        self._on_stall()
        sys.stderr.flush()
        os._exit(STALLED)

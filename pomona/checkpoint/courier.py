"""Sends checkpoints of the local tier to the remote one, in the background, one at a time.

Only the first process has one, and it sends all files: at 1 GB/s the 830 GB of a 69 B-parameter state take a quarter
of an hour, and steps of the remote tier are hours apart.
"""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pomona.checkpoint.config import CheckpointConfig
from pomona.checkpoint.remote import Remote, RemoteProblem

ATTEMPTS = 3
CLOSE_SECONDS = 30.0  # a call that hangs in the network is left behind
PAUSE_SECONDS = 1.0  # after the first failure; twice as long after the next


@dataclasses.dataclass(frozen=True)
class Delivery:
    """How the sending of one checkpoint ended."""

    step: int
    problem: str | None
    size_bytes: int = 0
    seconds: float = 0.0


class Courier:
    """Offer it every sealed checkpoint; it takes those that are due.

    Args:
        last: the newest step that is at the address already, or 0.
    """

    def __init__(
        self,
        folder: Path,
        remote: Remote,
        config: CheckpointConfig,
        last: int = 0,
        pause: Callable[[float], None] = time.sleep,
    ):
        self._folder, self._remote, self._config, self._pause = folder, remote, config, pause
        self._last, self._closed = last, False
        self._waiting: int | None = None
        self._sending: int | None = None
        self._ended: list[Delivery] = []
        self._problems: dict[int, str] = {}
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="checkpoint courier", daemon=True)
        self._thread.start()

    def offer(self, step: int, must: bool = False) -> None:
        """A checkpoint is sealed. One that waits while another is sent gives way to a newer one."""
        with self._change:
            if must or step - self._last >= self._config.remote_every_steps:
                self._last, self._waiting = step, step
                self._change.notify_all()

    def in_transit(self) -> set[int]:
        """The steps whose local files are still needed."""
        with self._change:
            return {step for step in (self._waiting, self._sending) if step is not None}

    def ended(self) -> list[Delivery]:
        """What has ended since the last call."""
        with self._change:
            ended, self._ended = self._ended, []
            return ended

    def problem(self, step: int) -> str:
        """Why the address lacks a step that was taken, or an empty text."""
        with self._change:
            return self._problems.get(step, "")

    @property
    def copied_bytes(self) -> int:
        """Grows while something moves."""
        return self._remote.copied_bytes

    def close(self) -> None:
        """Gives up what is not there yet: half of a checkpoint is none."""
        with self._change:
            self._closed, self._waiting = True, None
            self._change.notify_all()
        self._remote.cancel()
        self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or self._waiting is not None)
                if self._closed or self._waiting is None:
                    return
                step = self._sending = self._waiting
                self._waiting = None
            delivery = self._send(step)
            with self._change:
                self._sending = None
                if delivery.problem and not self._closed:
                    self._last = -self._config.remote_every_steps  # the next one is due at once
                self._problems[step] = delivery.problem or ""
                self._ended.append(delivery)

    def _send(self, step: int) -> Delivery:
        began, problem = time.perf_counter(), ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._pause(PAUSE_SECONDS * 2 ** (attempt - 1))
            if self._closed:
                break
            try:
                size = self._remote.push(self._folder / str(step))
                self._thin()
                return Delivery(step, None, size, time.perf_counter() - began)
            except RemoteProblem as error:
                problem = str(error)
            except Exception as error:  # a thread that dies in silence would keep the run waiting
                problem = f"{type(error).__name__}: {error}"
        return Delivery(step, problem or "cancelled")

    def _thin(self) -> None:
        for old in sorted(self._remote.steps())[: -self._config.remote_keep]:
            self._remote.remove(old)

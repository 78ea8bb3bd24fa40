"""Commands one after the other, each in a process of its own, with a ledger of what was begun and what came of it.

A command is passed over if the ledger says that it ended well and nothing it reads was made anew since. Anything else
is started, and finds out by itself how much of its work is done.
"""

import dataclasses
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pomona.core.errors import Preempted
from pomona.core.run_folder import append_line
from pomona.launch.group import process_group
from pomona.metrics.records import read_records
from pomona.train.signals import stop_requests

LOOK_EVERY_SECONDS = 0.05
GRACE_SECONDS = 300.0  # for a command to save when it is asked to stop


@dataclasses.dataclass(frozen=True)
class Turn:
    """One command, and the run folders that it reads. It makes `run`, unless it only adds to it what it says of it."""

    name: str
    words: tuple[str, ...]
    run: Path
    reads: tuple[Path, ...] = ()
    budget_seconds: float | None = None
    always: bool = False
    """Never passed over: it is quick, and shows what the others did."""

    @property
    def typed(self) -> str:
        """As a shell takes it."""
        return shlex.join(["pomona", *self.words])


def left(turns: Sequence[Turn], ledger: Path) -> list[Turn]:
    """The turns that are still to be taken."""
    ended: dict[str, int] = {}  # command -> the line of its last good end
    made: dict[str, int] = {}  # run folder -> the line at which a command last began to change it
    for line, record in enumerate(read_records(ledger)):
        if record["event"] == "begin" and record["makes"]:
            made[record["run"]] = line
        if record["event"] == "end" and record["exit_code"] == 0:
            ended[record["command"]] = line
    stays = lambda turn, end: all(made.get(str(read), -1) < end and read.is_dir() for read in (*turn.reads, turn.run))
    return [turn for turn in turns if turn.always or not stays(turn, ended.get(turn.typed, -2))]


def take_turns(
    turns: Sequence[Turn], ledger: Path, program: Sequence[str], say: Callable[[str], None]
) -> tuple[Turn, int] | None:
    """Takes every turn that is left, and stops at the first one that fails.

    Args:
        program: what is put before a turn's words.
        say: told about every turn before it begins.

    Returns:
        The turn that failed and its exit code, or None.

    Raises:
        Preempted: a signal asked us to stop, and the command that was running has ended.
        UserError: the ledger cannot be written.
    """
    for number, turn in enumerate(turns, start=1):
        if turn not in left(turns, ledger):
            say(f"[{number}/{len(turns)}] {turn.name} is done: {turn.typed}")
            continue
        say(f"[{number}/{len(turns)}] {turn.name}: {turn.typed}")
        began = time.monotonic()
        known: dict[str, Any] = {"name": turn.name, "command": turn.typed, "run": str(turn.run)}
        known["makes"] = turn.run not in turn.reads
        _write(ledger, "begin", **known, budget_seconds=turn.budget_seconds)
        code = _take((*program, *turn.words))
        _write(ledger, "end", **known, exit_code=code, seconds=round(time.monotonic() - began, 3))
        if code:
            return turn, code
    return None


def _take(command: Sequence[str]) -> int:
    """Runs one command in a group of its own; a signal to us goes to it, and our end is its end."""
    with stop_requests() as stop, process_group(GRACE_SECONDS) as start:
        process = start(command, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        asked = False
        while process.poll() is None:
            if stop and not asked:
                process.terminate()
                asked = True
            time.sleep(LOOK_EVERY_SECONDS)
        if stop:
            raise Preempted("the command that was running has stopped; the same command goes on there.")
        return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _write(ledger: Path, event: str, **details: Any) -> None:
    append_line(ledger, {"event": event, "time_seconds": round(time.time(), 3), **details})

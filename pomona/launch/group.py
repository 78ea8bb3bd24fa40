"""Processes that end together, and with us: a group led by a keeper, of which nothing is left afterwards."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pomona.launch import keeper

Start = Callable[..., subprocess.Popen[bytes]]
"""(command, **options of Popen) -> the process, started in the group."""


@contextlib.contextmanager
def process_group(grace_seconds: float) -> Iterator[Start]:
    """Yields what starts a process in a new group; after the block all of it is gone.

    If we die inside it, the keeper ends the processes: it sees our end of a pipe close, and gives them `grace_seconds`.
    """
    lifeline, ours = os.pipe()
    members, theirs = os.pipe()
    watch = [sys.executable, "-I", "-S", keeper.__file__, str(members), str(grace_seconds)]
    leader = subprocess.Popen(watch, stdin=lifeline, pass_fds=[members], process_group=0)
    processes: list[subprocess.Popen[bytes]] = []

    def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        placed: dict[str, Any] = {"stdin": subprocess.DEVNULL, "process_group": leader.pid, "pass_fds": [theirs]}
        processes.append(subprocess.Popen(command, **placed, **options))
        return processes[-1]

    try:
        os.close(lifeline)
        os.close(members)
        yield start
    finally:
        os.killpg(leader.pid, signal.SIGKILL)  # the number stays ours until the leader is waited for
        for process in (*processes, leader):
            process.wait()
        os.close(ours)
        os.close(theirs)

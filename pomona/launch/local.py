"""Several processes of one run on this machine: started together, ended together, started again.

Each process has one device: a share of the CPU's cores, or one GPU. XLA carries what they tell each other; here is only
what a cluster's scheduler would do. Process 0 speaks for all and keeps the terminal; what the others print goes to
RUN/logs/.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pomona.core.errors import PREEMPTED, STALLED, USER_ERROR, Preempted, UserError
from pomona.launch.group import Start, process_group
from pomona.launch.job import check_fits
from pomona.train.config import Run
from pomona.train.signals import StopRequest, stop_requests

LOOK_EVERY_SECONDS = 0.1
LEAVE_SECONDS = 10.0  # after a failure the others get this long: they wait for one that is gone and cannot save
SETTLE_SECONDS = 1.0  # that others get to say more than the first one that failed
LONGEST_BACKOFF_SECONDS = 60.0
TAIL_LINES = 20  # of the log of the process that failed


@dataclasses.dataclass(frozen=True)
class Job:
    """What is started, how often, and where its output goes."""

    command: tuple[str, ...]
    processes: int
    logs: Path
    max_restarts: int = 3
    grace_seconds: float = 300.0
    """Time to save a checkpoint after SIGTERM, before SIGKILL."""


def check_job(run: Run, processes: int, max_restarts: int) -> None:
    """What can be seen to be wrong before any process is started.

    Raises:
        UserError: the run itself, no process at all, or more than a batch divides into.
    """
    if processes < 1 or max_restarts < 0:
        raise UserError(
            f"{processes} processes and {max_restarts} restarts are asked for.",
            "a job has at least one process, and is started again no less than 0 times.",
            "pomona launch local --processes 2 --max-restarts 3 " + run.name,
        )
    check_fits(run, processes, "--processes {devices}")


def run_job(job: Job, restarting: Callable[[int, int], None] = lambda code, count: None) -> int:
    """Runs the job to its end and returns its exit code; a signal to us is passed on.

    A process that dies takes the others along, and all are started again: the run resumes by itself. A mistake of the
    user is not tried twice.

    Args:
        restarting: told the exit code and the number of the restart before each.

    Raises:
        Preempted: a signal asked us to stop, and every process has ended.
    """
    restarts = 0
    with stop_requests() as stop:
        while True:
            index, code = _attempt(job, stop)
            if code in (0, USER_ERROR):
                return code
            if stop:
                raise Preempted("every process has stopped; the same command resumes the run.")
            what = f"process {index} of {job.processes} ended with {_text(code)}"
            if restarts == job.max_restarts:
                _say(f"{what}; it was started again {restarts} times, which is --max-restarts.")
                return code
            restarts += 1
            pause = min(2.0 ** (restarts - 1), LONGEST_BACKOFF_SECONDS)
            _say(f"{what}; all start again in {pause:.0f} s (restart {restarts} of {job.max_restarts}).")
            restarting(code, restarts)
            _wait(lambda: bool(stop), pause)
            if stop:
                raise Preempted("no process was running; the same command resumes the run.")


def _attempt(job: Job, stop: StopRequest) -> tuple[int, int]:
    """Starts all processes once and waits for all; the process that decides how it ended, and its exit code."""
    with _started(job) as processes:
        codes = lambda: [process.poll() for process in processes]
        ended = lambda: None not in codes()
        failed = lambda: any(codes())
        _wait(lambda: ended() or failed() or bool(stop))
        if stop:
            _terminate(processes)
            _wait(ended, job.grace_seconds)
        else:
            # A crash may be what follows from a mistake that another process is about to say.
            says_more = lambda: ended() or bool(set(codes()) & {PREEMPTED, USER_ERROR})
            _wait(says_more, SETTLE_SECONDS)
            # Who was preempted or has found a mistake told the others: they are leaving, and say more when left alone.
            if says_more():
                _wait(ended, job.grace_seconds if PREEMPTED in codes() else LEAVE_SECONDS)
        missing = -signal.SIGKILL if stop else 0  # what is about to happen to one that has not ended
        code_of = [missing if code is None else code for code in codes()]
        first = _telling(code_of)
        if not ended():
            _terminate(processes)
            _wait(ended, LEAVE_SECONDS)
    code = code_of[first]
    if code and first > 0:
        _show_log(job, first)
    return first, code if code >= 0 else 128 - code


def _telling(codes: list[int]) -> int:
    """The process whose exit code says most: a mistake, a stall, a death; what follows from another's end says less."""
    rank = lambda code: (code == USER_ERROR, code == STALLED, code < 0, code not in (0, PREEMPTED), code != 0)
    return max(range(len(codes)), key=lambda index: (rank(codes[index]), -index))


@contextlib.contextmanager
def _started(job: Job) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes of one attempt, in a group of their own of which nothing is left after the block."""
    with process_group(job.grace_seconds) as start:
        address = f"localhost:{_free_port()}"
        yield [_start(job, index, address, start) for index in range(job.processes)]


def _start(job: Job, index: int, address: str, start: Start) -> subprocess.Popen[bytes]:
    one_device = "--xla_force_host_platform_device_count=1"  # XLA takes the last of its flags
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(job.processes),
        "JAX_PROCESS_ID": str(index),
        "JAX_LOCAL_DEVICE_IDS": str(index),  # of the GPUs, where there are some
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {one_device}".strip(),
        "PYTHONUNBUFFERED": "1",  # process 0 is read live, and a killed one has said its last word
    }
    with contextlib.ExitStack() as files:
        output = None
        if index > 0:
            output = files.enter_context(log_path(job, index).open("ab"))
        return start(job.command, env=environment, stdout=output, stderr=output)


def log_path(job: Job, index: int) -> Path:
    """Where a process other than the first one prints to."""
    return job.logs / f"process-{index}.txt"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def _terminate(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()  # does nothing to one that has ended


def _wait(condition: Callable[[], bool], seconds: float = float("inf")) -> None:
    """Until the condition holds or the time is over."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(LOOK_EVERY_SECONDS)


def _show_log(job: Job, index: int) -> None:
    path = log_path(job, index)
    for line in path.read_text(errors="replace").splitlines()[-TAIL_LINES:]:
        print(f"[{index}] {line}", file=sys.stderr)
    _say(f"more of what process {index} said is in {path}")


def _text(code: int) -> str:
    return f"signal {signal.Signals(code - 128).name}" if code > 128 else f"exit code {code}"


def _say(text: str) -> None:
    print(f"pomona: {text}", file=sys.stderr, flush=True)

"""Ends the processes of a job whose launcher has died: `python keeper.py MEMBERS GRACE_SECONDS`.

It leads the job's process group and waits for two pipes. Standard input closes when the launcher is gone, however it
ended; MEMBERS, the number of a file descriptor, when all processes of the job are. It stands alone: no imports of ours,
so that it starts in a hundredth of a second.
"""

import os
import select
import signal
import sys


def main() -> None:
    """Sleeps until the launcher is gone; then SIGTERM for the group, and SIGKILL once it has had its time."""
    members, grace_seconds = int(sys.argv[1]), float(sys.argv[2])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGTERM)
    select.select([members], [], [], grace_seconds)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()

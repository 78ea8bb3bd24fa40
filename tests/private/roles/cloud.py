"""The whole private cloud on this machine, in processes of its own, over a small device file."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from pomona.private.client.asking import Asker
from pomona.private.client.trust import read_trust

ROOT = Path(__file__).parents[3]


class Cloud:
    """What runs: its folder, the process that started all others, and these by what they are."""

    def __init__(self, folder, process, port):
        self.folder, self.process, self.port = folder, process, port
        self.config = folder / "client.json"

    def trust(self):
        return read_trust(self.config)

    def asker(self, state="client"):
        return Asker(self.trust(), self.folder / state)

    def role(self, name):
        """The process of a role: log, issuer, relay, gateway, node0, node1."""
        place = {"log": 0, "issuer": 1, "relay": 2, "gateway": 3, "node0": 4, "node1": 5}[name]
        for each in psutil.Process(self.process.pid).children():
            if each.cmdline()[-2:] == ["--port", str(self.port + place)]:
                return each
        raise AssertionError(f"{name} does not run")

    def processes(self):
        """All of them, by a name that says what they are."""
        found = {"up": psutil.Process(self.process.pid)}
        for each in found["up"].children(recursive=True):
            found[" ".join(each.cmdline()[2:6]) + f" {each.pid}"] = each
        return found


def free_ports(count):
    """The first of so many ports in a row that nobody has; processes that were started one after the other look far
    from each other, and below what the system gives to clients."""
    for first in range(20000 + os.getpid() * 97 % 12000, 60000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    sock = stack.enter_context(socket.socket())
                    sock.bind(("127.0.0.1", port))
                return first
            except OSError:
                continue
    raise AssertionError("no ports are free")


@contextlib.contextmanager
def running(folder, model, *options, nodes=2):
    """The cloud, up until the block ends."""
    port = free_ports(4 + nodes)
    command = [sys.executable, "-m", "pomona.cli.main", "private", "up", str(model), "--folder", str(folder)]
    command += ["--port", str(port), "--nodes", str(nodes), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        said = process.stdout.readline()
        if "nodes serve" not in said:
            raise AssertionError(said + process.communicate(timeout=60)[1])
        yield Cloud(Path(folder), process, port)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            raise

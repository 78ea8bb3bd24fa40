"""After a request its worker is gone, and the next one has nothing of it."""

import asyncio
import contextlib
import json
import struct
import subprocess
import sys
import threading
import time

import httpx2
import msgspec
import pytest
from looking import PAGE_BYTES, Needles, forms_of, in_process, parts, regions, secret_letters

from pomona.private.attestation.bundle import identity_of
from pomona.private.client.asking import Asker, Drawn
from pomona.private.client.proxy import request_of

_PRESENT, _OF_A_FILE, _FRAME = 1 << 63, 1 << 61, (1 << 55) - 1


class OneNodesAsker(Asker):
    """A client that asks the cloud's first node, whatever else there is."""

    node = b""

    async def draw(self, known, model=""):
        drawn = await super().draw(known, model)
        return Drawn(tuple(each for each in drawn.recipients if each.identity == self.node), drawn.refused)


class Asking(threading.Thread):
    """A client that says a text to the cloud's first node, and waits for the answer."""

    def __init__(self, cloud, model, text):
        super().__init__(daemon=True)
        self.cloud, self.answered = cloud, {}
        self.body = {"model": model, "prompt": f"hello {text} you", "max_tokens": 4}
        self.start()

    def run(self):
        asyncio.run(self.ask())

    async def ask(self):
        address = f"http://127.0.0.1:{self.cloud.port + 4}/bundles"
        [bundle] = msgspec.json.decode(httpx2.get(address).content, type=list[bytes])
        asker = OneNodesAsker(self.cloud.trust(), self.cloud.folder / "stateless")
        asker.node = identity_of(bundle)
        async with asker, asker.ask(request_of("/v1/completions", json.dumps(self.body).encode())) as answer:
            self.answered = json.loads(await answer.whole())

    def answer(self):
        self.join(20)
        return self.answered["choices"][0]


@contextlib.contextmanager
def held(engine):
    """An engine that computes nothing meanwhile: workers wait for it with all that they have been told."""
    engine.suspend()
    try:
        yield
    finally:
        engine.resume()


def holders(forking, needles):
    """What is found in a process that forks workers and in these, by the processes that have something."""
    found = {}
    for each in [forking, *forking.children()]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # gone while it was looked at
            if names := in_process(each.pid, needles):
                found[each] = {name.split(" in ")[0] for name in names}
    return found


def holders_of(forking, needles, text):
    """The same, once a worker has been told a text."""
    until = time.monotonic() + 60
    while text not in set().union(*(found := holders(forking, needles)).values()):
        assert time.monotonic() < until, "no worker was given the request"
    return found


def wait_until_gone(process):
    """Waits until a process is gone."""
    began = time.monotonic()
    while process.is_running():
        assert time.monotonic() - began < 60, "it is still there"
        time.sleep(0.002)


def frames(pid):
    """The machine's page frames of memory that a process does not have from a file: those that it has for itself, or
    still has in common with who forked it."""
    found = set()
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        for begin, end, _, _, what in regions(pid):
            if what in ("[vvar]", "[vdso]", "[vsyscall]", "[vvar_vclock]"):
                continue
            file.seek(begin // PAGE_BYTES * 8)
            content = file.read((end - begin) // PAGE_BYTES * 8)
            for (entry,) in struct.iter_unpack("<Q", content):
                if entry & _PRESENT and not entry & _OF_A_FILE:
                    found.add(entry & _FRAME)
    return found


def shared_and_writable(pid):
    """The regions of a process that another one may see written to."""
    return [each for each in regions(pid) if "w" in each[2] and "s" in each[2]]


def files_mapped(pid):
    """(path, inode) of the files in a process's memory map."""
    return {(what, inode) for _, _, _, inode, what in regions(pid) if inode}


def test_each_request_has_a_worker_that_is_gone_after_it_and_of_which_the_next_has_nothing(cloud, device_file):
    engine, forking = (parts(cloud)[name][0] for name in ("engine0", "forking0"))
    waiting = {each.pid for each in forking.children()}
    texts = {f"text {number}": secret_letters() for number in range(3)}
    needles = Needles([each for name, text in texts.items() for each in forms_of(name, text)])
    served = []
    for name, text in texts.items():
        with held(engine):
            asking = Asking(cloud, device_file.stem, text)
            found = holders_of(forking, needles, name)
        assert list(found.values()) == [{name}], found  # one process, with this text and no earlier one
        [worker] = found
        served.append(worker)
        assert asking.answer()["finish_reason"]
        wait_until_gone(worker)
    assert len({each.pid for each in served}) == 3 and forking not in served
    assert served[0].pid in waiting, "it was forked before the request came"
    assert holders(forking, needles) == {}


def test_two_workers_share_nothing_but_what_was_there_before_any_request(cloud, device_file):
    engine, forking = (parts(cloud)[name][0] for name in ("engine0", "forking0"))
    texts = {f"text {number}": secret_letters() for number in range(2)}
    needles = Needles([each for name, text in texts.items() for each in forms_of(name, text)])
    asking = []
    with held(engine):
        for name, text in texts.items():
            asking.append(Asking(cloud, device_file.stem, text))
            found = holders_of(forking, needles, name)
        assert sorted(found.values(), key=sorted) == [{"text 0"}, {"text 1"}] and forking not in found, found
        pids = [each.pid for each in found]
        maps = {pid: files_mapped(pid) for pid in [*pids, forking.pid]}
        shared = [shared_and_writable(pid) for pid in pids]
        theirs, own = [frames(pid) for pid in pids], frames(forking.pid)
    assert all(each.answer() for each in asking)
    assert shared == [[], []]
    assert all(maps[pid] <= maps[forking.pid] for pid in pids), maps
    assert not any("deleted" in path or "memfd" in path for path, _ in maps[forking.pid])
    if own <= {0}:
        pytest.skip("page frames are for root to see")
    common, alone = theirs[0] & theirs[1], theirs[0] - own
    assert len(common) > 1000 and len(alone) > 100
    # A page that the forking process has written to since is the workers' alone: a few. What it says was there before
    # them, or both would have been found to hold one text.
    assert len(common - own) <= 16, f"{len(common - own)} pages are both workers' and not of who forked them"


def test_memory_that_two_processes_share_is_seen():
    """What the test above looks at, where there is something to see."""
    program = (
        "import mmap, os, sys, tempfile\n"
        "file = tempfile.TemporaryFile(); file.write(bytes(9)); file.flush()\n"
        "kept = mmap.mmap(-1, 9), mmap.mmap(file.fileno(), 9)\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        pids = process.pid, int(process.stdout.readline())
        assert all(len(shared_and_writable(pid)) == 2 for pid in pids)
        assert any("deleted" in path for path, _ in files_mapped(pids[1]))
        process.communicate("\n\n")

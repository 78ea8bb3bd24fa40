"""Looks for a secret where none may be: in the memory of processes, in files, in what went over the wire.

python looking.py up FOLDER MODEL PORT CHANGE...    the private cloud; what is changed: [role, argument, its other]
python looking.py ask CONFIG STATE                   requests from standard input, one JSON a line
python looking.py pry PID...                         whose memory a process of the same user may open
"""

import asyncio
import base64
import contextlib
import ctypes
import json
import os
import resource
import secrets
import socket
import string
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from cloud import ROOT, Cloud

SECRET_LETTERS, PART_LETTERS, PART_TOKENS = 48, 24, 16
WORD_BYTES, _HASH_BITS = 8, 22
CHUNK_BYTES, OVERLAP_BYTES = 1 << 22, 4096
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PR_CAPBSET_DROP, _CAP_SYS_PTRACE = 24, 19


class Needles:
    """Byte strings of 15 bytes or more, by names, which are found in any bytes at the speed of a few table look-ups: of
    the machine words that a needle may cover, wherever it begins, those at hand are looked up in a table of hashes.
    """

    def __init__(self, needles):
        self.needles = {name: [form for form in forms if len(form) >= 2 * WORD_BYTES - 1] for name, forms in needles}
        assert all(len(forms) == len(given) for forms, (_, given) in zip(self.needles.values(), needles))
        every = [form for forms in self.needles.values() for form in forms]
        words = {form[at : at + WORD_BYTES] for form in every for at in range(WORD_BYTES)}
        self._words = np.unique(np.frombuffer(b"".join(words), np.uint64))
        self._table = np.zeros(1 << _HASH_BITS, bool)
        self._table[_hashes(self._words)] = True
        self._around = max(map(len, every)) + WORD_BYTES

    def in_(self, data):
        """The names of those that are there."""
        words = np.frombuffer(data, np.uint64, len(data) // WORD_BYTES)
        near = np.flatnonzero(self._table[_hashes(words)])
        near = near[np.isin(words[near], self._words)] * WORD_BYTES
        found = set()
        for at in near.tolist():
            place = data[max(0, at - self._around) : at + self._around]
            found |= {name for name, forms in self.needles.items() if any(form in place for form in forms)}
        return found


def _hashes(words):
    return (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _HASH_BITS)


def secret_letters():
    """A text that nobody else has."""
    return "".join(secrets.choice(string.ascii_lowercase) for _ in range(SECRET_LETTERS))


def forms_of(about, text):
    """The forms that a secret's letters may have somewhere, and parts of 24 of them; for `Needles`. JSON, URLs and
    Python's `repr` leave letters as they are."""
    forms = {}
    for part in (text[at : at + PART_LETTERS] for at in range(0, len(text) - PART_LETTERS + 1, PART_LETTERS // 2)):
        kinds = {"UTF-16": "utf-16-le", "UTF-16, big-endian": "utf-16-be", "UTF-32": "utf-32-le"}
        found = {"UTF-8": part.encode(), "hexadecimal": part.encode().hex().encode()}
        found |= {name: part.encode(encoding) for name, encoding in kinds.items()}
        for at in range(3):  # the first characters depend on what stands before, the last on what follows
            found[f"base64, {at} bytes on"] = base64.b64encode(b"\0" * at + part.encode())[4:-4]
        for name, form in found.items():
            forms.setdefault(f"{about} in {name}", []).append(form)
    return [*forms.items()]


def token_forms_of(about, tokens):
    """The same of token ids, packed and in the MessagePack that a node's processes speak; parts of 16 of them."""
    forms = {}
    for at in range(0, len(tokens) - PART_TOKENS + 1, PART_TOKENS // 2):
        part = tokens[at : at + PART_TOKENS]
        found = {kind.__name__: np.array(part, kind).tobytes() for kind in (np.uint16, np.int32, np.int64)}
        found["MessagePack"] = b"".join(map(msgspec.msgpack.encode, part))
        found["decimal"] = json.dumps(part, separators=(",", ":"))[1:-1].encode()
        for name, form in found.items():
            forms.setdefault(f"{about} as {name}", []).append(form)
    return [*forms.items()]


def regions(pid):
    """(begin, end, permissions, inode, what) of a process's memory map."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        place, permissions, _, _, inode, *what = line.split(maxsplit=5)
        begin, end = (int(each, 16) for each in place.split("-"))
        yield begin, end, permissions, int(inode), what[0] if what else ""


def memory(pid):
    """What a process can have written: all of its memory but maps of files that it only reads."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for begin, end, permissions, inode, what in regions(pid):
            if permissions[0] != "r" or what.startswith("[v") or (inode and permissions[1] != "w"):
                continue
            kept = b""
            for at in range(begin, end, CHUNK_BYTES):
                file.seek(at)
                content = kept + file.read(min(CHUNK_BYTES, end - at))
                yield content
                kept = content[-OVERLAP_BYTES:]


def in_process(pid, needles):
    """The names of the needles that are in a process's memory; the test is skipped where it may not be read."""
    try:
        return {name for content in memory(pid) for name in needles.in_(content)}
    except PermissionError:
        pytest.skip("other processes' memory is for root to read")


def in_files(files, needles):
    """The same of files and their names, by their paths; those without any are left out."""
    found = {}
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # a temporary one
            if names := needles.in_(path.name.encode() + b"\0" * 16 + path.read_bytes()):
                found[path] = names
    return found


def files_below(*folders):
    """All regular files there."""
    return [each for folder in folders for each in folder.rglob("*") if each.is_file()]


def open_files(pid):
    """The regular files that a process has open, by what opens them again even where they are deleted."""
    descriptors = [each for each in Path(f"/proc/{pid}/fd").iterdir() if each.exists()]
    return [each for each in descriptors if each.is_file()]


def parts(cloud):
    """All processes of a cloud by what they are: of a node `node0`, `engine0`, `forking0`, and `worker0` for each that
    waits or works."""
    found = {name: [cloud.role(name)] for name in ("log", "issuer", "relay", "gateway", "node0", "node1")}
    for number in range(2):
        [engine] = [each for each in found[f"node{number}"][0].children() if "pomona.serve.process" in each.cmdline()]
        [forking] = forking_processes(found[f"node{number}"][0])
        workers = forking.children()
        found |= {f"engine{number}": [engine], f"forking{number}": [forking], f"worker{number}": workers}
    emulators = [each for each in psutil.Process(cloud.process.pid).children() if each.name() == "swtpm"]
    return found | ({"tpm": emulators} if emulators else {})


def forking_processes(node):
    """Those of a node that fork workers: one for each of its keys."""
    return [each for each in node.children() if "pomona.private.roles.worker" in each.cmdline()]


class Recorder:
    """Stands before a server and keeps all bytes of all connections: (to the server, from it) for each."""

    def __init__(self, port, server):
        self.address, self.server = f"http://127.0.0.1:{port}", ("127.0.0.1", server)
        self.connections = []
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self._listener.accept()[:1], daemon=True).start()

    def _serve(self, theirs):
        with theirs, contextlib.suppress(OSError), socket.create_connection(self.server) as ours:
            kept = bytearray(), bytearray()
            self.connections.append(kept)
            back = threading.Thread(target=self._pass, args=(ours, theirs, kept[1]), daemon=True)
            back.start()
            self._pass(theirs, ours, kept[0])
            back.join()

    def _pass(self, source, target, keep):
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                keep += content
                target.sendall(content)
        for end in (source, target):  # half a connection is none here: who closes wants no more
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @property
    def transcript(self):
        """All of it, both ways, connection after connection."""
        return b"".join(bytes(each) for kept in list(self.connections) for each in kept)

    def close(self):
        """Listens no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def recorded_cloud(folder, model, port, changed, working, temporary):
    """A cloud as `cloud.running` starts it, some of whose addresses are others, {(role, address): address}; in a
    folder to work in, and with one for temporary files."""
    command = [sys.executable, __file__, "up", str(folder), str(model), str(port)]
    command += [json.dumps([*old, new]) for old, new in changed.items()]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        cwd=working,
    )
    try:
        said = process.stdout.readline()
        if "nodes serve" not in said:
            raise AssertionError(said + process.communicate(timeout=60)[1])
        yield Cloud(folder, process, port)
    finally:
        process.terminate()
        process.communicate(timeout=40)


def asked(config, state, requests):
    """What a client in a process of its own, which is gone afterwards, was answered: (status, content) for each of
    the requests, (path, body as text, whether it goes away after the first piece)."""
    command = [sys.executable, __file__, "ask", str(config), str(state)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        command,
        input="".join(json.dumps(each) + "\n" for each in requests),
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    if found.returncode:
        raise AssertionError(found.stderr)
    return [tuple(json.loads(line)) for line in found.stdout.splitlines()]


def pried(pids):
    """The processes whose memory another process of the same user could open: one that has no right over others.

    None where this one cannot give that right up."""
    found = subprocess.run(
        [sys.executable, __file__, "pry", *map(str, pids)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return None if found.returncode else {int(each) for each in found.stdout.split()}


def give_up_tracing():
    """No program that this process starts has the right to read any process, root's neither; whether that could be
    had."""
    if os.geteuid() != 0:
        return True
    return ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_SYS_PTRACE, 0, 0, 0) == 0


def _up(folder, model, port, *changed):
    from pomona.private.roles import up

    exchanged = {(role, old): new for role, old, new in map(json.loads, changed)}

    class Recorded(up._Processes):
        def start(self, name, role, *arguments, place):
            given = [exchanged.get((role, each), each) for each in arguments]
            super().start(name, role, *given, place=place)

    # What a role does against core dumps and other processes shows only where the machine would allow them.
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    give_up_tracing()
    up._Processes = Recorded
    up.run_laptop(up.Laptop(Path(folder), Path(model), {}, 2, int(port)), lambda text: print(text, flush=True))


def _ask(config, state):
    from pomona.private.client.asking import Asker
    from pomona.private.client.proxy import request_of
    from pomona.private.client.trust import read_trust

    async def ask():
        async with Asker(read_trust(Path(config)), Path(state)) as asker:
            for line in sys.stdin:
                path, content, goes_away = json.loads(line)
                async with asker.ask(request_of(path, content.encode())) as answer:
                    whole = (await anext(answer.pieces)) if goes_away else await answer.whole()
                    print(json.dumps([answer.status, whole.decode()]))

    asyncio.run(ask())


def _pry(*pids):
    if os.geteuid() == 0 and os.environ.get("PRIED") is None:
        if not give_up_tracing():
            raise SystemExit(1)
        os.execve(sys.executable, [sys.executable, __file__, "pry", *pids], os.environ | {"PRIED": "1"})
    for pid in pids:
        with contextlib.suppress(PermissionError), open(f"/proc/{pid}/mem", "rb"):
            print(pid)


if __name__ == "__main__":
    {"up": _up, "ask": _ask, "pry": _pry}[sys.argv[1]](*sys.argv[2:])

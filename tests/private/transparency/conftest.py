"""A log's keys, the reference vectors, and RFC 6962's definitions as they are written there: recursive."""

import functools
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pomona.private.transparency.log import open_log
from pomona.private.transparency.note import Signer


@pytest.fixture(scope="session")
def vectors():
    """The vectors of a file beside this one."""
    folder = Path(__file__).parent / "vectors"
    return lambda name: json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def signer():
    return Signer("example.org/log", bytes(range(32)))


@pytest.fixture(scope="session")
def witness():
    return Signer("example.org/witness", bytes(range(1, 33)))


@pytest.fixture
def log(tmp_path, signer):
    """An empty log in `tmp_path / "log"`."""
    with open_log(tmp_path / "log", signer, "example.org/log") as opened:
        yield opened


@pytest.fixture(scope="session")
def defined():
    """`root`, `path` and `proof` of a tuple of entries, as RFC 6962 defines MTH, PATH and PROOF."""

    def split(count):
        power = 1
        while power * 2 < count:
            power *= 2
        return power

    @functools.cache
    def root(entries):
        if not entries:
            return hashlib.sha256().digest()
        if len(entries) == 1:
            return hashlib.sha256(b"\x00" + entries[0]).digest()
        k = split(len(entries))
        return hashlib.sha256(b"\x01" + root(entries[:k]) + root(entries[k:])).digest()

    def path(m, entries):
        if len(entries) == 1:
            return []
        k = split(len(entries))
        if m < k:
            return [*path(m, entries[:k]), root(entries[k:])]
        return [*path(m - k, entries[k:]), root(entries[:k])]

    def subproof(m, entries, whole):
        if m == len(entries):
            return [] if whole else [root(entries)]
        k = split(len(entries))
        if m <= k:
            return [*subproof(m, entries[:k], whole), root(entries[k:])]
        return [*subproof(m - k, entries[k:], False), root(entries[:k])]

    def node_of(entries):
        return lambda level, index: root(entries[index << level : (index + 1) << level])

    def proof(m, entries):
        return subproof(m, entries, True)

    return SimpleNamespace(root=root, path=path, proof=proof, node_of=node_of)


@pytest.fixture(scope="session")
def files_of():
    """All files of a tlog-tiles log of these entries but the checkpoint, row by row of the tree: {path: content}."""

    def place(number, width):
        digits = str(number).zfill(-(-len(str(number)) // 3) * 3)
        groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        return "/".join(["x" + group for group in groups[:-1]] + groups[-1:]) + (f".p/{width}" if width < 256 else "")

    def files(entries):
        found, row, level = {}, [hashlib.sha256(b"\x00" + entry).digest() for entry in entries], 0
        for at in range(0, len(entries), 256):
            some = entries[at : at + 256]
            content = b"".join(len(each).to_bytes(2, "big") + each for each in some)
            found["tile/entries/" + place(at // 256, len(some))] = content
        while row:
            for at in range(0, len(row), 256):
                found[f"tile/{level}/" + place(at // 256, len(row[at : at + 256]))] = b"".join(row[at : at + 256])
            for _ in range(8):
                pairs = zip(row[::2], row[1::2])
                row = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs]
            level += 1
        return found

    return files

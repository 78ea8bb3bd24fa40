"""The writer: its files to the byte, what it refuses, and that no interruption makes it contradict itself."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pomona
from pomona.private.transparency import merkle, note
from pomona.private.transparency.checkpoint import cosign, cosigned_times, open_checkpoint, parse_checkpoint
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.log import open_log
from pomona.private.transparency.note import COSIGNATURE, verifier_of
from pomona.private.transparency.tiles import VerifiedTree, decode_bundle, encode_bundle, folder_fetch

ORIGIN = "example.org/log"
ENTRIES = tuple(b"entry %d" % number for number in range(600))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waiting for the disk shows nothing here: what is written through, and when, has a test of its own."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def published(folder):
    """{path: content} of what a file server would show."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def signed(folder, signer, name="checkpoint"):
    own = verifier_of(signer, COSIGNATURE)
    return open_checkpoint((folder / name).read_bytes(), ORIGIN, verifier_of(signer), [own])


def contents(folder, signer):
    tree = signed(folder, signer).checkpoint
    return [entry for _, entry in VerifiedTree(folder_fetch(folder), tree.size, tree.root).entries()]


def test_a_new_log_is_empty_and_signed(log, signer):
    assert log.size == 0 and log.checkpoint.root == merkle.EMPTY_ROOT
    assert signed(log.folder, signer).checkpoint == log.checkpoint
    assert list(published(log.folder)) == ["checkpoint"]


@pytest.mark.parametrize("sizes", [[1], [255, 1], [256], [600], [250, 10], [1, 254, 2, 255, 88]])
def test_its_files_are_those_that_c2sp_asks_for(log, signer, files_of, defined, sizes):
    size = 0
    for count in sizes:
        assert log.append(ENTRIES[size : size + count], now=1000 + size) == range(size, size + count)
        size += count
        wanted, found = files_of(ENTRIES[:size]), published(log.folder)
        data = found.pop("checkpoint")
        assert {path: found[path] for path in wanted} == wanted
        # What is there besides belongs to earlier checkpoints, whose tiles are not full yet.
        assert all(".p/" in path and path.partition(".p/")[0] not in found for path in found.keys() - wanted.keys())
        assert parse_checkpoint(note.parse_note(data).text) == log.checkpoint
        assert log.checkpoint.root == defined.root(ENTRIES[:size]) and log.checkpoint.size == log.size == size
        assert signed(log.folder, signer).times == (1000 + size - count,)


def test_it_writes_what_another_program_wrote(vectors, tmp_path):
    known = vectors("tiles")
    key = note.decode_skey(known["skey"])
    bundle = note.decode_base64(known["bundle"], "")
    with open_log(tmp_path / "log", key, "example.com/log/testdata") as log:
        for size, entry in enumerate(decode_bundle(bundle), 1):
            log.append([entry], now=0)
            if str(size) in known["checkpoints"]:
                own = note.parse_note((log.folder / "checkpoint").read_bytes())
                theirs = note.parse_note(known["checkpoints"][str(size)].encode())
                assert own.text == theirs.text and own.signatures[0] == theirs.signatures[0]
    found = published(tmp_path / "log")
    assert found["tile/0/000.p/15"] == note.decode_base64(known["tile"], "")
    assert found["tile/entries/000.p/15"] == bundle


def test_it_goes_on_after_it_was_closed(tmp_path, signer):
    for begin, end in [(0, 3), (3, 256), (256, 257), (257, 600)]:
        with open_log(tmp_path, signer, ORIGIN) as log:
            assert log.size == begin
            log.append(ENTRIES[begin:end], now=5)
        with pytest.raises(TransparencyError, match="closed"):
            log.append([b"more"], now=6)
    assert contents(tmp_path, signer) == list(ENTRIES)
    log.close()


def test_entries_may_be_empty_and_as_long_as_two_bytes_say(log, signer):
    longest = b"x" * 65_535
    log.append([b"", longest, b""], now=5)
    before = published(log.folder)
    assert log.append([], now=6) == range(3, 3)
    for call in [
        lambda: log.append([b"fine", longest + b"x"], now=6),
        lambda: log.append([b"fine"], now=-1),
        lambda: log.append([b"fine"], now=float("nan")),
        lambda: log.refresh(now=2.0**63),
    ]:
        with pytest.raises(TransparencyError):
            call()
    assert published(log.folder) == before and contents(log.folder, signer) == [b"", longest, b""]
    assert log.append([b"fine"], now=7) == range(3, 4)


def test_partial_files_go_when_the_full_one_is_there(log):
    log.append(ENTRIES[:240], now=5)
    for size in range(241, 257):
        log.append([ENTRIES[size - 1]], now=5)
        assert (log.folder / "tile/0/000.p").exists() == (log.folder / "tile/entries/000.p").exists() == (size < 256)
    assert sorted(published(log.folder)) == ["checkpoint", "tile/0/000", "tile/1/000.p/1", "tile/entries/000"]


def test_a_log_has_one_writer(log, signer):
    with pytest.raises(TransparencyError, match="one writer"):
        open_log(log.folder, signer, ORIGIN)
    log.append([b"entry"], now=5)
    log.close()
    with open_log(log.folder, signer, ORIGIN) as again:
        assert again.size == 1


def test_another_origin_and_another_key_are_refused(log, signer, witness):
    log.append([b"entry"], now=5)
    log.close()
    with pytest.raises(TransparencyError, match="another log"):
        open_log(log.folder, signer, "example.org/other")
    with pytest.raises(TransparencyError, match="no known key"):
        open_log(log.folder, witness, ORIGIN)


def test_a_folder_of_other_things_is_no_new_log(tmp_path, signer):
    (tmp_path / "other").write_bytes(b"")
    with pytest.raises(TransparencyError, match="no checkpoint"):
        open_log(tmp_path, signer, ORIGIN)
    (tmp_path / "other").unlink()
    with open_log(tmp_path, signer, ORIGIN) as log:
        log.append([b"entry"], now=5)
    # A lost checkpoint must not become a new log under the old name.
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(TransparencyError, match="no checkpoint"):
        open_log(tmp_path, signer, ORIGIN)


def test_damaged_files_are_refused(log, signer):
    log.append(ENTRIES, now=5)
    log.close()
    for path, content in published(log.folder).items():
        changed = content[:40] + bytes([content[40] ^ 1]) + content[41:]
        for wrong in [changed, content[:-1], content + b"\x00\x00", content + content, b""]:
            (log.folder / path).write_bytes(wrong)
            with pytest.raises(TransparencyError):
                open_log(log.folder, signer, ORIGIN)
        (log.folder / path).unlink()
        with pytest.raises(TransparencyError):
            open_log(log.folder, signer, ORIGIN)
        (log.folder / path).write_bytes(content)
    with open_log(log.folder, signer, ORIGIN) as again:
        assert again.size == 600


def test_files_that_fit_each_other_but_not_the_checkpoint_are_refused(log, signer, files_of):
    log.append(ENTRIES[:300], now=5)
    log.close()
    good = published(log.folder)
    for path, content in files_of((*ENTRIES[:299], b"changed")).items():
        (log.folder / path).write_bytes(content)
    with pytest.raises(TransparencyError, match="do not make up the checkpoint's root"):
        open_log(log.folder, signer, ORIGIN)
    for path, content in good.items():
        (log.folder / path).write_bytes(content)
    (log.folder / "tile/entries/000").write_bytes(encode_bundle(ENTRIES[:255]))
    with pytest.raises(TransparencyError, match="bundle 0 is not of 256"):
        open_log(log.folder, signer, ORIGIN)


def test_an_older_checkpoint_of_the_same_files_opens_at_its_size(log, signer):
    """What a restored copy looks like: the files of later entries are there, and are written over."""
    log.append(ENTRIES[:300], now=5)
    old = (log.folder / "checkpoint").read_bytes()
    log.append(ENTRIES[300:310], now=6)
    log.close()
    (log.folder / "checkpoint").write_bytes(old)
    with open_log(log.folder, signer, ORIGIN) as again:
        assert again.size == 300
        again.append([b"others"] * 10, now=7)
    assert contents(log.folder, signer) == [*ENTRIES[:300], *[b"others"] * 10]


def test_a_time_is_said_again_and_never_taken_back(log, signer):
    log.append([b"entry"], now=100.9)
    assert signed(log.folder, signer).times == (100,)
    tree = log.checkpoint
    for now, said in [(200, 200), (150, 200), (201, 201)]:
        log.refresh(now)
        assert signed(log.folder, signer).times == (said,) and log.checkpoint == tree
    log.append([b"more"], now=3)
    assert signed(log.folder, signer).times == (201,)
    log.close()
    with open_log(log.folder, signer, ORIGIN) as again:
        again.refresh(now=5)
    assert signed(log.folder, signer).times == (201,)


def test_witnesses_cosignatures_are_published_until_the_next_append(log, signer, witness):
    log.append([b"entry"], now=100)
    key, stranger = verifier_of(witness, COSIGNATURE), note.generate_signer("example.org/stranger")
    copy = note.parse_note((log.folder / "checkpoint").read_bytes())
    cosigned = note.encode_note(cosign(cosign(copy, witness, 120), stranger, 130))
    assert log.admit(cosigned, [key]) == 1
    found = note.parse_note((log.folder / "checkpoint").read_bytes())
    assert cosigned_times(found, [key]) == {key: 120} and len(found.signatures) == 3
    log.refresh(now=150)
    found = note.parse_note((log.folder / "checkpoint").read_bytes())
    assert cosigned_times(found, [key, verifier_of(signer, COSIGNATURE)]).keys() >= {key}
    forged = note.with_signature(copy, key, bytes(8) + bytes(64))
    with pytest.raises(TransparencyError, match="wrong"):
        log.admit(note.encode_note(forged), [key])
    log.append([b"more"], now=160)
    assert len(note.parse_note((log.folder / "checkpoint").read_bytes()).signatures) == 2
    with pytest.raises(TransparencyError, match="not the newest"):
        log.admit(cosigned, [key])


@pytest.mark.parametrize(("size", "more"), [(0, 1), (250, 10), (300, 5)])
def test_all_is_on_the_disk_before_the_checkpoint_counts(tmp_path, signer, monkeypatch, size, more):
    synced, replaced, replace = [], [], os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))

    def replacing(source, target):
        replaced.append((str(source), len(synced)))
        replace(source, target)

    with open_log(tmp_path, signer, ORIGIN) as log:
        log.append(ENTRIES[:size], now=5)
        before, _, _ = set(published(tmp_path)), synced.clear(), replaced.clear()
        folders = {str(path) for path in tmp_path.rglob("*") if path.is_dir()}
        monkeypatch.setattr(os, "replace", replacing)
        log.append(ENTRIES[size : size + more], now=6)
    [(source, count)] = replaced
    new = {str(tmp_path / path) for path in set(published(tmp_path)) - before}
    made = {str(path) for path in tmp_path.rglob("*") if path.is_dir()} - folders
    # Each file, and each folder that has a new name in it.
    wanted = new | {str(Path(path).parent) for path in new | made} | {source}
    assert len(new) >= 2 and wanted <= set(synced[:count])
    assert synced[count - 2] == source and synced[count:] == [str(tmp_path)]


def test_what_a_killed_writer_left_is_on_the_disk_before_it_counts(log, signer, monkeypatch):
    log.append(ENTRIES[:3], now=5)
    old = (log.folder / "checkpoint").read_bytes()
    log.append(ENTRIES[3:5], now=6)
    log.close()
    os.rename(log.folder / "checkpoint", log.folder / ".checkpoint")
    (log.folder / "checkpoint").write_bytes(old)
    done, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(os, "replace", lambda source, target: (done.append("replaced"), replace(source, target)))
    with open_log(log.folder, signer, ORIGIN) as again:
        assert again.size == 5
    folders = {str(path) for path in log.folder.rglob("*") if path.is_dir()}
    assert {str(log.folder), *folders, str(log.folder / ".checkpoint")} == set(done[: done.index("replaced")])
    assert done[done.index("replaced") + 1 :] == [str(log.folder)]


def test_a_signed_checkpoint_is_kept_from_another_key_and_never_goes_back(log, signer, witness):
    log.append(ENTRIES[:3], now=5)
    old = (log.folder / "checkpoint").read_bytes()
    log.append(ENTRIES[3:5], now=6)
    log.close()
    pending = log.folder / ".checkpoint"
    pending.write_bytes(old)
    for key, origin in [(witness, ORIGIN), (signer, "example.org/other")]:
        with pytest.raises(TransparencyError):
            open_log(log.folder, key, origin)
        assert pending.read_bytes() == old
    with open_log(log.folder, signer, ORIGIN) as again:
        assert again.size == 5 and not pending.exists()


def test_a_checkpoint_that_was_cut_off_is_forgotten(log, signer):
    log.append(ENTRIES[:3], now=5)
    log.close()
    whole = (log.folder / "checkpoint").read_bytes()
    for end in range(0, len(whole), 7):
        (log.folder / ".checkpoint").write_bytes(whole[:end])
        with open_log(log.folder, signer, ORIGIN) as again:
            assert again.size == 3 and not (log.folder / ".checkpoint").exists()


class Killed(BaseException):
    """What stands for the end of the process: nothing catches it but to pass it on."""


class Interruption:
    """Raises `error` at the `point`-th time that a file or a folder is touched; a file is then written by half."""

    def __init__(self, monkeypatch, point, error):
        self.left, self.error = point, error
        for name in ("fsync", "replace", "mkdir", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self.before(getattr(os, name)))
        real = open

        def opened(path, mode="r", *arguments, **named):
            file = real(path, mode, *arguments, **named)
            return Halved(file, self) if mode == "wb" else file

        monkeypatch.setattr("builtins.open", opened)

    def touch(self):
        self.left -= 1
        if self.left == 0:
            raise self.error

    def before(self, call):
        def checked(*arguments, **named):
            self.touch()
            return call(*arguments, **named)

        return checked


class Halved:
    """A file whose every write can be interrupted in its middle."""

    def __init__(self, file, interruption):
        self.file, self.interruption = file, interruption

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.interruption.touch()
        self.file.write(content[len(content) // 2 :])


def interrupted(tmp_path, error, work):
    """Runs `work(folder)` on a copy of `tmp_path / "log"`, interrupted at its first touch, its second, and so on until
    it is not any more; yields each copy.
    """
    for point in range(1, 1000):
        folder = tmp_path / f"copy-{point}"
        if (tmp_path / "log").exists():
            shutil.copytree(tmp_path / "log", folder)
        with pytest.MonkeyPatch.context() as patch:
            interruption = Interruption(patch, point, error)
            try:
                work(folder)
            except type(error) as raised:
                assert raised is error
        yield folder
        if interruption.left > 0:
            return
    raise AssertionError("it touches more than it can")


@pytest.mark.parametrize(("size", "more"), [(0, 1), (250, 10), (300, 5), (255, 300)])
def test_killed_anywhere_it_opens_at_the_old_or_the_new_size(tmp_path, signer, size, more):
    with open_log(tmp_path / "log", signer, ORIGIN) as log:
        log.append(ENTRIES[:size], now=5)

    def work(folder):
        with open_log(folder, signer, ORIGIN) as opened:
            opened.append(ENTRIES[size : size + more], now=6)

    sizes = []
    for folder in interrupted(tmp_path, Killed(), work):
        seen = [signed(folder, signer).checkpoint]
        try:  # A checkpoint that was written whole may have been seen, even if it was not published.
            seen.append(signed(folder, signer, ".checkpoint").checkpoint)
        except (OSError, TransparencyError):
            pass
        with open_log(folder, signer, ORIGIN) as again:
            sizes.append(again.size)
            assert again.size in (size, size + more)
            assert contents(folder, signer) == list(ENTRIES[: again.size])
            again.append([b"other"] * (more + 3), now=7)
            tree = VerifiedTree(folder_fetch(folder), again.size, again.checkpoint.root)
        for old in seen:
            assert merkle.tree_root(old.size, tree.node) == old.root
    assert sizes == sorted(sizes) and set(sizes) == {size, size + more} and len(sizes) > 10


def test_killed_while_it_is_made_it_opens_empty(tmp_path, signer):
    def work(folder):
        open_log(folder, signer, ORIGIN).close()

    points = 0
    for folder in interrupted(tmp_path, Killed(), work):
        with open_log(folder, signer, ORIGIN) as log:
            assert log.append([b"entry"], now=5) == range(1)
        points += 1
    assert points > 4


def test_after_a_full_disk_it_is_closed_and_opens_again(tmp_path, signer):
    with open_log(tmp_path / "log", signer, ORIGIN) as log:
        log.append(ENTRIES[:250], now=5)
    full = OSError(errno.ENOSPC, "no space")

    def work(folder):
        opened = open_log(folder, signer, ORIGIN)
        try:
            opened.append(ENTRIES[250:260], now=6)
        except OSError:
            with pytest.raises(TransparencyError, match="closed"):
                opened.append([b"more"], now=6)
            raise
        finally:
            opened.close()

    for folder in interrupted(tmp_path, full, work):
        with open_log(folder, signer, ORIGIN) as again:
            assert again.size in (250, 260)
            again.append([b"other"], now=7)
        assert contents(folder, signer)[:250] == list(ENTRIES[:250])


SCRIPT = """
import os, signal, sys
from pathlib import Path
from pomona.private.transparency.log import open_log
from pomona.private.transparency.note import decode_skey

left, sync = int(sys.argv[3]), os.fsync

def fsync(descriptor):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)

log = open_log(Path(sys.argv[1]), decode_skey(sys.argv[2]), "example.org/log")
log.append([b"first"] * 250, now=5)
os.fsync = fsync
log.append([b"second"] * 10, now=6)
"""


@pytest.mark.parametrize(("point", "size"), [(1, 250), (7, 250), (14, 250), (16, 260), (17, 260), (99, 260)])
def test_a_killed_process_leaves_a_log_that_opens(tmp_path, signer, point, size):
    home = str(Path(pomona.__file__).parents[1])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "log"), note.encode_skey(signer), str(point)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": home}, capture_output=True, text=True)
    assert done.returncode == (0 if point == 99 else -signal.SIGKILL), done.stderr
    with open_log(tmp_path / "log", signer, ORIGIN) as log:
        assert log.size == size
        log.append([b"third"], now=7)
    assert contents(tmp_path / "log", signer) == [b"first"] * 250 + [b"second"] * (size - 250) + [b"third"]

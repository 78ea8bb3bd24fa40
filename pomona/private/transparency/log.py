"""An append-only log in a folder that any file server can publish (C2SP tlog-tiles), with one writer.

An append writes the new bundles and tiles beside the old ones, which nobody reads yet, then signs a checkpoint over
them, and renames it into place: at that moment they count. Killed before it, the log opens at the old size; killed
between the signing and the renaming, at the new one, since a checkpoint that was signed may have been seen. Names that
begin with a dot are no file server's business. What cannot be seen here is that the folder was restored from an older
copy: the next append would then contradict what clients hold, and they would show the fork.
"""

import fcntl
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pomona.private.transparency.checkpoint import (
    MOST_TIME_SECONDS,
    Checkpoint,
    Signed,
    cosign,
    cosigned_times,
    open_checkpoint,
    sign_checkpoint,
)
from pomona.private.transparency.errors import Absent, TransparencyError
from pomona.private.transparency.merkle import EMPTY_ROOT, MOST_SIZE, leaf_hash, root_of_hashes
from pomona.private.transparency.note import (
    COSIGNATURE,
    Note,
    Signer,
    Verifier,
    encode_note,
    known_signatures,
    parse_note,
    verifier_of,
    with_signature,
)
from pomona.private.transparency.tiles import (
    CHECKPOINT_PATH,
    HASH_BYTES,
    MOST_ENTRY_BYTES,
    TILE_BYTES,
    TILE_HEIGHT,
    TILE_WIDTH,
    bundle_path,
    decode_bundle,
    edge_root,
    encode_bundle,
    folder_fetch,
    right_edge,
    tile_path,
    tile_width,
)

LOCK_PATH, SIGNED_PATH = ".lock", ".checkpoint"


@dataclass(frozen=True)
class Edge:
    """Where a log of `size` entries goes on: the hashes of the partial tile of each level, joined, from level 0 up, and
    the entries of the partial bundle.
    """

    size: int = 0
    tiles: tuple[bytes, ...] = (b"",)
    entries: tuple[bytes, ...] = ()


class Log:
    """A log that is open for writing; see `open_log`. To be closed, or used in a `with` statement.

    After an error that is not a `TransparencyError` it is closed: only the disk says which size it has then.
    """

    def __init__(self, folder: Path, signer: Signer, origin: str, lock: int, signed: Signed, edge: Edge) -> None:
        self.folder, self.origin = folder, origin
        self._signer, self._lock, self._signed, self._edge = signer, lock, signed, edge

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def checkpoint(self) -> Checkpoint:
        """What was signed last, and is published."""
        return self._signed.checkpoint

    @property
    def size(self) -> int:
        """How many entries there are."""
        return self._edge.size

    def append(self, entries: Sequence[bytes], now: float) -> range:
        """Adds entries, signs, and dates the new checkpoint `now`; returns the entries' indices. What it returned for
        is on the disk and published. Without entries it does nothing.

        Raises:
            TransparencyError: an entry of more than 65,535 bytes, a log that is closed or full, or `now` is no time;
                nothing was added.
            OSError: the disk is full or broken; the log is closed, and opens at the old or the new size.
        """
        self._check_ready(now)
        if any(len(entry) > MOST_ENTRY_BYTES for entry in entries):
            raise TransparencyError(f"an entry has at most {MOST_ENTRY_BYTES} bytes.")
        if self.size + len(entries) > MOST_SIZE:
            raise TransparencyError("the log is full.")
        if not entries:
            return range(self.size, self.size)
        old, edge, rest = self._edge, self._edge, list(entries)
        try:
            while rest:
                room = TILE_WIDTH - edge.size % TILE_WIDTH
                edge, full = _grown(edge, rest[:room])
                _write_files(self.folder, full)
                del rest[:room]
            _write_files(self.folder, _partial_files(old.size, edge))
            checkpoint = Checkpoint(self.origin, edge.size, _root(edge))
            self._publish(sign_checkpoint(checkpoint, self._signer), now)
            _drop_partials(self.folder, old.size, edge.size)
        except BaseException:
            self.close()
            raise
        self._edge = edge
        return range(old.size, edge.size)

    def refresh(self, now: float) -> None:
        """Says again that the checkpoint is the newest, as of `now`, so that clients go on believing it.

        Raises:
            TransparencyError: the log is closed, or `now` is no time.
            OSError: the disk is full or broken; the log is closed.
        """
        self._check_ready(now)
        try:
            self._publish(self._signed.note, now)
        except BaseException:
            self.close()
            raise

    def admit(self, note: bytes, witnesses: Sequence[Verifier]) -> int:
        """Publishes the cosignatures that known witnesses, keys of type 4, put under a copy of the newest checkpoint;
        returns how many. They stay until the next append.

        Raises:
            TransparencyError: the copy is malformed or of another checkpoint, or a witness's cosignature is wrong.
            OSError: the disk is full or broken; the log is closed.
        """
        self._check_ready()
        copy, own = parse_note(note), self._signed.note
        if copy.text != own.text:
            raise TransparencyError("what was cosigned is not the newest checkpoint.")
        cosigned_times(copy, witnesses)
        found = {witness: signature.data for witness, signature in known_signatures(copy, witnesses, COSIGNATURE)}
        for witness, data in found.items():
            own = with_signature(own, witness, data)
        try:
            self._put_checkpoint(own)
        except BaseException:
            self.close()
            raise
        return len(found)

    def close(self) -> None:
        """Lets another writer open it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _check_ready(self, now: float = 0) -> None:
        if self._lock < 0:
            raise TransparencyError("the log is closed; open it again.")
        if not 0 <= now <= MOST_TIME_SECONDS:
            raise TransparencyError("a time is 0 to 2^63 - 1 seconds since the epoch.")

    def _publish(self, note: Note, now: float) -> None:
        # A clock that was set back must not contradict what was said before it was.
        self._put_checkpoint(cosign(note, self._signer, max([now, *self._signed.times])))

    def _put_checkpoint(self, note: Note) -> None:
        data = encode_note(note)
        signed = _opened(data, self._signer, self.origin)
        _write_files(self.folder, [(SIGNED_PATH, data)])
        _rename_checkpoint(self.folder)
        self._signed = signed


def open_log(folder: Path, signer: Signer, origin: str) -> Log:
    """Opens the log in `folder` for writing, or makes one where the folder is absent or empty.

    The signer signs checkpoints, and cosigns them with a time, which a new log's has after the first `append` or
    `refresh`: clients check both with its verifier key. All entries are read and hashed, and all tiles compared, which
    takes about 60 ms for 10,000 entries of 512 bytes.

    Raises:
        TransparencyError: another process has it open, it is another log or was signed by another key, or its files do
            not make up the checkpoint's root.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK_PATH, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TransparencyError(f"{folder} is open for writing already; a log has one writer.") from error
        _settle(folder, signer, origin)
        signed = _opened((folder / CHECKPOINT_PATH).read_bytes(), signer, origin)
        edge = _checked_edge(folder, signed.checkpoint)
    except BaseException:
        os.close(lock)
        raise
    return Log(folder, signer, origin, lock, signed, edge)


def _settle(folder: Path, signer: Signer, origin: str) -> None:
    """Makes the empty log's checkpoint in an empty folder, and finishes a renaming that was interrupted.

    A writer that was killed may have left folders and a checkpoint that are not written through: they are now.
    """
    for each, _, _ in os.walk(folder):
        _sync(Path(each))
    pending = folder / SIGNED_PATH
    if not (folder / CHECKPOINT_PATH).exists():
        if any(each.name not in (LOCK_PATH, SIGNED_PATH) for each in folder.iterdir()):
            raise TransparencyError(f"{folder} holds files but no checkpoint; a new log needs an empty folder.")
        empty = sign_checkpoint(Checkpoint(origin, 0, EMPTY_ROOT), signer)
        _write_files(folder, [(SIGNED_PATH, encode_note(empty))])
        _rename_checkpoint(folder)
    size = _opened((folder / CHECKPOINT_PATH).read_bytes(), signer, origin).checkpoint.size
    if pending.exists():
        try:
            later = _opened(pending.read_bytes(), signer, origin).checkpoint.size >= size
        except TransparencyError:
            later = False  # It was cut off while it was written: nobody can have seen it whole.
        if later:
            _sync(pending)
            _rename_checkpoint(folder)
        else:
            pending.unlink()


def _opened(data: bytes, signer: Signer, origin: str) -> Signed:
    return open_checkpoint(data, origin, verifier_of(signer), [verifier_of(signer, COSIGNATURE)])


def _checked_edge(folder: Path, checkpoint: Checkpoint) -> Edge:
    """Where the log goes on, after every file that the checkpoint needs was compared with what the entries make."""
    fetch = folder_fetch(folder)
    edge = Edge()
    try:
        for bundle in range(-(-checkpoint.size // TILE_WIDTH)):
            width = tile_width(0, bundle, checkpoint.size)
            entries = decode_bundle(fetch(bundle_path(bundle, width)))
            if len(entries) != width:
                raise TransparencyError(f"{folder} is damaged: bundle {bundle} is not of {width} entries.")
            edge, full = _grown(edge, entries)
            for path, content in full:
                _check_same(path, content, fetch(path))
        for path, content in _partial_files(0, edge):
            _check_same(path, content, fetch(path))
    except Absent as error:
        raise TransparencyError(f"{folder} is damaged: {error}") from error
    if edge.size != checkpoint.size or _root(edge) != checkpoint.root:
        raise TransparencyError(f"{folder} is damaged: its entries do not make up the checkpoint's root.")
    return edge


def _check_same(path: str, wanted: bytes, found: bytes) -> None:
    if wanted != found:
        raise TransparencyError(f"the log is damaged: {path} is not what its entries make.")


def _grown(edge: Edge, entries: Sequence[bytes]) -> tuple[Edge, list[tuple[str, bytes]]]:
    """`edge` after entries that its bundle has room for, and (path, content) of the files that they filled."""
    size, held = edge.size + len(entries), (*edge.entries, *entries)
    tiles, full, level = list(edge.tiles), [], 0
    more = b"".join(map(leaf_hash, entries))
    if len(held) == TILE_WIDTH:
        full.append((bundle_path(edge.size // TILE_WIDTH), encode_bundle(held)))
        held = ()
    while True:
        tiles[level] += more
        if len(tiles[level]) < TILE_BYTES:
            return Edge(size, tuple(tiles), held), full
        index = (size >> TILE_HEIGHT * (level + 1)) - 1
        full.append((tile_path(level, index), tiles[level]))
        more, tiles[level], level = root_of_hashes(_hashes(tiles[level])), b"", level + 1
        if level == len(tiles):
            tiles.append(b"")


def _partial_files(old_size: int, edge: Edge) -> list[tuple[str, bytes]]:
    """(path, content) of the partial files of `edge` that a log of `old_size` entries does not have."""
    files = []
    for level, index, width in right_edge(edge.size):
        if edge.size >> TILE_HEIGHT * level != old_size >> TILE_HEIGHT * level:
            files.append((tile_path(level, index, width), edge.tiles[level]))
            if level == 0:
                files.append((bundle_path(index, width), encode_bundle(edge.entries)))
    return files


def _root(edge: Edge) -> bytes:
    return edge_root([_hashes(tile) for tile in edge.tiles if tile])


def _hashes(tile: bytes) -> list[bytes]:
    return [tile[at : at + HASH_BYTES] for at in range(0, len(tile), HASH_BYTES)]


def _write_files(folder: Path, files: Sequence[tuple[str, bytes]]) -> None:
    """Writes files and all folders that name them through to the disk. None of them may be one that is read already."""
    named_in = set()
    for path, content in files:
        target = folder / path
        for parent in reversed(target.relative_to(folder).parents):
            if not (folder / parent).is_dir():
                (folder / parent).mkdir()
                named_in.add((folder / parent).parent)
        with open(target, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        named_in.add(target.parent)
    for each in named_in:
        _sync(each)


def _rename_checkpoint(folder: Path) -> None:
    os.replace(folder / SIGNED_PATH, folder / CHECKPOINT_PATH)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _drop_partials(folder: Path, old_size: int, size: int) -> None:
    """Removes the partial files of tiles that became full (C2SP tlog-tiles, "Partial Tiles", allows it)."""
    for level, index, _ in right_edge(old_size):
        if tile_width(level, index, size) == TILE_WIDTH:
            paths = [tile_path(level, index)] + ([bundle_path(index)] if level == 0 else [])
            for path in paths:
                shutil.rmtree(folder / f"{path}.p", ignore_errors=True)

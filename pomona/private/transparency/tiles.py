"""A log as plain files (C2SP tlog-tiles): 256 hashes to a tile, 256 entries to a bundle, read without believing any.

    checkpoint                            what `pomona.private.transparency.checkpoint` reads
    tile/LEVEL/x001/x234/067              a tile: hashes of subtrees of 256^LEVEL entries, the 1,234,067th such tile
    tile/LEVEL/x001/x234/067.p/WIDTH      its beginning, where the tree ends within it
    tile/entries/067  tile/entries/067.p/WIDTH    entries, each after its length in two bytes

Files come from any function `fetch(path)`: of a folder, or over HTTP. It raises `Absent` where there is no such file,
and should read no more than MOST_FILE_BYTES.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pomona.private.transparency.errors import Absent, TransparencyError
from pomona.private.transparency.merkle import (
    EMPTY_RANGE,
    HASH_BYTES,
    CompactRange,
    check_range,
    extend,
    leaf_hash,
    range_root,
    root_of_hashes,
)

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
TILE_BYTES = TILE_WIDTH * HASH_BYTES
TILE_LEVELS = 8  # 8 levels each are more than the 63 of a tree
LENGTH_BYTES = 2
MOST_ENTRY_BYTES = (1 << 16) - 1
MOST_FILE_BYTES = TILE_WIDTH * (LENGTH_BYTES + MOST_ENTRY_BYTES)
CHECKPOINT_PATH = "checkpoint"

Fetch = Callable[[str], bytes]


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """Where the tile is, which holds the first `width` of its 256 hashes (C2SP tlog-tiles, "Merkle Tree")."""
    return f"tile/{level}/{_index_path(index, width)}"


def bundle_path(index: int, width: int = TILE_WIDTH) -> str:
    """Where the bundle is that holds entries from index * 256 on (C2SP tlog-tiles, "Log entries")."""
    return f"tile/entries/{_index_path(index, width)}"


def tile_width(level: int, index: int, size: int) -> int:
    """How many hashes, 0 to 256, the tile has in a tree of `size` entries (C2SP tlog-tiles, "Partial Tiles")."""
    return max(0, min(TILE_WIDTH, (size >> TILE_HEIGHT * level) - index * TILE_WIDTH))


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Entries, each after its length.

    Raises:
        TransparencyError: more than 256, or one of more than 65,535 bytes.
    """
    if len(entries) > TILE_WIDTH or any(len(entry) > MOST_ENTRY_BYTES for entry in entries):
        raise TransparencyError(f"a bundle has at most {TILE_WIDTH} entries of at most {MOST_ENTRY_BYTES} bytes.")
    return b"".join(len(entry).to_bytes(LENGTH_BYTES, "big") + entry for entry in entries)


def decode_bundle(data: bytes) -> list[bytes]:
    """The entries of a bundle, at most 256.

    Raises:
        TransparencyError: it ends within an entry, or holds more.
    """
    entries, at = [], 0
    while at < len(data):
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(data[at:begin], "big")
        if at > len(data):
            raise TransparencyError("an entry bundle ends within an entry.")
        entries.append(data[begin:at])
        if len(entries) > TILE_WIDTH:
            raise TransparencyError(f"an entry bundle has at most {TILE_WIDTH} entries.")
    return entries


def folder_fetch(folder: Path) -> Fetch:
    """A `fetch` of a log in a folder."""

    def fetch(path: str) -> bytes:
        try:
            return (folder / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Absent(f"the log has no file {path}.") from error

    return fetch


class VerifiedTree:
    """The tree that a checkpoint names, of which every hash was checked against its root before it is used.

    The partial tiles along the tree's right edge make up the root: they are read first. A full tile is believed where
    its hashes have the root that the tile above says.
    """

    def __init__(self, fetch: Fetch, size: int, root: bytes) -> None:
        """
        Raises:
            TransparencyError: the tiles of the right edge are missing, or make up another root.
        """
        self.size, self.root = size, root
        self._fetch = fetch
        self._tiles: dict[tuple[int, int], list[bytes]] = {}
        edge = right_edge(size)
        tiles = [_read_tile(fetch, level, index, width) for level, index, width in edge]
        if edge_root(tiles) != root:
            raise TransparencyError("the tiles of the tree's right edge do not make up the checkpoint's root.")
        self._tiles = {(level, index): tile for (level, index, _), tile in zip(edge, tiles)}

    def node(self, level: int, index: int) -> bytes:
        """The hash of the complete subtree of 2^level entries from index * 2^level on.

        Raises:
            TransparencyError: it is not in the tree, or its tile is missing or wrong.
        """
        if not 0 <= level < TILE_LEVELS * TILE_HEIGHT or index < 0 or (index + 1) << level > self.size:
            raise TransparencyError(f"there is no complete subtree {index} of level {level} in the tree.")
        tile_level, height = divmod(level, TILE_HEIGHT)
        tile_index, place = divmod(index << height, TILE_WIDTH)
        return root_of_hashes(self._tile(tile_level, tile_index)[place : place + (1 << height)])

    def entries(self, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        """(index, entry) of the entries from `begin` to before `end`, by default the last one, each checked.

        Raises:
            TransparencyError: such entries are not in the tree, or a bundle or a tile is missing or wrong.
        """
        stop = self.size if end is None else end
        if not 0 <= begin <= stop <= self.size:
            raise TransparencyError(f"entries {begin} to {stop} are not in a tree of {self.size}.")
        for bundle in range(begin // TILE_WIDTH, -(-stop // TILE_WIDTH)):
            first = bundle * TILE_WIDTH
            entries = _read_bundle(self._fetch, bundle, self.size)
            if [leaf_hash(entry) for entry in entries] != self._tile(0, bundle):
                raise TransparencyError(f"the entries from {first} on are not those of the tree.")
            for index in range(max(begin, first), min(stop, first + TILE_WIDTH)):
                yield index, entries[index - first]

    def _tile(self, level: int, index: int) -> list[bytes]:
        """The tile, after it and what is above it was checked; what was checked is kept."""
        unread = []
        while (level, index) not in self._tiles:
            unread.append((level, index))
            level, index = level + 1, index // TILE_WIDTH
        for level, index in reversed(unread):
            hashes = _read_tile(self._fetch, level, index, TILE_WIDTH)
            above = self._tiles[level + 1, index // TILE_WIDTH]
            if root_of_hashes(hashes) != above[index % TILE_WIDTH]:
                raise TransparencyError(f"tile {index} of level {level} is not that of the tree.")
            self._tiles[level, index] = hashes
        return self._tiles[level, index]


def replay(
    fetch: Fetch,
    size: int,
    root: bytes,
    start: CompactRange = EMPTY_RANGE,
    visit: Callable[[int, bytes], None] = lambda index, entry: None,
) -> CompactRange:
    """Reads all entries after `start`, without the tiles, and checks that the whole makes up `root`: what an auditor
    does. `visit(index, entry)` is called for each as it streams by; nothing that it saw counts before this returns.

    Returns what a later replay starts with.

    Raises:
        TransparencyError: a bundle is missing or malformed, `start` is beyond `size`, or the entries make up another
            root, so that they, or those before `start`, are not those of the tree.
    """
    check_range(start)
    if start.size > size:
        raise TransparencyError(f"a tree of {size} entries cannot begin with {start.size}.")
    seen = start
    while seen.size < size:
        bundle, skipped = divmod(seen.size, TILE_WIDTH)
        entries = _read_bundle(fetch, bundle, size)[skipped:]
        for index, entry in enumerate(entries, seen.size):
            visit(index, entry)
        seen = extend(seen, map(leaf_hash, entries))
    if range_root(seen) != root:
        raise TransparencyError("the entries do not make up the checkpoint's root.")
    return seen


def right_edge(size: int) -> list[tuple[int, int, int]]:
    """(level, index, width) of the partial tiles of a tree, from level 0 up; those of width 0 are left out."""
    edge = []
    for level in range(TILE_LEVELS):
        index, width = divmod(size >> TILE_HEIGHT * level, TILE_WIDTH)
        if width:
            edge.append((level, index, width))
    return edge


def edge_root(tiles: Sequence[Sequence[bytes]]) -> bytes:
    """The root of the tree whose right edge is these partial tiles, from level 0 up.

    All that is to the right of a tile's hashes is one subtree that is smaller than theirs, so that it stands in the row
    as its odd last one.
    """
    rest: list[bytes] = []
    for tile in tiles:
        rest = [root_of_hashes([*tile, *rest])]
    return root_of_hashes(rest)


def _index_path(index: int, width: int) -> str:
    """The index in groups of three digits, all but the last after an x; then the width of a partial tile."""
    groups = [f"{index % 1000:03}"]
    while index := index // 1000:
        groups.insert(0, f"x{index % 1000:03}")
    return "/".join(groups) + ("" if width == TILE_WIDTH else f".p/{width}")


def _read_tile(fetch: Fetch, level: int, index: int, width: int) -> list[bytes]:
    data, whole = _fetch_wide(fetch, lambda wanted: tile_path(level, index, wanted), width)
    if len(data) != whole * HASH_BYTES:
        raise TransparencyError(f"tile {index} of level {level} is not of {whole} hashes.")
    return [data[at : at + HASH_BYTES] for at in range(0, width * HASH_BYTES, HASH_BYTES)]


def _read_bundle(fetch: Fetch, index: int, size: int) -> list[bytes]:
    width = tile_width(0, index, size)
    data, whole = _fetch_wide(fetch, lambda wanted: bundle_path(index, wanted), width)
    entries = decode_bundle(data)
    if len(entries) != whole:
        raise TransparencyError(f"entry bundle {index} is not of {whole} entries.")
    return entries[:width]


def _fetch_wide(fetch: Fetch, path: Callable[[int], str], width: int) -> tuple[bytes, int]:
    """The partial file and its width; the full one where the log has grown since and dropped the partial one."""
    if width < TILE_WIDTH:
        try:
            return fetch(path(width)), width
        except Absent:
            pass
    return fetch(path(TILE_WIDTH)), TILE_WIDTH

"""Tiles: paths, bundles, a published log, and files that are wrong, missing or anything at all."""

import base64
import dataclasses
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.transparency import merkle, tiles
from pomona.private.transparency.checkpoint import open_checkpoint
from pomona.private.transparency.errors import Absent, TransparencyError
from pomona.private.transparency.note import decode_vkey
from pomona.private.transparency.tiles import VerifiedTree

SIZE = 600


def entry(number):
    return b"entry %d" % number + b"." * (number % 3)


@pytest.fixture(scope="session")
def entries():
    return tuple(entry(number) for number in range(SIZE))


@pytest.fixture(scope="session")
def stored(files_of, entries):
    return files_of(entries)


def fetch_of(files):
    """A `fetch` of files in memory."""

    def fetch(path):
        if path not in files:
            raise Absent(path)
        return files[path]

    return fetch


def read_all(fetch, size, root):
    """All entries by the tree, by a replay, and a proof of each."""
    tree, seen = VerifiedTree(fetch, size, root), []
    tiles.replay(fetch, size, root, visit=lambda index, each: seen.append((index, each)))
    proofs = [merkle.inclusion_proof(index, size, tree.node) for index in range(0, size, 37)]
    return list(tree.entries()), seen, proofs


def test_paths():
    assert tiles.tile_path(0, 1234067) == "tile/0/x001/x234/067"
    assert tiles.tile_path(3, 0, 8) == "tile/3/000.p/8"
    assert tiles.tile_path(1, 999) == "tile/1/999"
    assert tiles.tile_path(1, 1000, 255) == "tile/1/x001/000.p/255"
    assert tiles.bundle_path(5) == "tile/entries/005"
    assert tiles.bundle_path(1_000_000_000, 1) == "tile/entries/x001/x000/x000/000.p/1"


def test_the_tiles_of_c2sp_s_example_of_70_000_entries(files_of):
    """C2SP tlog-tiles, "Partial Tiles"."""
    assert tiles.right_edge(70_000) == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]
    assert [tiles.tile_width(0, index, 70_000) for index in (0, 272, 273, 274)] == [256, 256, 112, 0]
    assert [tiles.tile_width(1, index, 70_000) for index in (0, 1, 2)] == [256, 17, 0]
    assert tiles.right_edge(256) == [(1, 0, 1)]
    leaves = [b"%d" % number for number in range(70_000)]
    files = files_of(leaves)
    root = merkle.root_of_hashes([merkle.leaf_hash(leaf) for leaf in leaves])
    tree = VerifiedTree(fetch_of(files), 70_000, root)
    for index in (0, 255, 256, 65_535, 65_536, 69_887, 69_888, 69_999):
        proof = merkle.inclusion_proof(index, 70_000, tree.node)
        merkle.verify_inclusion(index, 70_000, merkle.leaf_hash(leaves[index]), proof, root)
        assert list(tree.entries(index, index + 1)) == [(index, leaves[index])]
    for old_size in (1, 256, 65_535, 65_536, 65_537, 69_999):
        old_root = merkle.root_of_hashes([merkle.leaf_hash(leaf) for leaf in leaves[:old_size]])
        assert merkle.tree_root(old_size, tree.node) == old_root
        proof = merkle.consistency_proof(old_size, 70_000, tree.node)
        merkle.verify_consistency(old_size, old_root, 70_000, root, proof)


def test_a_published_log_of_another_program(vectors):
    known = vectors("tiles")
    files = {
        "tile/0/000.p/15": base64.b64decode(known["tile"]),
        "tile/entries/000.p/15": base64.b64decode(known["bundle"]),
    }
    signed = [
        open_checkpoint(each.encode(), "example.com/log/testdata", decode_vkey(known["vkey"])).checkpoint
        for each in known["checkpoints"].values()
    ]
    newest = signed[-1]
    in_tree, in_replay, _ = read_all(fetch_of(files), newest.size, newest.root)
    assert in_tree == in_replay and in_tree[7] == (7, b"eit") and len(in_tree) == newest.size == 15
    tree = VerifiedTree(fetch_of(files), newest.size, newest.root)
    for old in signed:
        proof = merkle.consistency_proof(old.size, newest.size, tree.node)
        merkle.verify_consistency(old.size, old.root, newest.size, newest.root, proof)


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 600])
def test_a_tree_is_read_at_every_size_of_the_edge(files_of, defined, entries, size):
    files, root = files_of(entries[:size]), defined.root(entries[:size])
    in_tree, in_replay, proofs = read_all(fetch_of(files), size, root)
    assert in_tree == in_replay == list(enumerate(entries[:size]))
    for index, proof in zip(range(0, size, 37), proofs):
        assert proof == defined.path(index, entries[:size])
    tree = VerifiedTree(fetch_of(files), size, root)
    for level in range(10):
        for index in range(size >> level):
            assert tree.node(level, index) == defined.node_of(entries)(level, index)


def test_a_partial_file_that_was_dropped_is_the_beginning_of_the_full_one(files_of, defined, entries, stored):
    for size, full in [(1, "000"), (100, "000"), (300, "001"), (511, "001")]:
        dropped = (f"tile/0/{full}.p/{size % 256}", f"tile/entries/{full}.p/{size % 256}")
        kept = {path: each for path, each in (files_of(entries[:size]) | stored).items() if path not in dropped}
        in_tree, in_replay, _ = read_all(fetch_of(kept), size, defined.root(entries[:size]))
        assert in_tree == in_replay == list(enumerate(entries[:size]))
        with pytest.raises(Absent):
            read_all(
                fetch_of({path: kept[path] for path in kept if full not in path}), size, defined.root(entries[:size])
            )


def test_a_wrong_file_is_refused_and_never_believed(defined, entries, stored):
    root = defined.root(entries)
    for path, content in stored.items():
        changed = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in (0, len(content) // 2, -33)]
        changed[2] = content[:-1] + bytes([content[-1] ^ 1])
        for wrong in [
            *changed,
            b"",
            content[:-1],
            content + b"\x00",
            content + b"\x00\x00",
            content[32:],
            content + content[:32],
        ]:
            with pytest.raises(TransparencyError):
                read_all(fetch_of(stored | {path: wrong}), SIZE, root)
        with pytest.raises(Absent):
            read_all(fetch_of({each: stored[each] for each in stored if each != path}), SIZE, root)


def test_a_wrong_tile_far_from_the_edge_is_refused_when_it_is_read(defined, entries, stored):
    root = defined.root(entries)
    swapped = stored | {"tile/0/000": stored["tile/0/001"], "tile/0/001": stored["tile/0/000"]}
    tree = VerifiedTree(fetch_of(swapped), SIZE, root)
    assert list(tree.entries(512)) == list(enumerate(entries))[512:]
    for call in [lambda: tree.node(0, 0), lambda: tree.node(3, 40), lambda: list(tree.entries(0, 1))]:
        with pytest.raises(TransparencyError, match="not that of the tree"):
            call()
    assert tree.node(8, 0) == defined.root(entries[:256])


def test_another_root_is_refused(defined, entries, stored):
    for root in [hashlib.sha256(b"other").digest(), defined.root(entries[:-1])]:
        with pytest.raises(TransparencyError, match="right edge"):
            VerifiedTree(fetch_of(stored), SIZE, root)
        with pytest.raises(TransparencyError, match="do not make up"):
            tiles.replay(fetch_of(stored), SIZE, root)


def test_what_is_not_in_the_tree_is_refused(defined, entries, stored):
    tree = VerifiedTree(fetch_of(stored), SIZE, defined.root(entries))
    for level, index in [(0, SIZE), (0, -1), (-1, 0), (9, 1), (10, 0), (64, 0), (1 << 40, 0)]:
        with pytest.raises(TransparencyError, match="no complete subtree"):
            tree.node(level, index)
    for begin, end in [(-1, 5), (5, 4), (0, SIZE + 1), (SIZE + 1, None)]:
        with pytest.raises(TransparencyError, match="not in a tree"):
            list(tree.entries(begin, end))
    assert list(tree.entries(SIZE)) == []


def test_a_replay_goes_on_where_it_ended(files_of, defined, entries, stored):
    cuts, states = [0, 1, 100, 255, 256, 257, 511, 512, 600], {}
    for size in cuts:
        states[size] = tiles.replay(fetch_of(files_of(entries[:size])), size, defined.root(entries[:size]))
        for begin in [each for each in cuts if each <= size]:
            seen = []
            end = tiles.replay(
                fetch_of(files_of(entries[:size])),
                size,
                defined.root(entries[:size]),
                states[begin],
                lambda index, each: seen.append((index, each)),
            )
            assert end == states[size] and seen == list(enumerate(entries))[begin:size]
    root = defined.root(entries)
    forged = dataclasses.replace(states[1], hashes=(root,))
    short = dataclasses.replace(states[100], hashes=states[100].hashes[:-1])
    for start, size in [(forged, SIZE), (short, SIZE), (states[600], 599)]:
        with pytest.raises(TransparencyError):
            tiles.replay(fetch_of(stored), size, root, start)


def test_a_folder_without_a_file_says_so(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    fetch = tiles.folder_fetch(tmp_path)
    assert fetch("file") == b"content"
    for path in ["other", "tile/0/000", "file/below"]:
        with pytest.raises(Absent):
            fetch(path)


def test_bundles_have_limits():
    longest = b"x" * tiles.MOST_ENTRY_BYTES
    assert tiles.decode_bundle(tiles.encode_bundle([longest, b""])) == [longest, b""]
    assert tiles.decode_bundle(tiles.encode_bundle([b""] * 256)) == [b""] * 256
    for wrong in [[longest + b"x"], [b""] * 257]:
        with pytest.raises(TransparencyError):
            tiles.encode_bundle(wrong)
    for wrong in [b"\x00", b"\x00\x01", b"\x00\x05four", b"\x00\x00" * 257, b"\x00\x01a\x00"]:
        with pytest.raises(TransparencyError):
            tiles.decode_bundle(wrong)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600))
def test_arbitrary_bytes_are_a_bundle_or_refused(data):
    try:
        found = tiles.decode_bundle(data)
    except TransparencyError:
        return
    assert tiles.encode_bundle(found) == data


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_arbitrary_files_are_refused_in_one_way(defined, entries, stored, data):
    path = data.draw(st.sampled_from(sorted(stored)))
    content = data.draw(st.one_of(st.binary(max_size=100), st.binary(min_size=32, max_size=32).map(lambda h: h * 256)))
    with pytest.raises(TransparencyError):
        read_all(fetch_of(stored | {path: content}), SIZE, defined.root(entries))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, merkle.MOST_SIZE))
def test_a_checkpoint_of_any_size_over_made_up_tiles_is_refused(size):
    asked = []

    def fetch(path):
        asked.append(path)
        return bytes(32 * int(path.rpartition(".p/")[2]))

    with pytest.raises(TransparencyError):
        VerifiedTree(fetch, size, b"\x01" * 32)
    assert 1 <= len(asked) <= 8

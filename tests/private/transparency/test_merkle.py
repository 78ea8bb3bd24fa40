"""Hashes, roots and proofs against published trees and against the recursive definitions."""

import base64
import dataclasses
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.transparency import merkle
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.merkle import CompactRange

ENTRIES = tuple(b"entry %d" % number for number in range(70))
SIZES = st.integers(1, merkle.MOST_SIZE)


def b64(texts):
    return [base64.b64decode(text) for text in texts]


def flipped(data, bit=0):
    return bytes([data[0] ^ 1 << bit]) + data[1:]


def test_the_hashes_of_rfc_6962():
    assert merkle.EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert merkle.leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert merkle.leaf_hash(b"L123456").hex() == "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"
    assert merkle.node_hash(b"N123", b"N456").hex() == (
        "aa217fe888e47007fa15edab33c2b492a722cb106c64667fc2b044444de66bbb"
    )


def test_the_reference_tree(vectors, defined):
    known = vectors("merkle")
    entries = tuple(bytes.fromhex(leaf) for leaf in known["leaves"])
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    for size, root in enumerate(known["roots"], 1):
        assert merkle.root_of_hashes(leaves[:size]).hex() == root
        assert merkle.tree_root(size, defined.node_of(entries)).hex() == root
        assert merkle.range_root(merkle.extend(merkle.EMPTY_RANGE, leaves[:size])).hex() == root


def test_published_proofs_of_the_reference_tree(vectors, defined):
    known = vectors("merkle")
    entries = tuple(bytes.fromhex(leaf) for leaf in known["leaves"])
    for case in known["inclusion"]:
        index, size, proof = case["leafIdx"], case["treeSize"], b64(case["proof"])
        leaf, root = b64([case["leafHash"], case["root"]])
        merkle.verify_inclusion(index, size, leaf, proof, root)
        assert merkle.inclusion_proof(index, size, defined.node_of(entries[:size])) == proof
    for case in known["consistency"]:
        old_size, size, proof = case["size1"], case["size2"], b64(case["proof"])
        old_root, root = b64([case["root1"], case["root2"]])
        merkle.verify_consistency(old_size, old_root, size, root, proof)
        assert merkle.consistency_proof(old_size, size, defined.node_of(entries[:size])) == proof


def test_proofs_of_a_certificate_log_of_961_984_013_entries(vectors):
    known = vectors("merkle")["argon2020"]
    leaf, root, old_root = b64([known["leafHash"], known["root"], known["oldRoot"]])
    inclusion, consistency = b64(known["inclusion"]), b64(known["consistency"])
    merkle.verify_inclusion(known["leafIdx"], known["size"], leaf, inclusion, root)
    merkle.verify_consistency(known["oldSize"], old_root, known["size"], root, consistency)
    with pytest.raises(TransparencyError, match="does not lead"):
        merkle.verify_inclusion(known["leafIdx"] + 1, known["size"], leaf, inclusion, root)
    with pytest.raises(TransparencyError):
        merkle.verify_consistency(known["oldSize"] + 1, old_root, known["size"], root, consistency)


def test_roots_and_inclusion_proofs_are_as_defined(defined):
    grown = merkle.EMPTY_RANGE
    assert merkle.tree_root(0, defined.node_of(())) == merkle.range_root(grown) == defined.root(())
    for size in range(1, len(ENTRIES) + 1):
        entries = ENTRIES[:size]
        root, node = defined.root(entries), defined.node_of(entries)
        grown = merkle.extend(grown, [merkle.leaf_hash(entries[-1])])
        assert merkle.tree_root(size, node) == merkle.range_root(grown) == root
        assert merkle.root_of_hashes([merkle.leaf_hash(entry) for entry in entries]) == root
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, node)
            assert proof == defined.path(index, entries)
            merkle.verify_inclusion(index, size, merkle.leaf_hash(entries[index]), proof, root)


def test_consistency_proofs_are_as_defined(defined):
    for size in range(1, len(ENTRIES) + 1):
        root, node = defined.root(ENTRIES[:size]), defined.node_of(ENTRIES[:size])
        for old_size in range(1, size + 1):
            old_root = defined.root(ENTRIES[:old_size])
            proof = merkle.consistency_proof(old_size, size, node)
            assert proof == defined.proof(old_size, ENTRIES[:size])
            merkle.verify_consistency(old_size, old_root, size, root, proof)
            if old_size < size:
                path = merkle.consistency_path(old_size, size, node)
                assert merkle.roots_of_path(old_size, size, path) == (old_root, root)
        assert merkle.consistency_proof(0, size, node) == []
        merkle.verify_consistency(0, merkle.EMPTY_ROOT, size, root, [])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 33, 64, 70])
def test_a_changed_inclusion_proof_is_refused(defined, size):
    root, node = defined.root(ENTRIES[:size]), defined.node_of(ENTRIES[:size])
    other = hashlib.sha256(b"other").digest()
    for index in range(size):
        leaf, proof = merkle.leaf_hash(ENTRIES[index]), merkle.inclusion_proof(index, size, node)
        wrong = [(leaf, [*proof[:at], flipped(proof[at], at % 8), *proof[at + 1 :]], root) for at in range(len(proof))]
        wrong += [(leaf, proof[:-1], root), (leaf, proof[1:], root)] if proof else []
        wrong += [(leaf, [*proof, each], root) for each in (root, other, leaf)]
        wrong += [(leaf, [each, *proof], root) for each in (root, other, leaf)]
        # As if the tree were the half of a larger one.
        wrong += [(leaf, [*proof, other], merkle.node_hash(other, root))]
        wrong += [(leaf, [*proof, other], merkle.node_hash(root, other))]
        wrong += [(flipped(leaf), proof, root), (leaf, proof, flipped(root)), (leaf, proof, root[:-1])]
        wrong += [(leaf[:-1], proof, root), (leaf, [each[:-1] for each in proof] or [b""], root)]
        for changed_leaf, changed_proof, changed_root in wrong:
            with pytest.raises(TransparencyError):
                merkle.verify_inclusion(index, size, changed_leaf, changed_proof, changed_root)
        for elsewhere in {index - 1, index + 1, index ^ 1, size} - {index}:
            with pytest.raises(TransparencyError):
                merkle.verify_inclusion(elsewhere, size, leaf, proof, root)


@pytest.mark.parametrize(("old_size", "size"), [(1, 2), (1, 8), (3, 7), (4, 7), (6, 8), (32, 70), (33, 64), (69, 70)])
def test_a_changed_consistency_proof_is_refused(defined, old_size, size):
    old_root, root = defined.root(ENTRIES[:old_size]), defined.root(ENTRIES[:size])
    proof = merkle.consistency_proof(old_size, size, defined.node_of(ENTRIES[:size]))
    proofs = [[*proof[:at], flipped(proof[at], at % 8), *proof[at + 1 :]] for at in range(len(proof))]
    proofs += [[], proof[:-1], proof[1:], [*proof, root], [*proof, old_root], [root, *proof], [old_root, *proof]]
    proofs += [proof[::-1]] if len(proof) > 1 else []
    for changed in proofs:
        with pytest.raises(TransparencyError):
            merkle.verify_consistency(old_size, old_root, size, root, changed)
    for roots in [(root, old_root), (flipped(old_root), root), (old_root, flipped(root)), (old_root, b"")]:
        with pytest.raises(TransparencyError):
            merkle.verify_consistency(old_size, roots[0], size, roots[1], proof)
    with pytest.raises(TransparencyError, match="cannot begin with"):
        merkle.verify_consistency(size, root, old_size, old_root, proof)


def test_equal_and_empty_trees_need_no_proof_and_take_none(defined):
    root = defined.root(ENTRIES[:5])
    merkle.verify_consistency(5, root, 5, root, [])
    for case in [(5, flipped(root), 5, root, []), (5, root, 5, root, [root]), (0, root, 5, root, [])]:
        with pytest.raises(TransparencyError):
            merkle.verify_consistency(*case)
    with pytest.raises(TransparencyError):
        merkle.verify_consistency(0, merkle.EMPTY_ROOT, 5, root, [root])
    merkle.verify_consistency(0, merkle.EMPTY_ROOT, 0, merkle.EMPTY_ROOT, [])


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.data())
def test_trees_of_any_size(one, other, data):
    """With all entries alike a subtree's hash depends on its height alone, so that a tree can be of any size."""
    rows = [merkle.leaf_hash(b"the same")]
    for _ in range(63):
        rows.append(merkle.node_hash(rows[-1], rows[-1]))
    old_size, size = sorted((one, other))
    asked = []

    def node(level, index):
        asked.append((index + 1) << level)
        return rows[level]

    root, index = merkle.tree_root(size, node), data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(index, size, node)
    merkle.verify_inclusion(index, size, rows[0], proof, root)
    consistency = merkle.consistency_proof(old_size, size, node)
    assert len(proof) <= 63 and len(consistency) <= 64 and max(asked) <= size
    merkle.verify_consistency(old_size, merkle.tree_root(old_size, node), size, root, consistency)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=4), max_size=70), st.integers(0, 70))
def test_a_compact_range_goes_on_from_anywhere(defined, entries, cut):
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    grown = merkle.extend(merkle.extend(merkle.EMPTY_RANGE, leaves[:cut]), leaves[cut:])
    assert grown == merkle.extend(merkle.EMPTY_RANGE, leaves)
    assert merkle.range_root(grown) == defined.root(tuple(entries))


@settings(max_examples=200, deadline=None)
@given(st.integers(), st.integers(), st.lists(st.binary(min_size=31, max_size=32), max_size=70))
def test_arbitrary_proofs_are_refused_in_one_way(one, other, proof):
    root = hashlib.sha256(b"root").digest()
    for call in [
        lambda: merkle.verify_inclusion(one, other, root, proof, root),
        lambda: merkle.verify_consistency(one, root, other, root, [root, *proof]),
        lambda: merkle.range_root(CompactRange(one % (1 << 70), (root, *proof, root[:-1]))),
    ]:
        with pytest.raises(TransparencyError):
            call()


def test_what_is_out_of_range_is_refused(defined):
    node, root = defined.node_of(ENTRIES), defined.root(ENTRIES)
    for call in [
        lambda: merkle.tree_root(-1, node),
        lambda: merkle.tree_root(1 << 63, node),
        lambda: merkle.inclusion_proof(5, 5, node),
        lambda: merkle.inclusion_proof(-1, 5, node),
        lambda: merkle.consistency_proof(6, 5, node),
        lambda: merkle.consistency_path(0, 5, node),
        lambda: merkle.consistency_path(5, 5, node),
        lambda: merkle.roots_of_path(0, 5, [root]),
        lambda: merkle.roots_of_path(2, 5, []),
        lambda: merkle.roots_of_path(2, 5, [root]),
        lambda: merkle.roots_of_path(2, 5, [root] * 4),
    ]:
        with pytest.raises(TransparencyError):
            call()
    with pytest.raises(TransparencyError, match="longer than any tree"):
        merkle.verify_inclusion(0, 1 << 40, root, [root] * 100_000, root)
    good = merkle.extend(merkle.EMPTY_RANGE, [root] * 5)
    for bad in [
        dataclasses.replace(good, size=7),
        dataclasses.replace(good, size=-5),
        dataclasses.replace(good, hashes=good.hashes[:1]),
        dataclasses.replace(good, hashes=(good.hashes[0], b"short")),
    ]:
        with pytest.raises(TransparencyError):
            merkle.extend(bad, [root])

"""Merkle trees as RFC 6962 and RFC 9162 hash them, with SHA-256: roots, proofs, and what is needed to go on hashing.

Nothing here recurses: all loops are over the at most 63 levels of a tree, or over what was given.

A tree's hashes come from any function `node(level, index)`: the hash of the complete subtree over the 2^level entries
from index * 2^level on. Only subtrees within the tree are asked for.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pomona.private.transparency.errors import TransparencyError

HASH_BYTES = 32
MOST_SIZE = (1 << 63) - 1  # entries; RFC 9162 counts them in 64 bits, C2SP's tools in a signed integer
MOST_HASHES = 66  # a consistency path over 63 levels has 64 at most; with the two roots it is compared with
EMPTY_ROOT = hashlib.sha256(b"").digest()

NodeSource = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry, 32 bytes (RFC 6962, Section 2.1)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two neighbouring subtrees, 32 bytes (RFC 6962, Section 2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of_hashes(hashes: Sequence[bytes]) -> bytes:
    """The root over `hashes` as if each were an entry's (RFC 6962, Section 2.1): of any number, 0 included.

    Splitting at the largest power of two is the same as pairing neighbours, row by row, and carrying an odd last one.
    """
    row = list(hashes)
    while len(row) > 1:
        odd = [row.pop()] if len(row) % 2 else []
        row = [node_hash(row[at], row[at + 1]) for at in range(0, len(row), 2)] + odd
    return row[0] if row else EMPTY_ROOT


def tree_root(size: int, node: NodeSource) -> bytes:
    """The root of the tree of the first `size` entries (RFC 6962, Section 2.1).

    Raises:
        TransparencyError: `size` is below 0 or above 2^63 - 1.
    """
    _check_size(size)
    return _hash_between(0, size, node) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, node: NodeSource) -> list[bytes]:
    """Hashes that lead from entry `index` to the root of `size` entries (RFC 9162, Section 2.1.3.1).

    Raises:
        TransparencyError: there is no such entry.
    """
    _check_size(size)
    if not 0 <= index < size:
        raise TransparencyError(f"entry {index} is not in a tree of {size}.")
    proof = []
    begin, end = 0, size
    while end - begin > 1:
        middle = _split(begin, end)
        if index < middle:
            proof.append(_hash_between(middle, end, node))
            end = middle
        else:
            proof.append(_hash_between(begin, middle, node))
            begin = middle
    return proof[::-1]


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Checks that `leaf`, a leaf hash, is entry `index` of the tree of `size` entries (RFC 9162, Section 2.1.3.2).

    Raises:
        TransparencyError: the proof does not lead from it to `root`.
    """
    _check_size(size)
    _check_hashes([leaf, *proof], "the inclusion proof")
    if not 0 <= index < size:
        raise TransparencyError(f"entry {index} is not in a tree of {size}.")
    place, last, hashed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise TransparencyError("the inclusion proof is longer than the tree is high.")
        if place & 1 or place == last:
            hashed = node_hash(sibling, hashed)
            place, last = _past_zeros(place, last)
        else:
            hashed = node_hash(hashed, sibling)
        place, last = place >> 1, last >> 1
    if last != 0 or hashed != root:
        raise TransparencyError("the inclusion proof does not lead from this entry to the root.")


def consistency_proof(old_size: int, size: int, node: NodeSource) -> list[bytes]:
    """Hashes that show the tree of `size` entries to begin with those of `old_size` (RFC 9162, Section 2.1.4.1).

    Empty where there is nothing to prove: no old entries, or equal sizes.

    Raises:
        TransparencyError: `old_size` is larger than `size`.
    """
    _check_sizes(old_size, size)
    if old_size in (0, size):
        return []
    path = consistency_path(old_size, size, node)
    return path[1:] if _is_power(old_size) else path


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Checks that the tree of `size` entries begins with those of the old one (RFC 9162, Section 2.1.4.2).

    Raises:
        TransparencyError: the proof does not lead to both roots.
    """
    _check_sizes(old_size, size)
    _check_hashes([old_root, root, *proof], "the consistency proof")
    if old_size in (0, size):
        if proof or old_root != (root if old_size else EMPTY_ROOT):
            raise TransparencyError("the two trees are not consistent, or something was proved that needs no proof.")
        return
    path = [old_root, *proof] if _is_power(old_size) else list(proof)
    if roots_of_path(old_size, size, path) != (old_root, root):
        raise TransparencyError("the consistency proof does not lead to both roots.")


def consistency_path(old_size: int, size: int, node: NodeSource) -> list[bytes]:
    """A consistency proof that always begins with a hash inside the old tree, for 0 < `old_size` < `size`.

    RFC 9162 leaves that hash out where it is the old root itself. Kept, it shows a third person what the larger tree
    says that the smaller one was, which is what evidence of a fork has to show.

    Raises:
        TransparencyError: sizes out of that order.
    """
    _check_sizes(old_size, size)
    if not 0 < old_size < size:
        raise TransparencyError(f"there is no path from a tree of {old_size} to one of {size}.")
    path = []
    begin, end = 0, size
    while end != old_size:
        middle = _split(begin, end)
        if old_size <= middle:
            path.append(_hash_between(middle, end, node))
            end = middle
        else:
            path.append(_hash_between(begin, middle, node))
            begin = middle
    path.append(_hash_between(begin, end, node))
    return path[::-1]


def roots_of_path(old_size: int, size: int, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The old root and the root that a consistency path leads to (RFC 9162, Section 2.1.4.2).

    Raises:
        TransparencyError: sizes out of order, or a path of another length than these sizes have.
    """
    _check_sizes(old_size, size)
    _check_hashes(path, "the consistency path")
    if not 0 < old_size < size or not path:
        raise TransparencyError(f"there is no such path from a tree of {old_size} to one of {size}.")
    place, last = old_size - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise TransparencyError("the consistency path is longer than the tree is high.")
        if place & 1 or place == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            place, last = _past_zeros(place, last)
        else:
            new = node_hash(new, sibling)
        place, last = place >> 1, last >> 1
    if last != 0:
        raise TransparencyError("the consistency path is shorter than the tree is high.")
    return old, new


@dataclass(frozen=True)
class CompactRange:
    """What is needed of `size` entries to go on hashing: the roots of their complete subtrees, from left to right, as
    many as `size` has bits that are 1, each 32 bytes.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()


EMPTY_RANGE = CompactRange()


def extend(start: CompactRange, leaves: Iterable[bytes]) -> CompactRange:
    """`start` with the entries of these leaf hashes after it.

    Raises:
        TransparencyError: `start` holds another number of hashes than its size has.
    """
    check_range(start)
    size, hashes = start.size, list(start.hashes)
    for hashed in leaves:
        rest = size
        while rest & 1:
            hashed = node_hash(hashes.pop(), hashed)
            rest >>= 1
        hashes.append(hashed)
        size += 1
    return CompactRange(size, tuple(hashes))


def range_root(entries: CompactRange) -> bytes:
    """The root of the tree of these entries.

    Raises:
        TransparencyError: it holds another number of hashes than its size has.
    """
    check_range(entries)
    return _fold(entries.hashes) if entries.hashes else EMPTY_ROOT


def check_range(entries: CompactRange) -> None:
    """Raises `TransparencyError` where the number or the length of the hashes is not what the size asks for."""
    _check_size(entries.size)
    if entries.size.bit_count() != len(entries.hashes):
        raise TransparencyError(f"{entries.size} entries have {entries.size.bit_count()} complete subtrees.")
    _check_hashes(entries.hashes, "the compact range")


def _complete_subtrees(begin: int, end: int) -> list[tuple[int, int]]:
    """(level, index) of the complete subtrees that make up entries `begin` to `end`, from left to right.

    `begin` has to be a multiple of a power of two that is at least `end` - `begin`, as all splits of a tree are.
    """
    found, count = [], end - begin
    for level in range(count.bit_length() - 1, -1, -1):
        if count >> level & 1:
            found.append((level, begin >> level))
            begin += 1 << level
    return found


def _hash_between(begin: int, end: int, node: NodeSource) -> bytes:
    return _fold([node(level, index) for level, index in _complete_subtrees(begin, end)])


def _fold(hashes: Sequence[bytes]) -> bytes:
    hashed = hashes[-1]
    for left in reversed(hashes[:-1]):
        hashed = node_hash(left, hashed)
    return hashed


def _split(begin: int, end: int) -> int:
    """Where RFC 6962 splits: after the largest power of two of entries that is smaller than their number."""
    return begin + (1 << ((end - begin - 1).bit_length() - 1))


def _past_zeros(place: int, last: int) -> tuple[int, int]:
    """Both shifted until `place` is odd or 0: over levels in which the last node of a row has no sibling."""
    while place and not place & 1:
        place, last = place >> 1, last >> 1
    return place, last


def _is_power(size: int) -> bool:
    return size & (size - 1) == 0


def _check_size(size: int) -> None:
    if not 0 <= size <= MOST_SIZE:
        raise TransparencyError("a tree has 0 to 2^63 - 1 entries.")


def _check_sizes(old_size: int, size: int) -> None:
    _check_size(old_size)
    _check_size(size)
    if old_size > size:
        raise TransparencyError(f"a tree of {size} entries cannot begin with {old_size}.")


def _check_hashes(hashes: Sequence[bytes], what: str) -> None:
    if len(hashes) > MOST_HASHES:
        raise TransparencyError(f"{what} is longer than any tree is high.")
    if any(len(each) != HASH_BYTES for each in hashes):
        raise TransparencyError(f"{what} holds something else than hashes of {HASH_BYTES} bytes.")

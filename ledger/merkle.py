"""The Merkle tree of RFC 9162 over hashes that come one after another, in memory that grows with their logarithm.

A proof is the roots of certain ranges of leaves, so whoever can read the leaves once, in order, can make any proof:
`inclusion_ranges` and `consistency_ranges` say which ranges, `RangeRoots` computes them as the leaves pass by.

Source: RFC 9162, sections 2.1.1 (tree), 2.1.3 (inclusion), 2.1.4 (consistency); the same tree as in RFC 6962.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

__all__ = [
    "EMPTY_ROOT",
    "HASH_BYTES",
    "Frontier",
    "PathFinder",
    "RangeRoots",
    "consistency_ranges",
    "inclusion_ranges",
    "inclusion_root",
    "leaf_hash",
    "node_hash",
    "verify_consistency",
    "verify_inclusion",
]

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()
Range = tuple[int, int]
"""Leaves from the first number up to, without, the second; leaves count from 0."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf."""
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees side by side."""
    return sha256(b"\1" + left + right).digest()


class Frontier:
    """A tree that only grows: its size and the roots of its complete subtrees, the largest first.

    Raises ValueError when the number of nodes is not that of the size.
    """

    __slots__ = ("nodes", "size")

    def __init__(self, size: int = 0, nodes: Iterable[bytes] = ()) -> None:
        self.size, self.nodes = size, list(nodes)
        if size < 0 or len(self.nodes) != size.bit_count() or any(len(node) != HASH_BYTES for node in self.nodes):
            raise ValueError(f"{len(self.nodes)} hashes are no tree of {size} leaves")

    def add(self, leaf: bytes) -> None:
        """Take the hash of the next leaf."""
        nodes, size = self.nodes, self.size
        while size & 1:
            leaf = sha256(b"\1" + nodes.pop() + leaf).digest()
            size >>= 1
        nodes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root at this size."""
        if not self.nodes:
            return EMPTY_ROOT
        *others, root = self.nodes
        for node in reversed(others):
            root = node_hash(node, root)
        return root

    def copy(self) -> Frontier:
        """The same tree, to grow on its own."""
        return Frontier(self.size, self.nodes)

    def path_of_next(self) -> list[bytes]:
        """The inclusion proof of the next leaf in the tree that it makes, as soon as it is added."""
        return self.nodes[::-1]


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The ranges whose roots prove that leaf `index` is in the tree of `size` leaves, from the leaf upwards.

    Raises ValueError when there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    ranges: list[Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """The ranges whose roots prove that the tree of `new` leaves continues that of `old`. Raises ValueError."""
    if not 0 < old <= new:
        raise ValueError(f"a tree of {new} leaves does not continue one of {old}")
    ranges: list[Range] = []
    start, end, whole = 0, new, True
    while end != old:
        middle = start + _split(end - start)
        if old <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start, whole = middle, False
    if not whole:
        ranges.append((start, end))
    return ranges[::-1]


class RangeRoots:
    """Computes the roots of ranges that do not overlap, from leaves given in order; `roots` are in the order asked."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._order = sorted(range(len(ranges)), key=lambda n: ranges[n])
        self._ranges = ranges
        self._trees = [Frontier() for _ in ranges]
        self._place = 0

    def add(self, index: int, leaf: bytes) -> None:
        """Take the hash of leaf `index`; those outside all ranges are of no account."""
        while self._place < len(self._order):
            number = self._order[self._place]
            start, end = self._ranges[number]
            if index < start:
                return
            if index < end:
                self._trees[number].add(leaf)
                return
            self._place += 1

    def roots(self) -> list[bytes]:
        """The roots. Raises ValueError when leaves are missing."""
        for (start, end), tree in zip(self._ranges, self._trees, strict=True):
            if tree.size != end - start:
                raise ValueError(f"leaves {start} to {end - 1} are needed, {tree.size} of them came")
        return [tree.root() for tree in self._trees]


class PathFinder:
    """Computes such ranges around a boundary, from a tree that ends at or before it and the leaves from there on.

    What stands before the boundary are the nodes of the tree at the boundary, so nobody has to read all leaves.
    """

    def __init__(self, ranges: Sequence[Range], boundary: int, before: Frontier) -> None:
        """`boundary` is the leaf of an inclusion proof, or the old size of a consistency proof."""
        if before.size > boundary:
            raise ValueError(f"a tree of {before.size} leaves is beyond {boundary}")
        self._ranges, self._boundary, self._tree = ranges, boundary, before.copy()
        self._right = RangeRoots([one for one in ranges if one[0] >= boundary])
        self.size = before.size
        """Leaves that are known without being read."""

    def add(self, index: int, leaf: bytes) -> None:
        """Take the hash of a leaf; they come in order, from the size of the tree given."""
        if index < self._boundary:
            self._tree.add(leaf)
        else:
            self._right.add(index, leaf)

    def roots(self) -> list[bytes]:
        """The roots in the order asked. Raises ValueError when leaves are missing."""
        if self._tree.size != self._boundary:
            raise ValueError(f"leaves from {self._tree.size} on are needed")
        left = sorted(one for one in self._ranges if one[0] < self._boundary)
        found = dict(zip(left, self._tree.nodes, strict=bool(left)))
        right = iter(self._right.roots())
        return [found[one] if one in found else next(right) for one in self._ranges]


def inclusion_root(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """The root that an inclusion proof leads to; None when the proof has not the shape for this index and size."""
    if not 0 <= index < size:
        return None
    node, last, root = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return None
        if node & 1 or node == last:
            root = node_hash(step, root)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            root = node_hash(root, step)
        node, last = node >> 1, last >> 1
    return root if last == 0 else None


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the proof shows that the leaf is number `index` of the tree with this size and root."""
    return inclusion_root(leaf, index, size, proof) == root


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that the first `old` leaves of the new tree are those of the old one."""
    if old == new:
        return not proof and old_root == new_root
    if not 0 < old < new or not proof:
        return False
    steps = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    before = after = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            before, after = node_hash(step, before), node_hash(step, after)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            after = node_hash(after, step)
        node, last = node >> 1, last >> 1
    return last == 0 and before == old_root and after == new_root


def _split(size: int) -> int:
    """The largest power of two that is smaller than `size`."""
    return 1 << ((size - 1).bit_length() - 1)

"""The Merkle tree against the vectors of the RFCs, against an independent library, and by its laws."""

from __future__ import annotations

from typing import Any

import pymerkle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuebook.ledger.merkle import (
    EMPTY_ROOT,
    Frontier,
    PathFinder,
    RangeRoots,
    consistency_ranges,
    inclusion_ranges,
    inclusion_root,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

# The leaves and roots with which implementations of Certificate Transparency test RFC 6962.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PATH_OF_6_IN_8 = [  # the sixth leaf of eight; a vector of the same collection
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
]
sizes = st.integers(1, 200)


def tree(count: int) -> Frontier:
    grown = Frontier()
    for leaf in leaves(count):
        grown.add(leaf)
    return grown


def leaves(count: int) -> list[bytes]:
    return [leaf_hash(b"%d" % n) for n in range(count)]


def roots(ranges: list[tuple[int, int]], hashes: list[bytes]) -> list[bytes]:
    collector = RangeRoots(ranges)
    for index, leaf in enumerate(hashes):
        collector.add(index, leaf)
    return collector.roots()


def independent(count: int) -> Any:
    other = pymerkle.InmemoryTree(algorithm="sha256")
    for n in range(count):
        other.append_entry(b"%d" % n)
    return other


def test_roots_are_those_of_the_vectors() -> None:
    grown = Frontier()
    assert grown.root() == EMPTY_ROOT
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for data, root in zip(LEAVES, ROOTS, strict=True):
        grown.add(leaf_hash(data))
        assert grown.root().hex() == root


def test_an_inclusion_proof_is_that_of_the_vectors() -> None:
    proof = roots(inclusion_ranges(5, 8), [leaf_hash(data) for data in LEAVES])
    assert [step.hex() for step in proof] == PATH_OF_6_IN_8
    assert verify_inclusion(leaf_hash(LEAVES[5]), 5, 8, proof, bytes.fromhex(ROOTS[7]))


@given(sizes)
def test_roots_are_those_of_an_independent_library(size: int) -> None:
    assert tree(size).root() == independent(size).get_root(size)


@given(sizes, st.data())
def test_inclusion_proofs_are_those_of_an_independent_library(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    other = independent(size)
    theirs = other.prove_inclusion(index + 1, size).serialize()["path"]  # with the leaf itself
    ours = roots(inclusion_ranges(index, size), leaves(size))
    assert {step.hex() for step in ours} == set(theirs) - {leaves(size)[index].hex()}
    assert verify_inclusion(leaves(size)[index], index, size, ours, other.get_root(size))


@given(sizes, st.data())
def test_consistency_proofs_hold_between_roots_of_an_independent_library(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size))
    other = independent(size)
    proof = roots(consistency_ranges(old, size), leaves(size))
    assert verify_consistency(old, other.get_root(old), size, other.get_root(size), proof)


@given(sizes, st.data())
def test_a_proof_for_something_else_is_refused(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    hashes, root = leaves(size), tree(size).root()
    proof = roots(inclusion_ranges(index, size), hashes)
    assert not verify_inclusion(leaf_hash(b"other"), index, size, proof, root)
    assert not verify_inclusion(hashes[index], index, size, [*proof, root], root)
    assert inclusion_root(hashes[index], size, size, proof) is None
    if proof:
        changed = data.draw(st.integers(0, len(proof) - 1))
        assert not verify_inclusion(
            hashes[index], index, size, [*proof[:changed], leaf_hash(b"x"), *proof[changed + 1 :]], root
        )
        assert not verify_inclusion(hashes[index], index, size, proof[:-1], root)
    wrong = data.draw(st.integers(0, size - 1).filter(lambda n: n != index)) if size > 1 else None
    assert wrong is None or not verify_inclusion(hashes[index], wrong, size, proof, root)


@given(sizes, st.data())
def test_a_rewritten_history_has_no_consistency_proof(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size))
    changed = data.draw(st.integers(0, old - 1))
    hashes = leaves(size)
    hashes[changed] = leaf_hash(b"rewritten")
    rewritten = Frontier()
    for leaf in hashes:
        rewritten.add(leaf)
    proof = roots(consistency_ranges(old, size), hashes)
    assert not verify_consistency(old, tree(old).root(), size, rewritten.root(), proof)


@given(st.integers(0, 200), st.integers(0, 50))
def test_a_tree_taken_up_again_grows_like_one_that_never_stopped(before: int, more: int) -> None:
    first = tree(before)
    path = first.path_of_next()
    again = Frontier(before, first.nodes)
    for leaf in leaves(before + more)[before:]:
        again.add(leaf)
    assert (again.size, again.root()) == (before + more, tree(before + more).root())
    following = leaves(before + 1)[before]
    assert inclusion_root(following, before, before + 1, path) == tree(before + 1).root()


@given(sizes, st.data())
def test_proofs_need_only_the_leaves_from_any_earlier_tree_on(size: int, data: st.DataObject) -> None:
    hashes = leaves(size)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    for boundary, ranges in ((index, inclusion_ranges(index, size)), (old, consistency_ranges(old, size))):
        known = data.draw(st.integers(0, boundary))
        finder = PathFinder(ranges, boundary, tree(known))
        for n in range(known, size):
            finder.add(n, hashes[n])
        assert finder.roots() == roots(ranges, hashes)


def test_what_cannot_be_is_refused() -> None:
    for size, nodes in ((1, []), (0, [EMPTY_ROOT]), (3, [EMPTY_ROOT]), (1, [b"short"]), (-1, [])):
        with pytest.raises(ValueError, match="no tree"):
            Frontier(size, nodes)
    with pytest.raises(ValueError, match="has no leaf"):
        inclusion_ranges(3, 3)
    with pytest.raises(ValueError, match="does not continue"):
        consistency_ranges(4, 3)
    with pytest.raises(ValueError, match="are needed"):
        roots([(0, 4)], leaves(3))
    with pytest.raises(ValueError, match="is beyond"):
        PathFinder([], 3, tree(4))
    with pytest.raises(ValueError, match="are needed"):
        PathFinder([], 3, tree(2)).roots()
    assert not verify_consistency(2, EMPTY_ROOT, 3, EMPTY_ROOT, [])
    assert not verify_consistency(3, tree(3).root(), 3, tree(3).root(), [EMPTY_ROOT])
    assert verify_consistency(3, tree(3).root(), 3, tree(3).root(), [])

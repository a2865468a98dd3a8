"""docs/audit.md: its test vectors are what the code does, and its program checks a real proof."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cuebook.ledger.merkle import Frontier, RangeRoots, inclusion_ranges
from cuebook.ledger.notes import PrivateKey, PublicKey
from cuebook.ledger.proofs import InclusionProof
from cuebook.ledger.record import Record, leaf_data, leaf_of
from cuebook.ledger.segments.blocks import SegmentWriter
from tests.documents import ROOT, block
from tests.ledger.files import history

TEXT = (ROOT / "docs" / "audit.md").read_text()
MESSAGES = [
    Record(1, 1767225600000000000, b"cue.event.ticket.opened", b"", b'{"id": "t-17"}'),
    Record(2, 1767225600000000001, b"cue.event.ticket.opened", b"NATS/1.0\r\nNats-Msg-Id: m-1\r\n\r\n", b""),
    Record(3, 1767225600123456789, b"cue.run.r1.completed", b"", bytes.fromhex("9401a0c400c40180")),
]


def part(name: str) -> list[str]:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", TEXT, re.DOTALL)
    assert found is not None
    return re.findall(r"```text\n(.*?)```", found[1], re.DOTALL)


def test_the_leaves_are_those_of_the_code() -> None:
    vectors = [case.strip().split("\n")[1:] for case in part("leaves")[0].split("\n\n")]
    assert vectors == [[leaf_data(one).hex(), leaf_of(one).hex()] for one in MESSAGES]


def test_the_roots_are_those_of_the_code() -> None:
    tree, found = Frontier(), []
    for one in MESSAGES:
        tree.add(leaf_of(one))
        found.append(tree.root().hex())
    assert part("roots")[0].split() == found


def test_the_checkpoint_is_that_of_the_code() -> None:
    key = PrivateKey("example.com/cue", bytes(range(32)))
    tree = Frontier()
    for one in MESSAGES:
        tree.add(leaf_of(one))
    public, note = part("checkpoint")
    assert PublicKey.parse(public) == key.public
    assert note == key.checkpoint(3, tree.root()).note


@pytest.mark.parametrize(("index", "size"), [(0, 1), (0, 7), (6, 7), (3, 8), (4, 21)])
def test_the_program_checks_a_proof_and_refuses_an_altered_one(tmp_path: Path, index: int, size: int) -> None:
    messages, key, tree = history(size), PrivateKey("example.com/cue", bytes(range(32))), Frontier()
    collector = RangeRoots(inclusion_ranges(index, size))
    for n, one in enumerate(messages):
        tree.add(leaf_of(one))
        collector.add(n, leaf_of(one))
    note = key.checkpoint(size, tree.root()).note
    proof = InclusionProof(index=index, path=tuple(collector.roots()), note=note, extra=leaf_data(messages[index]))
    (tmp_path / "check.py").write_text(block("docs/audit.md", "python", "# check.py"))
    (tmp_path / "proof").write_text(proof.text)
    command = [sys.executable, "check.py", "proof", str(key.public)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"sequence {index + 1} is in example.com/cue of {size} messages" in done.stdout, done.stderr
    other = InclusionProof(
        index=index, path=proof.path, note=note, extra=leaf_data(messages[index]._replace(body=b"other"))
    )
    (tmp_path / "proof").write_text(other.text)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "this proves nothing\n")


def test_the_program_verifies_a_segment_and_refuses_an_altered_one(tmp_path: Path) -> None:
    program = block("docs/audit.md", "python", "# segment.py")
    before, messages = Frontier(), history(1_300)
    for one in messages[:300]:
        before.add(leaf_of(one))
    with (tmp_path / "data").open("wb") as file:
        writer = SegmentWriter(file, before)
        for one in messages[300:]:
            writer.add(one)
        segment, _ = writer.finish("cue", 1)
    data, manifest = tmp_path / f"{segment.name}.gz", tmp_path / f"{segment.name}.json"
    (tmp_path / "data").rename(data)
    manifest.write_bytes(segment.text)
    words = [sys.executable, "-c", program, str(manifest)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "sequences 301 to 1300: a tree of 1300 messages\n", done.stderr
    plain = gzip.decompress(data.read_bytes())
    data.write_bytes(gzip.compress(plain.replace(b'{"order": 777}', b'{"order": 778}')))
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "other messages than the manifest says" in done.stderr

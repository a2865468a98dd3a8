"""docs/operations.md lists every finding that can be made, with its remedy, and every threshold."""

from __future__ import annotations

import re
from pathlib import Path

from cuebook.cli.checks.areas import AREAS, KINDS, LIMITS
from cuebook.cli.checks.finding import Kind, Limits

TEXT = (Path(__file__).parent.parent.parent.parent / "docs" / "operations.md").read_text()


def row(kind: Kind) -> str:
    return f"| `{kind.code}` | {kind.level.word} | {kind.meaning} | {kind.documented_remedy} |"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,g}"


def limit(name: str, limits: Limits) -> str:
    return f"| `{name}` | {number(limits.warning)} | {number(limits.critical)} |"


def test_every_finding_is_listed_and_none_that_there_is_not() -> None:
    of_a_finding = re.compile(r"\| `(?:[a-z]+\.[a-z_]+|unseen)` \| (?:ok|unknown|warning|critical) \|")
    listed = [line for line in TEXT.splitlines() if of_a_finding.match(line)]
    assert listed == [row(kind) for kind in KINDS], "\n" + "\n".join(row(kind) for kind in KINDS)


def test_every_threshold_is_listed() -> None:
    expected = [limit(name, limits) for name, limits in LIMITS.items()]
    listed = [line for line in TEXT.splitlines() if re.match(r"\| `[a-z]+\.[a-z_]+` \| [0-9.,]* \|", line)]
    assert listed == expected, "\n" + "\n".join(expected)


def test_codes_are_unique_and_begin_with_their_area() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert {code.partition(".")[0] for code in codes} - {"unseen"} <= set(AREAS)


def test_every_remedy_fits_into_a_table() -> None:
    assert all(kind.remedy and "|" not in kind.remedy + kind.meaning for kind in KINDS)

"""What README.md shows is what happens: its transcript, its code, its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import DEADLINE_S, Command, started
from tests.documents import ROOT, block, blocks

PAGE = "README.md"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "desk.py").write_text(block(PAGE, "python", "# desk.py"))
    return folder


@pytest.fixture(scope="module")
def dev(workplace: Path) -> Iterator[Command]:
    """The `cuebook dev` of the page, on free ports."""
    (words,) = [line.split() for line in commands("cuebook dev")]
    with started(*words[1:], "--nats-port", "0", "--postgres-port", "0", cwd=workplace) as dev:
        dev.line("Ctrl-C stops everything")
        yield dev
        dev.process.terminate()
        dev.end()


def commands(beginning: str) -> list[str]:
    return block(PAGE, "sh", beginning).strip().splitlines()


def environment(dev: Command) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **dev.exported()}


def alike(line: str) -> str:
    """What differs from run to run, made the same: times, and the padding of columns."""
    return re.sub(r" +", " ", re.sub(r"\d+\.\d\d( s)?(?=  |$)", "<time>", line)).strip()


def test_the_transcript_is_what_the_demo_prints(demonstration: Command) -> None:
    transcript = block(PAGE, "console", "$ pip install uv && uv run cuebook demo").splitlines()[1:]
    printed = [alike(line) for line in demonstration.lines]
    shown = [alike(line) for line in transcript if line not in ("...", "")]
    assert [line for line in shown if line not in printed] == [], "\n".join(demonstration.lines)
    last_table = max(place for place, line in enumerate(printed) if line.startswith("ticket outcome"))
    places = [printed.index(line, 0 if line.startswith("<time>") else last_table) for line in shown]
    assert places == sorted(places)
    assert len(shown) > 15
    assert demonstration.end() == 0


def test_the_commands_for_demo_and_tests_are_the_ones_promised() -> None:
    shown = [*blocks(PAGE, "sh"), *blocks(PAGE, "console")]
    assert any(text.startswith("$ pip install uv && uv run cuebook demo\n") for text in shown)
    assert "pip install uv && uv run pytest\n" in shown


def test_the_commands_do_what_they_say(dev: Command, workplace: Path) -> None:
    script = "set -euo pipefail\n" + block(PAGE, "sh", "cuebook run submit")
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=workplace,
        env=environment(dev),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "sent: 8990 cents, under key give_back-p-1/" in done.stdout
    assert "Refund over 500?" in done.stdout
    assert "sent: 89900 cents, under key give_back-p-2/1" in done.stdout


def test_the_program_publishes_and_hears_the_end(dev: Command, workplace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block(PAGE, "python", "# publish.py")],
        cwd=workplace,
        env=environment(dev),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert re.fullmatch(r"live\.cue\.run\.give_back-p-3\.completed at \d+\n", done.stdout)


def test_more_hands_are_one_command(dev: Command, workplace: Path) -> None:
    (line,) = commands("cuebook serve agents")
    with started(*line.split()[1:], cwd=workplace, env=dev.exported()) as agents:
        agents.line(" ready ")
        agents.process.terminate()
        assert agents.end() == 0


def test_every_block_is_one_of_those_checked_here() -> None:
    known = (
        "# desk.py",
        "# publish.py",
        "cuebook dev",
        "cuebook run submit",
        "cuebook serve",
        "pip install uv",
        "$ pip",
    )
    fences = re.findall(r"^```(\w+)$", (ROOT / PAGE).read_text(), re.MULTILINE)
    texts = [text for language in sorted(set(fences)) for text in blocks(PAGE, language)]
    assert [text for text in texts if not text.startswith(known)] == []
    assert len(texts) == len(fences)

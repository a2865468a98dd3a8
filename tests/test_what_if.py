"""What docs/what-if.md shows is what happens, on the support desk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cuebook.examples.support import sagas
from tests.commands import DEADLINE_S, Command
from tests.documents import block, blocks

PAGE = "docs/what-if.md"
TICKETS = ("t-01", "t-09", "t-16")


class Shell:
    """Runs commands in a folder, as somebody who has exported what `cuebook dev` says."""

    def __init__(self, folder: Path, dev: Command) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._env = {**os.environ, "PATH": path, "CUEBOOK_BY": "ann", **dev.exported()}

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def json(self, command: str) -> Any:
        return json.loads(self.run(f"{command} -o json").stdout)


@pytest.fixture(scope="module")
def shell(example: Command, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """The folder of the page, and three tickets that were handled, one of them declined by a person."""
    shell = Shell(tmp_path_factory.mktemp("what-if"), example)
    (shell.folder / "candidate.py").write_text(block(PAGE, "python", "# candidate.py"))
    saga = Path(sagas.__file__).read_text()
    (shell.folder / "changed.py").write_text(saga.replace("> APPROVAL_LIMIT_CENTS:", "> 5_000:"))
    told = shell.run("python -m cuebook.examples.support.tickets").stdout.splitlines()
    for ticket in (line for line in told if json.loads(line)["id"] in TICKETS):
        shell.run(f"cuebook events publish ticket.opened - <<'END'\n{ticket}\nEND")
    deadline = time.monotonic() + DEADLINE_S
    while "support-t-09/2" not in [one["id"] for one in shell.json("cuebook escalation list")]:
        assert time.monotonic() < deadline
    shell.run("cuebook escalation resolve support-t-09/2 --deny")
    for ticket in TICKETS:
        shell.run(f"cuebook run tail support-{ticket}")
    return shell


def shown(command: str) -> tuple[str, list[str]]:
    """A command of the page, and the lines under it."""
    (text,) = [text for text in blocks(PAGE, "console") if text.startswith(f"$ {command}")]
    first, *rest = text.splitlines()
    return first.removeprefix("$ "), rest


def alike(line: str) -> str:
    """Without what differs from run to run: names that Stripe gives, sequences, spans."""
    line = re.sub(r"pi_\w+…?", "pi_<id>", line)
    line = re.sub(r"^ +\d+ +\+[\d.]+ m?s +", "", line)
    return re.sub(r" +", " ", re.sub(r"\bat \d+", "at <sequence>", line)).rstrip()


def test_a_changed_saga_is_held_against_its_runs(shell: Shell) -> None:
    command, expected = shown("cuebook saga check")
    result = shell.run(command)
    assert result.returncode == 8
    printed = [alike(line) for line in result.stdout.splitlines()]
    for line in expected[: expected.index("...")]:
        assert alike(line) in printed
    assert expected[-3:] == [
        "fix: finish or cancel open ones before this code is served, or give it another saga name", "$ echo $?", "8",
    ]  # fmt: skip
    assert expected[-3] in result.stderr.splitlines()


def test_another_model_is_asked_what_the_first_was(shell: Shell) -> None:
    command, expected = shown("cuebook replay diff")
    result = shell.run(command)
    assert result.returncode == 8
    for line in [*expected[:3], expected[4]]:
        assert line in result.stdout.splitlines(), result.stdout
    assert expected[-1] in result.stderr.splitlines()


def test_a_declined_refund_is_forked_into_one_that_is_paid(shell: Shell) -> None:
    command, expected = shown("cuebook run fork")
    result = shell.run(command)
    assert (result.returncode, result.stdout) == (0, f"{expected[0]}\n"), result.stderr
    tail = expected[1].removeprefix("$ ")
    printed = [alike(line) for line in shell.run(tail).stdout.splitlines()]
    for line in expected[2:]:
        if line != "...":
            beginning = alike(line).removesuffix("...").rstrip()
            assert any(one.startswith(beginning) for one in printed), (beginning, printed)
    state = shell.json("cuebook run show t-09-approved")
    assert [item["copied_from"] for item in state["items"][:4]] == [*(f"support-t-09/{n}" for n in range(3)), None]

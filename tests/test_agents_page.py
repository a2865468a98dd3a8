"""docs/agents.md shows programs that do what the page says, and tells the defaults of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cuebook.actors import Agent, Retry
from cuebook.actors.orchestrator.retry import MAX_LOSSES
from cuebook.actors.saga import MAX_STEPS, MAX_UNDOABLE
from cuebook.cli.loading import load_agents, load_sagas
from cuebook.events.codec import MAX_DEPTH, MAX_ITEMS
from tests.actors.desk import Desk
from tests.documents import ROOT, block

PAGE = "docs/agents.md"
TEXT = (ROOT / PAGE).read_text()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the programs of the page, and we are in it."""
    for name in ("librarian", "test_librarian"):
        (tmp_path / f"{name}.py").write_text(block(PAGE, "python", f"# {name}.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("librarian", None)


@pytest.mark.usefixtures("library")
async def test_the_library_lends_asks_and_refuses(nats_url: str, space: str) -> None:
    agents, sagas = load_agents(["librarian:Shelf", "librarian:Post"]), load_sagas(["librarian:lending"])
    library: ModuleType = sys.modules["librarian"]
    assert library.Post().letter("four") == 4
    async with Desk(nats_url, space, sagas=sagas, agents=agents) as desk:
        lent = await desk.client.run_saga("lending", {"book": "Emma", "reader": "ann"}, run_id="r1", timeout_s=60)
        assert (lent.status, lent.result) == ("completed", "r1/0")
        await desk.client.submit_run("lending", {"book": "Emma", "reader": "ben", "days": 70}, run_id="r2")
        await desk.saw("r2", "asked")
        await desk.client.resolve("r2", 0, value={"approved": False})
        assert (await desk.client.wait("r2", timeout_s=60)).status == "failed"
        await desk.client.submit_run("lending", {"book": "Necronomicon", "reader": "cy"}, run_id="r3")
        (escalated,) = await desk.saw("r3", "escalated")
        assert escalated.error.message == "this book is not lent"
        assert len(await desk.saw("r3", "failed")) == 1


def test_the_test_of_the_page_passes(library: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_librarian.py"],
        cwd=library,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_defaults_and_limits_are_those_of_the_code() -> None:
    names = ("attempts", "backoff_s", "factor", "max_s", "jitter")
    assert f"`Retry({', '.join(f'{name}={getattr(Retry(), name):g}' for name in names)})`" in TEXT
    for name in ("concurrency", "recycle_after", "heartbeat_s"):
        (row,) = re.findall(rf"^\| `{name}` \|.*\| ([\d.]+) \|$", TEXT, re.MULTILINE)
        assert float(row) == getattr(Agent, name)
    assert f"{MAX_STEPS:,} steps, {MAX_UNDOABLE:,} that can be undone" in TEXT
    assert f"{MAX_DEPTH} levels deep, {MAX_ITEMS:,} items" in TEXT
    assert MAX_LOSSES == 5
    assert "after five processes a person decides" in TEXT

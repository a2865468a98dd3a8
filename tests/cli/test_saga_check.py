"""`cuebook saga check`: every recorded run against the present code, with nothing done outside."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.state import RunState
from cuebook.cli.sagas import checking
from cuebook.cli.sagas.fence import Fence, FencedError
from tests.cli.conftest import Cli, reaches


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    before = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before[0]
    for name in set(sys.modules) - before[1]:
        del sys.modules[name]


@pytest.fixture
async def runs(cli: Cli, client: Client, agents: object, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that ended in several ways, two that go on, and one of another saga."""
    monkeypatch.chdir(workplace)
    for n in (1, 13):
        await cli.run("run", "submit", "order", f'{{"n": {n}}}', "--id", f"o{n}", "--wait")
    await cli.run("run", "submit", "doomed", '{"n": 1}', "--id", "d1", "--wait")
    for n in (15, 17):
        await cli.ok("run", "submit", "order", f'{{"n": {n}}}', "--id", f"o{n}")
        await reaches(client, f"o{n}", items=2)


def write(workplace: Path, name: str, old: str, new: str) -> None:
    source = (workplace / "mydesk.py").read_text()
    assert old in source
    (workplace / f"{name}.py").write_text(source.replace(old, new))


@pytest.mark.usefixtures("runs")
async def test_finished_and_open_runs_are_checked_and_the_first_difference_stands_side_by_side(
    cli: Cli, workplace: Path
) -> None:
    result = await cli.run("saga", "check", "mydesk:order", "mydesk:doomed")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "order: 4 runs checked (2 open), 0 would go another way" in result.stderr
    write(workplace, "asks_twice", 'run.ask_human("really?"', 'run.ask_human("surely?"')
    result = await cli.run("saga", "check", "asks_twice:order")
    assert result.exit_code == 8
    assert result.stdout.splitlines() == [
        "o15 (order version 1, running), step 1: the saga asks for something else than it did",
        "             recorded  | would ask now",
        '  ask_human  "really?" | "surely?"',
    ]
    assert "1 of 4 runs would go another way" in result.stderr
    write(workplace, "more", "run.call(Echo.add, given)", "run.call(Echo.add, In(n=given.n + 1))")
    for form in ("json", "jsonl"):
        result = await cli.run("saga", "check", "more:order", "-o", form)
        assert result.exit_code == 8
        found = json.loads(result.stdout) if form == "json" else [json.loads(row) for row in result.stdout.splitlines()]
        assert {(one["run_id"], one["step"]) for one in found} == {(f"o{n}", 0) for n in (1, 13, 15, 17)}
        assert found[0]["recorded"] == {"call": "echo.add", "input": {"n": 1}}
        assert found[0]["asked"] == {"call": "echo.add", "input": {"n": 2}}
    text = (await cli.run("saga", "check", "more:order", "--run", "o17")).stdout
    assert "  call     echo.add | echo.add\n  input.n  17       | 18" in text


@pytest.mark.usefixtures("runs")
async def test_without_runs_there_is_nothing_to_check_and_that_is_an_error(
    cli: Cli, client: Client, workplace: Path
) -> None:
    write(workplace, "other", "async def doomed(", "async def untried(")
    said = await cli.fails(3, "saga", "check", "other:untried")
    assert "there is no run of untried to check" in said
    assert "runs there are of: doomed, order" in said
    said = await cli.fails(3, "saga", "check", "mydesk:order", "--since", "0s")
    assert "that began since 0s" in said
    assert "fix: leave --since out, or say an earlier one" in said
    assert await cli.json("saga", "check", "mydesk:order", "--since", "1h") == []
    assert "there is no run 'nobody'" in await cli.fails(3, "saga", "check", "mydesk:order", "--run", "nobody")


@pytest.mark.usefixtures("runs")
async def test_more_open_runs_than_fit_are_read_one_by_one(
    cli: Cli, client: Client, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(workplace, "more", "run.call(Echo.add, given)", "run.call(Echo.add, In(n=given.n + 1))")
    held: list[int] = []

    class Small(checking.Histories):
        def __init__(self, wanted: Any, on_end: Callable[[RunState], None]) -> None:
            super().__init__(wanted, on_end, most=1)

        def apply(self, item: Any) -> None:
            super().apply(item)
            held.append(len(self.open))

    monkeypatch.setattr(checking, "Histories", Small)
    result = await cli.run("saga", "check", "more:order", "-o", "json")
    assert sorted(one["run_id"] for one in json.loads(result.stdout)) == ["o1", "o13", "o15", "o17"]
    assert max(held) == 1


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("deed", "told"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', {port}))", "socket."),
        ("import subprocess; subprocess.run(['touch', '{mark}'])", "subprocess.Popen"),
        ("open('{mark}', 'w').write('x')", "for writing"),
        ("import pathlib; pathlib.Path('{mark}').mkdir()", "os.mkdir"),
        ("import os; os.system('touch {mark}')", "os.system"),
        ("import threading; threading.Thread(target=lambda: open('{mark}', 'w')).start()", "start_new_thread"),
    ],
)
async def test_what_a_saga_does_outside_is_refused_and_named(cli: Cli, workplace: Path, deed: str, told: str) -> None:
    mark = workplace / "mark"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        deed = deed.format(mark=mark, port=server.getsockname()[1])
        hidden = f"try:\n        {deed}\n    except Exception:\n        pass\n    "
        write(workplace, "busy", "first = await", hidden + "first = await")
        result = await cli.run("saga", "check", "busy:order", "--run", "o1", "-o", "json")
        with pytest.raises(BlockingIOError):
            server.accept()
    assert result.exit_code == 8
    (found,) = json.loads(result.stdout)
    assert found["reason"] == "the saga reaches outside by itself"
    assert told in found["asked"]["fenced"][0]
    assert not mark.exists()


async def test_a_fence_holds_only_what_is_inside_it(tmp_path: Path) -> None:
    fence = Fence()
    with pytest.raises(FencedError), fence:
        (tmp_path / "inside").write_text("x")
    assert len(fence.tried) == 1
    (tmp_path / "outside").write_text("x")
    with fence:
        assert (tmp_path / "outside").read_text() == "x"
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(subprocess.run(["true"], check=True).returncode))
    thread.start()
    with fence:
        pass
    thread.join()
    assert other == [0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside"]

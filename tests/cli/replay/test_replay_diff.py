"""`cuebook replay diff`: recorded inputs through present handlers, with no effect that nobody has asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuebook.actors.client import Client
from cuebook.cli.agents.rehearsal import draw_sample
from tests.cli.conftest import Cli, reaches

PURE = "@handler(timeout_s=20, pure=True)\n    async def add"
ADD = "@handler(timeout_s=20)\n    async def add"


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    before = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before[0]
    for name in set(sys.modules) - before[1]:
        del sys.modules[name]


@pytest.fixture
async def answered(cli: Cli, client: Client, agents: object, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten tasks of an agent, one undone; one of another that failed, one of it that a person answered."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("DIFF_MARK", str(workplace / "mark"))
    for n in range(9):
        await client.run_task("echo", {"n": n}, run_id=f"t{n}", timeout_s=60)
    await cli.run("run", "submit", "order", '{"n": 13}', "--id", "o13", "--wait")
    for name, choice in (("f1", ["--abort"]), ("f2", ["--result", '{"n": 2}'])):
        await cli.ok("run", "submit", "--agent", "faulty", '{"n": 1}', "--id", name)
        await reaches(client, name, "escalated")
        await cli.ok("escalation", "resolve", name, *choice)
        await client.wait(name, timeout_s=60)


def write(workplace: Path, name: str, *changes: tuple[str, str]) -> str:
    source = (workplace / "mydesk.py").read_text()
    for old, new in changes:
        assert old in source
        source = source.replace(old, new, 1)
    (workplace / f"{name}.py").write_text(source)
    return f"{name}:Echo"


@pytest.mark.usefixtures("answered")
async def test_answers_that_are_the_same_pass(cli: Cli, client: Client, workplace: Path) -> None:
    spec = write(workplace, "pure", (ADD, PURE))
    last = (await client.log.verify()).last_sequence
    found = await cli.json("replay", "diff", "--agent", spec)
    assert (found["agent"], found["tasks"], found["different"]) == ("echo", 10, [])
    assert found["handlers"] == [
        {"handler": "add", "same": 10, "changed": 0, "raises": 0, "answers": 0, "failed": 0, "fields": {}}
    ]
    assert (await client.log.verify()).last_sequence == last  # nothing was written
    text = await cli.ok("replay", "diff", "--agent", spec)
    assert text.splitlines()[1].split() == ["add", "10", "0", "0", "0", "0"]


@pytest.mark.usefixtures("answered")
async def test_other_answers_are_reported_field_by_field(cli: Cli, workplace: Path) -> None:
    spec = write(
        workplace,
        "changed",
        (ADD, PURE),
        ("return Out(n=given.n + 1)", "return Out(n=given.n + 1 + given.n // 7) if given.n != 3 else Out(n=1 // 0)"),
    )
    result = await cli.run("replay", "diff", "--agent", spec, "-o", "json")
    assert result.exit_code == 8
    found = json.loads(result.stdout)
    assert {one["id"]: one["outcome"] for one in found["different"]} == {
        "t7/0": "changed", "t8/0": "changed", "t3/0": "raises", "o13/0": "changed",
    }  # fmt: skip
    (summary,) = found["handlers"]
    assert (summary["same"], summary["changed"], summary["raises"], summary["fields"]) == (6, 3, 1, {"n": 3})
    changed = next(one for one in found["different"] if one["id"] == "t7/0")
    assert changed["changes"] == [{"op": "replace", "path": "/n", "before": 8, "value": 9}]
    raises = next(one for one in found["different"] if one["id"] == "t3/0")
    assert raises["now"]["error"]["type"] == "ZeroDivisionError"
    result = await cli.run("replay", "diff", "--agent", spec, "--ignore", "n", "-o", "json")
    assert [one["id"] for one in json.loads(result.stdout)["different"]] == ["t3/0"]
    result = await cli.run("replay", "diff", "--agent", spec)
    assert 't7/0 add: another answer, input {"n": 7}\n     recorded | now\n  n  8        | 9\n' in result.stdout
    assert "4 of 10 answers of echo are not those recorded" in result.stderr


@pytest.mark.usefixtures("answered")
async def test_what_has_effects_needs_a_fake_or_the_spelled_out_wish(cli: Cli, workplace: Path) -> None:
    effect = "import os, pathlib; pathlib.Path(os.environ['DIFF_MARK']).touch()\n        "
    spec = write(workplace, "real", ("return Out(n=given.n + 1)", effect + "return Out(n=await self.next_of(given.n))"),
                 (ADD, "async def next_of(self, n: int) -> int:\n        return n + 1\n\n    " + ADD))  # fmt: skip
    said = await cli.fails(2, "replay", "diff", "--agent", spec)
    assert "echo.add would do again what it does outside" in said
    assert "--fake MODULE:NAME" in said
    assert "pure=True" in said
    assert not (workplace / "mark").exists()
    (workplace / "fakes.py").write_text(
        "from real import Echo, In, Out\n"
        "class Started(Echo):\n"
        "    async def start(self): self.ready = True\n"
        "    async def add(self, given): return 1 / 0\n"
        "class Stubbed(Echo):\n"
        "    async def next_of(self, n): return n + 2\n"
        "def made():\n    return Stubbed()\n"
        "async def later():\n    return Stubbed()\n"
        "def wrong():\n    return 5\n"
    )
    for fake in ("fakes:Stubbed", "fakes:made", "fakes:later"):
        result = await cli.run("replay", "diff", "--agent", spec, "--fake", fake, "-o", "json")
        assert result.exit_code == 8
        assert json.loads(result.stdout)["handlers"][0]["changed"] == 10
    (workplace / "mark").unlink()
    assert "fakes:wrong makes a int, and no Echo" in await cli.fails(
        1, "replay", "diff", "--agent", spec, "--fake", "fakes:wrong"
    )
    assert "exclude each other" in await cli.fails(
        2, "replay", "diff", "--agent", spec, "--fake", "fakes:made", "--live-effects"
    )
    assert not (workplace / "mark").exists()
    assert (await cli.json("replay", "diff", "--agent", spec, "--live-effects"))["handlers"][0]["same"] == 10
    assert (workplace / "mark").exists()


@pytest.mark.usefixtures("answered")
async def test_a_fake_is_started_only_by_a_start_of_its_own(cli: Cli, workplace: Path) -> None:
    spec = write(
        workplace, "opened",
        (ADD, 'async def start(self) -> None:\n        raise ConnectionError("the real thing")\n\n    ' + PURE),
    )  # fmt: skip
    (workplace / "fakes2.py").write_text(
        "from opened import Echo\nclass Plain(Echo): ...\nclass Opened(Echo):\n    async def start(self): self.x = 1\n"
    )
    for fake in ("fakes2:Plain", "fakes2:Opened"):
        assert (await cli.json("replay", "diff", "--agent", spec, "--fake", fake))["tasks"] == 10
    with pytest.raises(ConnectionError):
        await cli.run("replay", "diff", "--agent", spec)


@pytest.mark.usefixtures("answered")
async def test_failures_are_compared_too_and_what_people_answered_is_left_out(cli: Cli, workplace: Path) -> None:
    write(workplace, "mended", ('raise ValueError(f"no {given.n}")', "return Out(n=given.n)"))
    result = await cli.run("replay", "diff", "--agent", "mydesk:Faulty", "--live-effects", "-o", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["handlers"][0]["failed"] == 1
    result = await cli.run("replay", "diff", "--agent", "mended:Faulty", "--live-effects", "-o", "json")
    assert result.exit_code == 8
    (found,) = json.loads(result.stdout)["different"]
    assert (found["id"], found["outcome"], found["now"]["output"]) == ("f1/0", "answers", {"n": 1})


@pytest.mark.usefixtures("answered")
async def test_the_same_seed_draws_the_same_tasks(client: Client) -> None:
    log = client.log
    last = (await log.verify()).last_sequence

    async def draw(size: int, seed: int) -> list[str]:
        return [one.id for one in await draw_sample(log, "echo", size, seed=seed, after=0, until=last)]

    assert await draw(4, 7) == await draw(4, 7) == (await draw(9, 7))[:4]
    everything = await draw(100, 7)
    assert sorted(everything) == sorted(["o13/0", *(f"t{n}/0" for n in range(9))])
    assert len({tuple(await draw(4, seed)) for seed in range(8)}) > 1


@pytest.mark.usefixtures("answered")
@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["--agent", "mydesk:Echo", "--handler", "nothing"], 2, "has no handler 'nothing'"),
        (["--agent", "mydesk:Echo", "--live-effects", "--since", "0s"], 3, "has answered no task since 0s"),
        (["--agent", "mydesk:Patient", "--live-effects"], 3, "agent 'patient' has answered no task"),
        (["--agent", "mydesk:nobody"], 1, "has no 'nobody'"),
        ([], 2, "--agent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
async def test_what_cannot_be_run_again(cli: Cli, words: list[str], status: int, complaint: str) -> None:
    assert complaint in await cli.fails(status, "replay", "diff", *words)

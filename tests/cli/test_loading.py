"""MODULE:NAME: each way it can be wrong says what is wrong and what is there instead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuebook.cli.loading import load_agents, load_sagas
from cuebook.events.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(workplace)
    before = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before[0]
    for name in set(sys.modules) - before[1]:
        del sys.modules[name]


def test_a_module_of_the_folder_one_is_in() -> None:
    assert [agent.name for agent in load_agents(["mydesk:Echo", "mydesk:Faulty"])] == ["echo", "faulty"]
    assert [saga.name for saga in load_sagas(["mydesk:order"])] == ["order"]


@pytest.mark.parametrize(
    ("spec", "complaint", "remedy"),
    [
        ("nowhere:Echo", "there is no module 'nowhere'", "looked in "),
        ("mydesk:Ecco", "module mydesk has no 'Ecco'", "did you mean mydesk:Echo?"),
        ("mydesk:Zebra", "module mydesk has no 'Zebra'", "there is mydesk:Echo, mydesk:Faulty, mydesk:Nameless"),
        ("mydesk", "'mydesk' is a module; which agent of it?", "there is mydesk:Echo"),
        ("mydesk:", "'mydesk:' names no agent", "write MODULE:NAME"),
        (":Echo", "':Echo' names no agent", "write MODULE:NAME"),
        ("mydesk:order", "mydesk:order is a saga, not an agent", "there is mydesk:Echo"),
        ("mydesk:In", "mydesk:In is another class, not an agent", "there is mydesk:Echo"),
        ("mydesk:Agent", "mydesk:Agent is another class, not an agent", "there is"),
        ("mydesk:Nameless", "mydesk:Nameless: agent Nameless has no name", 'add name = "..." to the class'),
        ("json:dumps", "json:dumps is a function, not an agent", "a subclass of cuebook.actors.Agent"),
        ("broken:Echo", "module broken cannot be imported: ZeroDivisionError", "broken.py:2"),
        ("garbled:Echo", "module garbled cannot be imported: SyntaxError", "garbled.py:1"),
        ("needy:Echo", "module needy needs 'not_installed_anywhere'", "install it"),
        ("mydesk.part:Echo", "there is no module 'mydesk.part'", "looked in"),
        ("vague:Vague", "name 'Nothing' is not defined", ""),
    ],
)
def test_what_is_wrong_is_said(workplace: Path, spec: str, complaint: str, remedy: str) -> None:
    (workplace / "broken.py").write_text("x = 1\n1 / 0\n")
    (workplace / "garbled.py").write_text("def\n")
    (workplace / "needy.py").write_text("import not_installed_anywhere\n")
    (workplace / "vague.py").write_text(
        "from __future__ import annotations\nfrom cuebook.actors import Agent, handler\n"
        "class Vague(Agent):\n    name = 'vague'\n    @handler()\n    async def do(self, x: Nothing) -> int: ...\n"
    )
    with pytest.raises(ConfigurationError) as raised:
        load_agents([spec])
    assert complaint in str(raised.value)
    assert remedy in raised.value.remedy


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("mydesk:oder", "module mydesk has no 'oder'"),
        ("mydesk:undecorated", "mydesk:undecorated is an async function without @saga(), not a saga"),
        ("mydesk:Echo", "mydesk:Echo is an agent, not a saga"),
    ],
)
def test_what_is_wrong_with_a_saga_is_said(spec: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=r"saga|has no") as raised:
        load_sagas([spec])
    assert complaint in str(raised.value)
    assert "mydesk:order" in raised.value.remedy

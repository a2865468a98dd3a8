"""docs/cli.md names every command, flag and exit status, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from cuebook.cli.exits import Exit
from tests.cli.test_main import commands

TEXT = (Path(__file__).parent.parent.parent / "docs" / "cli.md").read_text()
SECTION = re.compile(r"^### `cuebook ([^`\n]+)`\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z-]+|-[a-z])\b")
EVERYWHERE = {
    "--nats-url", "--nats-creds", "--space", "--database-url", "--output", "-o", "--by", "--segments", "--help", "-h",
}  # fmt: skip
OF_SERVICES = {
    "--drain-s",
    "--wait-s",
    "--log-format",
    "--log-level",
    "--nats-monitor-url",
    "--settings-files",
    "--metrics",
}


def flags() -> dict[str, set[str]]:
    """Flags by command, without those that many share and that have a part of their own."""
    found = {}
    for words, command in commands():
        names = {name for one in command.params if one.param_type_name == "option" for name in one.opts}
        found[" ".join(words)] = names - EVERYWHERE - (OF_SERVICES if words[0] == "serve" else set())
    return found


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    assert sorted(name for name, _ in SECTION.findall(TEXT)) == sorted(flags())


def test_every_flag_is_in_the_section_of_its_command_and_no_other() -> None:
    known = flags()
    for name, text in SECTION.findall(TEXT):
        named = set(FLAG.findall(text)) - EVERYWHERE - (OF_SERVICES if name.startswith("serve") else set())
        assert named == known[name], name


def test_flags_that_many_commands_share_are_described_once() -> None:
    for name in (EVERYWHERE | OF_SERVICES) - {"--help", "-h"}:
        assert f"`{name}`" in TEXT, name
    used = {name for _, command in commands() for one in command.params for name in one.opts}
    assert used >= (EVERYWHERE | OF_SERVICES) - {"--help", "-h"}


def test_every_environment_variable_with_a_name_of_its_own_is_described() -> None:
    all_ = {(one.envvar, one.show_envvar) for _, command in commands() for one in command.params if one.envvar}
    named = set(re.findall(r"CUEBOOK_[A-Z_]+", TEXT))
    assert {variable for variable, own in all_ if own} <= named <= {variable for variable, _ in all_}


def test_every_exit_status_is_in_the_table() -> None:
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)] == [one.value for one in Exit]

"""Settings from files: secrets as `@FILE`, environment files read again, sizes and limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuebook.cli.exits import InputError
from cuebook.cli.serving.limits import Limits, parse_bytes
from cuebook.cli.units.settings_files import SettingsFiles
from tests.cli.conftest import Cli, Start


async def test_a_setting_may_be_in_a_file(cli: Cli, tmp_path: Path) -> None:
    secret = tmp_path / "nats-url"
    secret.write_text(f"{cli.env['CUEBOOK_NATS_URL']}\n")
    for words, env in (
        ((), {"CUEBOOK_NATS_URL": f"@{secret}"}),
        (("--nats-url", f"@{secret}"), {"CUEBOOK_NATS_URL": ""}),
    ):
        said = await cli.fails(3, "run", "list", "--from-log", *words, env=env)  # reached, and there is no space yet
        assert "fix:" in said


async def test_a_file_that_is_not_there_is_a_wrong_command_line(cli: Cli) -> None:
    said = await cli.fails(2, "run", "list", env={"CUEBOOK_DATABASE_URL": "@/nowhere/database-url"})
    assert "--database-url is to be read from '/nowhere/database-url'" in said
    said = await cli.fails(3, "check", "log", env={"CUEBOOK_NATS_URL": "@/nowhere/nats-url"})  # unknown, to a plugin
    assert "--nats-url is to be read from '/nowhere/nats-url'" in said


async def test_an_empty_file_is_as_if_nothing_was_said(start: Start, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    env = {"CUEBOOK_NATS_CREDS": str(empty), "CUEBOOK_DATABASE_URL": f"@{empty}", "CUEBOOK_NATS_URL": f"@{empty}"}
    async with start("serve", "projections", **env) as program:
        assert await program.ends() == 1
        assert "set --database-url" in program.errors


def test_files_are_read_again_and_name_what_has_changed(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared.env", tmp_path / "own.env"
    shared.write_text("# all\nCUEBOOK_LOG_LEVEL=info\nCUEBOOK_SPACE = cue\nPATH=/bin\n")
    environment = {"CUEBOOK_LOG_LEVEL": "info", "CUEBOOK_SPACE": "cue", "CUEBOOK_DRAIN_S": "5", "HOME": "/"}
    files = SettingsFiles([shared, own], environment)
    assert files.read_again() == ({"CUEBOOK_LOG_LEVEL": "info", "CUEBOOK_SPACE": "cue", "CUEBOOK_DRAIN_S": "5"}, set())
    own.write_text("CUEBOOK_LOG_LEVEL='debug'\n")
    shared.write_text("CUEBOOK_LOG_LEVEL=info\n")
    now = {"CUEBOOK_LOG_LEVEL": "debug", "CUEBOOK_DRAIN_S": "5"}
    assert files.read_again() == (now, {"CUEBOOK_LOG_LEVEL", "CUEBOOK_SPACE"})
    assert files.read_again() == (now, set())


@given(
    value=st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"], exclude_characters="\\'\"#;"), min_size=1)
)
def test_a_plain_value_is_read_as_it_is(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    file = tmp_path_factory.mktemp("settings") / "x.env"
    file.write_text(f"CUEBOOK_X={value}\nCUEBOOK_Y='{value}'\n")
    assert SettingsFiles([file], {}).read_again()[0] == {"CUEBOOK_X": value, "CUEBOOK_Y": value}


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 0), ("0", 0), ("17000000", 17_000_000), ("2048k", 2 << 20), ("512M", 512 << 20), ("1GiB", 1 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "-1", "1.5G", "1T"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no size"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["512", "1000k"])
def test_a_size_without_its_unit_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="less than any process has") as caught:
        parse_bytes(text)
    assert caught.value.remedy == "say the unit, such as 512M"


def test_limits_are_reached_or_not_set() -> None:
    assert Limits().reached(10**9) == ""
    assert Limits(tasks=3).reached(2) == ""
    assert Limits(tasks=3).reached(3) == "3 tasks done, the limit is 3"
    assert "of memory, the limit is 1 MiB" in Limits(memory=1 << 20).reached(0)
    assert Limits(memory=1 << 50).reached(0) == ""

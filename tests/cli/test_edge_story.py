"""The story that `just edge` tells, as a person starts it; and its settings are in the documents."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from cuebook.embedded.nats_server import CONFIGURATIONS

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"


async def test_the_shop_goes_on_while_the_link_is_cut(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cuebook.cli.demo.edge_story"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told = (await process.communicate())[0].decode()
    assert process.returncode == 0, told
    before, cut, after = re.split(r"you +CUT the link\n|you +MEND the link\n", told)
    counted = re.compile(r"counted shelf (shelf-\d)")
    assert sorted(counted.findall(told)) == [f"shelf-{n}" for n in range(10)], told
    assert len(counted.findall(before)) < 10
    assert counted.findall(after) == []
    assert "5 readings published, acknowledged by the shop's own server" in cut
    assert "the link to the log is cut: work goes on" in cut
    assert "10 of 10 answers are on the log, each once" in after
    assert "5 readings are on the log, in their order" in after


def test_every_setting_of_leaf_and_hub_is_in_the_document() -> None:
    document = DOCUMENT.read_text()
    for name in ("leaf.conf", "hub.conf"):
        settings = set(re.findall(r"\$(CUEBOOK_\w+)", (CONFIGURATIONS / name).read_text())) - {"CUEBOOK_NATS_STORE"}
        assert settings
        assert {setting for setting in settings if setting not in document} == set()

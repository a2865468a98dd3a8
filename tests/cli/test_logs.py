"""What services write to stderr, a line for each thing that happened."""

from __future__ import annotations

import json
import logging

import pytest

from cuebook.cli.logs import MOST_CHARACTERS, configure_logs


@pytest.mark.parametrize("format_", ["text", "json"])
def test_an_error_that_says_megabytes_is_cut_in_the_middle(format_: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_logs("info", format_)
    error = ValueError("begin " + "x" * 5_000_000 + " end")
    try:
        facts = {"why": str(error)}
        logging.getLogger("cuebook.test").warning("raised %s", "m" * 5_000_000, exc_info=error, extra=facts)
    finally:
        root.handlers[:], root.level = before
    written = capsys.readouterr().err
    assert len(written) < 4 * MOST_CHARACTERS
    assert written.count("characters left out") == 3
    assert "ValueError: begin xxx" in written
    if format_ == "json":
        assert json.loads(written)["why"].endswith(" end")
    else:
        assert written.endswith(" end\n")

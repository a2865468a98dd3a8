"""Environment files that a unit was started with, read again when it is told to reload.

The syntax is that of systemd's `EnvironmentFile=`: NAME=VALUE a line, with or without quotes; `#` begins a comment.
What a file says counts; what none says any more is as it was without the files. Source: systemd.exec(5).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["SettingsFiles"]

_PREFIX: Final = "CUEBOOK_"


class SettingsFiles:
    """The `CUEBOOK_` settings of some files, over those of the environment. A file may be missing; later ones count."""

    def __init__(self, files: Sequence[Path], environment: Mapping[str, str] = os.environ) -> None:
        self._files = files
        self._current = _read(files)
        own = {name: value for name, value in environment.items() if name.startswith(_PREFIX)}
        self._beneath = {name: value for name, value in own.items() if name not in self._current}

    def read_again(self) -> tuple[dict[str, str], set[str]]:
        """All settings as they are now, and the names of those that have changed since the last time."""
        before, self._current = self._current, _read(self._files)
        changed = {name for name in before.keys() | self._current.keys() if before.get(name) != self._current.get(name)}
        return self._beneath | self._current, changed


def _read(files: Sequence[Path]) -> dict[str, str]:
    found = {}
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").replace("\\\n", "").splitlines()
        except OSError:
            continue
        for line in lines:
            name, equals, value = line.strip().partition("=")
            if equals and name.startswith(_PREFIX):
                found[name.rstrip()] = _unquoted(value.strip())
    return found


def _unquoted(value: str) -> str:
    if not value.startswith(('"', "'")):
        return value
    try:
        return "".join(shlex.split(value))
    except ValueError:
        return value

"""`cuebook` as people run it, with the standard variables of OpenTelemetry in the environment."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.telemetry import shop

__all__ = ["Processes"]

_PROGRAM = "from cuebook.cli.main import main; main()"


class Processes:
    """Starts commands in a folder with the shop in it. Use `async with`; what still runs at its end is killed."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("CUEBOOK_", "OTEL_"))}
        self.env = {**clean, **env}
        self._folder = folder
        self._running: list[asyncio.subprocess.Process] = []
        shutil.copy(shop.__file__, folder / "shop.py")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for process in self._running:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def serve(self, *words: str, **env: str) -> asyncio.subprocess.Process:
        """Start a service; it has until the end of the test to be ready."""
        errors = (self._folder / f"{words[0]}-{len(self._running)}.txt").open("wb")
        with errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", _PROGRAM, "serve", *words),
                cwd=self._folder,
                env={**self.env, "PYTHONPATH": str(self._folder), **env},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors,
            )
        self._running.append(process)
        return process

    def errors(self, service: str = "*") -> str:
        """What all services have written to stderr, or those of one kind."""
        return "".join(path.read_text() for path in sorted(self._folder.glob(f"{service}-*.txt")))

    async def command(self, *words: str, **env: str) -> tuple[int, str, str]:
        """Run a command to its end: status, stdout, stderr."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", _PROGRAM, *words),
            cwd=self._folder,
            env={**self.env, **env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, error = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), error.decode()

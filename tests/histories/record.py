"""Record the histories of this release: `uv run python -m tests.histories.record`, see README.md beside this."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tomllib
from pathlib import Path

from cuebook.events.catalogue import EVENT_TYPES
from cuebook.events.connection import connect
from cuebook.events.log import EventLog
from tests.histories.history import FOLDER, History, capture
from tests.histories.scenes import SCENES

__all__ = ["current_release"]


def current_release() -> str:
    """The folder of the release in pyproject.toml, such as `v0.1`."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    return "v" + ".".join(str(project["version"]).split(".")[:2])


async def _record(name: str, log: EventLog, about: str) -> None:
    messages = await capture(log)
    history = History(
        release=current_release(), name=name, space=log.subjects.space, about=about, messages=tuple(messages)
    )
    size = history.save()
    print(f"{history.release}/{name}: {len(messages)} messages, {size:,} bytes")


async def _record_server(name: str, url: str, space: str) -> None:
    connection = await connect(url, name="recorder")
    await _record(name, EventLog(connection, space, source="recorder"), f"the log of space {space}")
    await connection.close()


async def _record_scenes(names: list[str]) -> None:
    for name in names:
        async with SCENES[name]() as log:
            await _record(name, log, (SCENES[name].__doc__ or "").strip())
    known = sorted(cls.event_type for cls in EVENT_TYPES)
    (FOLDER / current_release() / "types.json").write_text(json.dumps(known, indent=1) + "\n")


def main() -> None:
    """Record the scenes, or with --nats-url the log of a running space."""
    logging.disable()  # what goes wrong in these plays is meant to
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SCENES)} (default: all); with --nats-url a new one")
    parser.add_argument("--nats-url", help="record what is there")
    parser.add_argument("--space", default="cue")
    chosen = parser.parse_args()
    if chosen.nats_url:
        asyncio.run(_record_server(chosen.names[0], chosen.nats_url, chosen.space))
    else:
        asyncio.run(_record_scenes(chosen.names or list(SCENES)))


if __name__ == "__main__":
    main()

"""What `cuebook dev` does: servers, then the parts of a space, then waiting for Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.text import Text

from cuebook.actors.client import Client
from cuebook.cli.dev.parts import parts_of_a_space
from cuebook.cli.dev.servers import NATS_URL, Servers, exports, servers
from cuebook.cli.dev.support_desk import AGENTS, SAGA, support_desk
from cuebook.cli.dev.upkeep import kept_up
from cuebook.cli.durability import syncs_always
from cuebook.cli.keys import default_name
from cuebook.cli.loading import load_agents, load_sagas
from cuebook.cli.options import DEFAULT_SPACE, Target
from cuebook.cli.serving.children import Say
from cuebook.cli.serving.metrics import following
from cuebook.cli.session import reading_segments
from cuebook.events.connection import Connection, connect
from cuebook.events.errors import UnavailableError
from cuebook.ledger.notes import PrivateKey

__all__ = ["Development"]

REPLICAS: Final = 3
_COLOURS: Final = ("cyan", "green", "yellow", "magenta", "blue")


class Development:
    """One `cuebook dev`."""

    def __init__(
        self,
        target: Target,
        *,
        database_url: str,
        data_dir: Path,
        sagas: Sequence[str],
        agents: Sequence[str],
        example: bool,
        nodes: int = 1,
        metrics: str = "",
    ) -> None:
        """Take the settings. `example`: serve the support desk as well. `nodes`: embedded nats-servers.

        `metrics`: HOST:PORT of the first process; the others have the ports after it.
        """
        self._nodes, self._metrics = nodes, metrics
        self._target, self._database_url, self._data_dir = target, database_url, data_dir
        self._own_sagas, self._own_agents, self._example = sagas, agents, example
        self._sagas = [*sagas, *([SAGA] if example else [])]
        self._agents = [*agents, *(AGENTS if example else [])]
        self._print = _printer()

    def check(self) -> None:
        """Find all agents and sagas. Raises ConfigurationError for what cannot be served, before anything starts."""
        load_sagas(self._own_sagas)
        load_agents(self._own_agents)
        following(self._metrics, len(self._agents) + 2)

    async def run(self, *, nats_port: int | None, postgres_port: int | None) -> None:
        """Run until cancelled. A port of None takes a free one."""
        async with contextlib.AsyncExitStack() as stack:
            found = await stack.enter_async_context(
                servers(
                    self._data_dir,
                    nats_url=self._target.nats_url,
                    database_url=self._database_url,
                    nats_port=nats_port,
                    postgres_port=postgres_port,
                    nats_nodes=self._nodes,
                )
            )
            upkeep = await stack.enter_async_context(kept_up(found.processes, self._print))
            shared = found.environment | self._target_environment()
            env = {**os.environ, "CUEBOOK_SPACE": self._target.space, **shared, **found.own_environment}
            if self._nodes > 1:
                env["CUEBOOK_REPLICAS"] = str(min(self._nodes, REPLICAS))
            desk = None
            if self._example:
                desk = await stack.enter_async_context(support_desk(found.database_url, env=env, say=self._print))
                shared |= desk.environment
                env |= desk.own_environment
            connection = await self._connect(found)
            stack.push_async_callback(connection.close)
            client = await stack.enter_async_context(Client(connection, self._target.space, by="cuebook dev"))
            self._tell_servers(found, await _durability(connection, found))
            own_log = any(name.startswith("nats-server") for name in found.embedded)
            parts = await stack.enter_async_context(
                parts_of_a_space(
                    client,
                    sagas=self._sagas,
                    agents=self._agents,
                    env=env,
                    say=self._print,
                    sealer=self._sealer() if own_log else [],
                    lost=upkeep.lost,
                    metrics=self._metrics,
                )
            )
            if desk is not None:
                await desk.prepare()
            await parts.ready()
            self._tell_ready(found, shared)
            await asyncio.Event().wait()

    def _sealer(self) -> list[str]:
        """The flags of the sealer; its key is made at the first start."""
        folder, space = self._data_dir / "seals", self._target.space
        key = folder / f"{space}.key"
        if not key.exists():
            PrivateKey.generate(default_name(space)).save(key)
        return ["--key", str(key), "--file", str(folder / f"{space}.checkpoints")]

    async def _connect(self, found: Servers) -> Connection:
        try:
            return reading_segments(await connect(found.nats_url, name="cuebook dev", **self._target.client_options))
        except UnavailableError as error:
            if self._target.nats_url:
                error.remedy = f"start that server, or unset {NATS_URL}: then one is started here"
            raise

    def _target_environment(self) -> dict[str, str]:
        env = {"CUEBOOK_SPACE": self._target.space} if self._target.space != DEFAULT_SPACE else {}
        return env | ({"CUEBOOK_NATS_CREDS": self._target.creds} if self._target.creds else {})

    def _tell_servers(self, found: Servers, durability: str) -> None:
        if found.embedded:
            typer.echo(f"{' and '.join(found.embedded)} run here, with their data in {self._data_dir}")
        typer.echo(f"durability: {durability}")

    def _tell_ready(self, found: Servers, shared: dict[str, str]) -> None:
        served = [spec.rpartition(":")[2] for spec in (*self._sagas, *self._agents)]
        typer.echo(f"ready: {', '.join(['orchestrator', 'projections', *served])}")
        if self._metrics:
            typer.echo(f"metrics: each process has /metrics, from {self._metrics} on; its lines above say where")
        typer.echo("\nFor other terminals and programs:\n")
        for line in exports(shared):
            typer.echo(f"  {line}")
        if self._example:
            ticket = '{"id": "t-17", "text": "my blender arrived broken, order 8812"}'
            typer.echo(f"\nOpen a ticket:\n\n  cuebook events publish ticket.opened '{ticket}'")
        typer.echo("\nCtrl-C stops everything" + ("; the data stays." if found.embedded else "."))


async def _durability(connection: Connection, found: Servers) -> str:
    match await syncs_always(connection, found.monitor_url):
        case True:
            return "acknowledged means on disk"
        case False:
            return (
                "for development: an acknowledged event survives a crash of the server, but not a power cut "
                "(nats/production.conf is the strict one)"
            )
        case None:
            return "as that NATS server is configured; it does not say"


def _printer() -> Say:
    """Write each line with the name of its program in front, to stderr."""
    console = Console(stderr=True)
    colours: dict[str, str] = {}

    def say(name: str, line: str) -> None:
        colour = colours.setdefault(name, _COLOURS[len(colours) % len(_COLOURS)])
        console.print(Text(f"{name:12} | ", style=colour) + Text(line), soft_wrap=True)

    return say

"""What `cuebook demo` does: servers, processes, tickets, and at the end a judgement on all that came of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cuebook.actors.client import Client
from cuebook.cli.demo.report import Ledger, Tables, read_ledger, read_tables, summary, what_is_wrong
from cuebook.cli.demo.story import TOPIC, Story
from cuebook.cli.demo.view import LiveView, PlainView, QuietConsole, View
from cuebook.cli.dev.parts import parts_of_a_space
from cuebook.cli.dev.servers import Servers, exports, servers
from cuebook.cli.dev.support_desk import AGENTS, SAGA, Desk, support_desk
from cuebook.cli.interrupts import checkpoint
from cuebook.cli.output import counted
from cuebook.events.connection import connect
from cuebook.events.envelope import Envelope
from cuebook.events.facts import StepAsked
from cuebook.projections.database import schema_name

if TYPE_CHECKING:
    from cuebook.examples.support.tickets import Demonstration

__all__ = ["Performance"]

_SPACE: Final = "cue"
_ANSWERER: Final = "cuebook-demo"
_BETWEEN_TICKETS_S: Final = 0.12
_READING_TIME_S: Final = 1.0
"""How long a question to a person stays open, so that people can see it."""
_TABLES_DEADLINE_S: Final = 20.0
_POLL_S: Final = 0.1
_LAST_WORDS: Final = 5
_PREFIX: Final = "uv run " if "UV_RUN_RECURSION_DEPTH" in os.environ else ""  # what started us starts the others too
_LOOK_AROUND: Final = (
    "cuebook run list",
    "cuebook run show support-t-10",
    "cuebook events tail",
    "cuebook agent list",
)
_NEXT: Final = {
    "cuebook demo --keep": "the same, and it stays up until Ctrl-C",
    "cuebook dev --example": "the desk for your own tickets, with data that stays",
}


class Performance:
    """One performance."""

    def __init__(self, count: int, *, plain: bool, keep: bool) -> None:
        """Take how many tickets to open, whether to tell in lines, and whether to leave everything running."""
        self._count, self._keep = count, keep
        self._console = QuietConsole()
        live = self._console.is_terminal and not plain
        self._view: View = LiveView(self._console) if live else PlainView(self._console)
        self._printed: dict[str, deque[str]] = {}
        # Nothing that is set for other purposes changes what the demo shows, or lets it meet servers that matter.
        self._env = {name: value for name, value in os.environ.items() if not name.startswith(("CUEBOOK_", "STRIPE_"))}

    async def run(self) -> list[str]:
        """Perform; returns what came out wrong."""
        say = self._view.say
        with tempfile.TemporaryDirectory(prefix="cuebook-demo-", ignore_cleanup_errors=True) as data:
            say("starting nats-server and PostgreSQL from their wheels, for this demo only")
            async with servers(Path(data), durable_tables=False) as found:
                env = {**self._env, **found.own_environment, "CUEBOOK_SPACE": _SPACE}
                say(f"starting orchestrator, projections and {len(AGENTS)} agents, a process each")
                async with (
                    support_desk(found.database_url, env=env, say=self._note) as desk,
                    _client(found.nats_url) as client,
                    parts_of_a_space(
                        client, sagas=[SAGA], agents=AGENTS, env=env | desk.own_environment, say=self._note
                    ) as parts,
                ):
                    say(f"the shop is open: {await desk.prepare()} paid orders, and a stand-in for Stripe")
                    await parts.ready()
                    say("all processes are ready")
                    wrong = await self._perform(client, found, desk)
                    if self._keep:
                        await self._stay(found, desk)
        self._tell_what_next()
        return wrong

    async def _perform(self, client: Client, found: Servers, desk: Desk) -> list[str]:
        before = await read_ledger(desk.stripe_url, desk.stripe_key)
        checkpoint()
        demonstrations = _demonstrations(self._count)
        story = Story(_ANSWERER)
        with self._view, contextlib.suppress(TimeoutError):  # what is still open then is reported
            async with asyncio.timeout(60 + self._count / 10), asyncio.TaskGroup() as group:
                group.create_task(self._open_tickets(client, demonstrations))
                ticking = group.create_task(self._tick(story))
                await self._watch(client, story, group)
                ticking.cancel()
        checkpoint()
        story = await _read_story(client)
        tables = await _settled_tables(found.database_url, story.sequence)
        ledger = (await read_ledger(desk.stripe_url, desk.stripe_key)).since(before)
        wrong = what_is_wrong(story, demonstrations, ledger, tables, _ANSWERER)
        self._report(story, ledger, tables, wrong)
        return wrong

    async def _open_tickets(self, client: Client, demonstrations: Sequence[Demonstration]) -> None:
        """Publish as any NATS client would: plain JSON under a subject."""
        subject = client.log.subjects.event(TOPIC)
        self._view.say(f"{counted(len(demonstrations), 'ticket')} opened as plain JSON on {subject}")
        stream = client.log.connection.jetstream()
        for demonstration in demonstrations:
            ticket = demonstration.ticket.model_dump_json(exclude_none=True)
            await stream.publish(subject, ticket.encode())
            await asyncio.sleep(_BETWEEN_TICKETS_S)

    async def _watch(self, client: Client, story: Story, group: asyncio.TaskGroup) -> None:
        async with contextlib.aclosing(client.log.follow()) as items:
            async for item in items:
                line = story.apply(item)
                if line is not None:
                    self._view.show(story, line)
                if isinstance(item, Envelope) and isinstance(item.event, StepAsked):
                    group.create_task(self._answer(client, item.address.run_id, item.address.n))
                if story.closed == self._count:
                    return

    async def _tick(self, story: Story) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            self._view.tick(story)

    async def _answer(self, client: Client, run_id: str, n: int) -> None:
        """What a person would do with `cuebook escalation resolve`."""
        await asyncio.sleep(_READING_TIME_S)
        await client.resolve(run_id, n, value={"approved": True, "note": "a loyal customer"})

    def _report(self, story: Story, ledger: Ledger, tables: Tables, wrong: Sequence[str]) -> None:
        tell = self._tell
        tell("")
        for heading, text in summary(story, ledger, tables, stream=_SPACE.upper()):
            tell(f"{heading:9} {text}")
        tell("")
        if not wrong:
            tell(f"{counted(self._count, 'ticket')}, all as expected by the log, Stripe's ledger and the tables")
            return
        tell("Not as expected:")
        for difference in wrong:
            tell(f"  {difference}")
        tell("The last words of the processes:")
        for name, lines in self._printed.items():
            for line in lines:
                tell(f"  {name}: {line}")

    async def _stay(self, found: Servers, desk: Desk) -> None:
        tell = self._tell
        tell("\nStill running, until Ctrl-C. To look around, in another terminal:\n")
        for line in exports(found.environment | desk.environment):
            tell(f"  {line}")
        for command in _LOOK_AROUND:
            tell(f"  {_PREFIX}{command}")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # Ctrl-C is how this ends, and no failure
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()

    def _tell_what_next(self) -> None:
        self._tell("\nServers, processes and data of the demo are gone. To look further:\n")
        for command, effect in _NEXT.items():
            self._tell(f"  {_PREFIX}{command:22} {effect}")

    def _tell(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _note(self, name: str, line: str) -> None:
        self._printed.setdefault(name, deque(maxlen=_LAST_WORDS)).append(line)


@contextlib.asynccontextmanager
async def _client(url: str) -> AsyncIterator[Client]:
    connection = await connect(url, name="demo")
    try:
        async with Client(connection, _SPACE, by=_ANSWERER) as client:
            yield client
    finally:
        await connection.close()


async def _read_story(client: Client) -> Story:
    """Everything again, from the log alone."""
    story = Story(_ANSWERER)
    async for item in client.log.read():
        story.apply(item)
    return story


async def _settled_tables(database_url: str, until: int) -> Tables:
    """The rows once the projections have applied everything up to a sequence, or as they are after the deadline."""
    deadline = asyncio.get_running_loop().time() + _TABLES_DEADLINE_S
    while True:
        checkpoint()
        tables = await read_tables(database_url, schema_name(_SPACE), until)
        if tables.applied >= until or asyncio.get_running_loop().time() > deadline:
            return tables
        await asyncio.sleep(_POLL_S)


def _demonstrations(count: int) -> list[Demonstration]:
    """The twenty, as many as asked for; beyond them those again that move no money, under new numbers."""
    from cuebook.examples.support.tickets import DEMONSTRATIONS

    chosen = list(DEMONSTRATIONS[:count])
    repeatable = [one for one in DEMONSTRATIONS if one.ends in ("answered", "thanked", "escalated")]
    for number, one in zip(range(len(chosen) + 1, count + 1), itertools.cycle(repeatable), strict=False):
        chosen.append(replace(one, ticket=one.ticket.model_copy(update={"id": f"t-{number:02d}"})))
    return chosen

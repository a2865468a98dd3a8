"""What `cuebook top` shows, folded from events as they come. Memory does not grow with the log.

Rates are over the last ten seconds by the log's own times. What is open is told by the orchestrator, which has it in
memory; where none answers it is folded here.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any, Final

from cuebook.cli.directory import Directory
from cuebook.cli.history.views import Item
from cuebook.cli.moments import iso
from cuebook.events.envelope import Envelope
from cuebook.events.facts import TaskCompleted, TaskFailed, TaskRequested

__all__ = ["ENDINGS", "REMEMBERED_RUNS", "WINDOW_S", "Board"]

WINDOW_S: Final = 10
ENDINGS: Final = 100
REMEMBERED_RUNS: Final = 20_000
_SECOND_US: Final = 1_000_000
_RUN_ENDS: Final = frozenset({"completed", "failed", "compensated", "cancelled", "rejected", "stuck"})
_TASK_ENDS: Final = frozenset({"completed", "aborted", "cancelled", "rejected"})
_ALIVE: Final = ("healthy", "draining", "suspect", "lost")
_WORST: Final = {health: n for n, health in enumerate(_ALIVE)}


@dataclass(slots=True)
class _Second:
    """What came in one second."""

    number: int
    events: int = 0
    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


class Board:
    """`apply` events in order, set what others tell, and take a `frame` whenever one is to be shown."""

    def __init__(self, space: str) -> None:
        self.space = space
        self.directory = Directory()
        self.sequence = 0
        self.overview: dict[str, Any] | None = None
        self.overview_source = ""
        """Who told it: the orchestrator, the log, or an orchestrator that no longer answers."""
        self.projections: list[dict[str, Any]] | None = None
        self.connected = True
        self._agents_until = 0
        self._seconds: deque[_Second] = deque()
        self._runs: OrderedDict[str, str] = OrderedDict()
        self._endings: deque[dict[str, Any]] = deque(maxlen=ENDINGS)

    def begin_agents(self, directory: Directory, until: int) -> None:
        """Take over the agents as folded up to a sequence."""
        self.directory, self._agents_until = directory, until

    def apply(self, item: Item) -> None:
        """Take in the next message of the log."""
        self.sequence = item.sequence
        second = self._second(item.recorded_at // _SECOND_US)
        second.events += 1
        if not isinstance(item, Envelope):
            return
        match item.address.kind:
            case "agent":
                if item.sequence > self._agents_until:
                    self.directory.registry.apply(item)
                    self.directory.describe(item)
            case "task":
                self._apply_task(item, second)
            case "run":
                self._apply_run(item)
            case _:
                pass

    def _second(self, number: int) -> _Second:
        while self._seconds and self._seconds[0].number < number - WINDOW_S:
            self._seconds.popleft()
        if not self._seconds or self._seconds[-1].number < number:
            self._seconds.append(_Second(number))
        return self._seconds[-1]  # a clock that was set back counts for the last second

    def _apply_task(self, item: Envelope, second: _Second) -> None:
        address, event = item.address, item.event
        if isinstance(event, TaskCompleted | TaskFailed):
            of = self._agent_of(event.by) or self._agent_in(address.run_id)
            (second.done if isinstance(event, TaskCompleted) else second.failed)[of] += 1
        if isinstance(event, TaskRequested) and address.n == 0 and address.run_id not in self._runs:
            self._remember(address.run_id, f"{address.agent}.{event.handler}" if event.handler else address.agent)
        elif address.n == 0 and address.fact in _TASK_ENDS:
            of = self._runs.get(address.run_id, "")
            if of and not of.startswith("saga "):
                self._end(item, of)

    def _apply_run(self, item: Envelope) -> None:
        address = item.address
        if address.fact in ("requested", "started"):
            saga = address.agent or str(getattr(item.event, "saga", ""))
            self._remember(address.run_id, f"saga {saga}")
        elif address.fact in _RUN_ENDS:
            self._end(item, self._runs.get(address.run_id, "").removeprefix("saga "))

    def _remember(self, run_id: str, of: str) -> None:
        self._runs[run_id] = of
        if len(self._runs) > REMEMBERED_RUNS:
            self._runs.popitem(last=False)

    def _end(self, item: Envelope, of: str) -> None:
        ending = {"run_id": item.address.run_id, "of": of, "status": item.address.fact, "at": item.recorded_at}
        self._endings.appendleft(ending)

    def _agent_of(self, instance: str) -> str:
        registry = self.directory.registry
        return next((agent for agent, known in registry.by_agent.items() if instance in known), "")

    def _agent_in(self, run_id: str) -> str:
        of = self._runs.get(run_id, "")
        return "" if of.startswith("saga ") else of.partition(".")[0]

    # --- what is shown ---

    def frame(self, now: int) -> dict[str, Any]:
        """Everything at a moment (microseconds since 1970, by the server's clock), as plain data."""
        recent = [one for one in self._seconds if one.number >= now // _SECOND_US - WINDOW_S]
        done: Counter[str] = sum((one.done for one in recent), Counter())
        failed: Counter[str] = sum((one.failed for one in recent), Counter())
        told = self.overview or {}
        queues = [{**one, "oldest_s": round(max(now - one["oldest_at"], 0) / 1e6, 3)} for one in told.get("queues", [])]
        escalations = [
            {**one, "oldest_s": round(max(now - one["oldest_at"], 0) / 1e6, 3)} for one in told.get("escalations", [])
        ]
        instances = self._instances()
        return {
            "space": self.space,
            "at": iso(now),
            "log": {
                "sequence": self.sequence,
                "events_s": sum(one.events for one in recent) / WINDOW_S,
                "tasks_s": done.total() / WINDOW_S,
                "failures_s": failed.total() / WINDOW_S,
            },
            "open_from": self.overview_source,
            "agents": self._agents(instances, queues, done, failed),
            "instances": instances,
            "queues": queues,
            "runs": told.get("runs", []),
            "escalations": escalations,
            "endings": [{**one, "at": iso(one["at"])} for one in self._endings],
            "projections": self.projections,
        }

    def _instances(self) -> list[dict[str, Any]]:
        told = {(one["agent"], one["instance"]): one["in_flight"] for one in (self.overview or {}).get("agents", [])}
        present = [one for one in self.directory.registry.instances.values() if one.health in _ALIVE]
        return [
            {"agent": one.agent, "instance": one.instance, "health": one.health, "slots": one.slots,
             "in_flight": told.get((one.agent, one.instance)), "version": one.version, "host": one.host, "pid": one.pid,
             "since": iso(one.changed_at)}
            for one in sorted(present, key=lambda one: (one.agent, one.registered_sequence))
        ]  # fmt: skip

    def _agents(
        self,
        instances: list[dict[str, Any]],
        queues: list[dict[str, Any]],
        done: Counter[str],
        failed: Counter[str],
    ) -> list[dict[str, Any]]:
        names = {one["agent"] for one in instances} | {one["agent"] for one in queues} | ((done + failed).keys() - {""})
        return [self._agent(name, instances, queues, done[name], failed[name]) for name in sorted(names)]

    @staticmethod
    def _agent(
        name: str, instances: list[dict[str, Any]], queues: list[dict[str, Any]], done: int, failed: int
    ) -> dict[str, Any]:
        own = [one for one in instances if one["agent"] == name]
        present = [one for one in own if one["health"] != "lost"]
        waiting = [one for one in queues if one["agent"] == name]
        known = [one["in_flight"] for one in own if one["in_flight"] is not None]
        best = present or own
        return {
            "agent": name,
            "instances": len(present),
            "health": max((one["health"] for one in best), key=_WORST.__getitem__, default="absent"),
            "slots": sum(one["slots"] for one in present if one["health"] == "healthy"),
            "in_flight": sum(known) if known or not own else None,
            "tasks_s": done / WINDOW_S,
            "failures_s": failed / WINDOW_S,
            "waiting": sum(one["waiting"] for one in waiting),
            "oldest_s": max((one["oldest_s"] for one in waiting), default=None),
        }

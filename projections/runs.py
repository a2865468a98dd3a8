"""Runs and their tasks. One projection, since a run's row follows from what counts among the events of its tasks."""

from __future__ import annotations

from typing import Final

from cuebook.events.envelope import Envelope
from cuebook.events.facts import TaskCopied
from cuebook.events.subjects import Subjects
from cuebook.projections.database import Transaction
from cuebook.projections.projection import Batch, Item, Projection
from cuebook.projections.rows import NULL, Merge, Row, array, flag, text
from cuebook.projections.run_fold import RUN_ENDED, fold_run, fold_task_into_run, is_forking
from cuebook.projections.statements import load_statements
from cuebook.projections.task_fold import fold_task

__all__ = ["Runs", "fold_batch"]

_SQL = load_statements("runs.sql")
_KINDS: Final = frozenset({"run", "task"})
_TaskKey = tuple[str, int]


class Runs(Projection):
    """Tables runs and tasks: one row for each."""

    name = "runs"
    version = 2
    tables = _SQL["tables"]
    session = _SQL["session"]

    _merge_runs = Merge(_SQL["insert_runs"], _SQL["update_runs"])
    _merge_tasks = Merge(_SQL["insert_tasks"], _SQL["update_tasks"])

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        """Fold the batch over the rows it touches, then write each of them once."""
        events = [item for item in batch if type(item) is Envelope and item.address.kind in _KINDS]
        if not events:
            return
        runs = await _load_runs(tx, {event.address.run_id for event in events})
        tasks = await _load_tasks(
            tx, {(event.address.run_id, event.address.n) for event in events if event.address.kind == "task"}
        )
        known_runs, known_tasks = frozenset(runs), frozenset(tasks)
        changed_runs, changed_tasks = fold_batch(events, runs, tasks)
        await self._merge_runs.write(
            tx,
            new=[runs[key] for key in changed_runs if key not in known_runs],
            changed=[runs[key] for key in changed_runs if key in known_runs],
        )
        await self._merge_tasks.write(
            tx,
            new=[tasks[key] for key in changed_tasks if key not in known_tasks],
            changed=[tasks[key] for key in changed_tasks if key in known_tasks],
        )

    def history(self, item: Item) -> str:
        """All about one run: its row follows from its tasks too."""
        if type(item) is Envelope and item.address.kind in _KINDS:
            return Subjects(item.subject.partition(".")[0]).everything_of(item.address.run_id)
        return ""

    async def forget(self, item: Item, tx: Transaction) -> None:
        """Remove a run and its tasks."""
        if type(item) is Envelope and item.address.kind in _KINDS:
            await tx.execute(_SQL["forget_tasks"], [item.address.run_id])
            await tx.execute(_SQL["forget_run"], [item.address.run_id])


def fold_batch(
    events: list[Envelope], runs: dict[str, Row], tasks: dict[_TaskKey, Row]
) -> tuple[dict[str, None], dict[_TaskKey, None]]:
    """Fold events of runs and tasks into rows; returns the keys of those that changed, each once, in the log's order.

    Pure and total, and the same however the events are cut into batches.
    """
    changed_runs: dict[str, None] = {}
    changed_tasks: dict[_TaskKey, None] = {}
    for envelope in events:
        address = envelope.address
        run = runs.get(address.run_id)
        if address.kind == "run":
            change = fold_run(run, envelope)
        else:
            key = (address.run_id, address.n)
            task = tasks.get(key)
            before = None if task is None else task["status"]
            if task is None and run is not None and run["status"] in RUN_ENDED:
                continue  # asked for too late: the orchestrator rejects it, and nobody will do it
            task_change = fold_task(before, envelope)
            if task_change is None or (type(envelope.event) is TaskCopied and not is_forking(run)):
                continue
            change = fold_task_into_run(run, before, task_change, envelope)
            if task is None:
                tasks[key] = task_change
            else:
                task.update(task_change)
            changed_tasks[key] = None
        if change is None:
            continue
        if run is None:
            runs[address.run_id] = change
        else:
            run.update(change)
        changed_runs[address.run_id] = None
    return changed_runs, changed_tasks


async def _load_runs(tx: Transaction, run_ids: set[str]) -> dict[str, Row]:
    """What the fold has to know about the runs that have rows."""
    cursor = await tx.execute(_SQL["load_runs"], [array(run_ids)])
    return {
        run_id: {
            "run_id": run_id,
            "status": status,
            "standalone": flag(standalone),
            "stuck_from": stuck_from or NULL,
            "fork_of": NULL if fork_of is None else text(fork_of),
            "tasks": str(tasks),
            "tasks_completed": str(completed),
            "tasks_failed": str(failed),
        }
        for run_id, status, standalone, stuck_from, fork_of, tasks, completed, failed in await cursor.fetchall()
    }


async def _load_tasks(tx: Transaction, keys: set[_TaskKey]) -> dict[_TaskKey, Row]:
    if not keys:
        return {}
    numbers = [str(n) for _, n in keys]
    cursor = await tx.execute(_SQL["load_tasks"], [array(run_id for run_id, _ in keys), array(numbers)])
    return {
        (run_id, n): {"run_id": run_id, "n": str(n), "status": status} for run_id, n, status in await cursor.fetchall()
    }

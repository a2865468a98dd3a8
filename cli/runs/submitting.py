"""Starting runs, waiting for their outcome, and asking for their end or their repetition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cuebook.actors.client import Client, Outcome
from cuebook.actors.saga import derive_run_id
from cuebook.cli.directory import check_saga, check_task
from cuebook.cli.exits import OUTCOMES, Exit, InputError, Interruption, print_error
from cuebook.cli.options import Output, Target
from cuebook.cli.output import document, line, note, show_one
from cuebook.cli.runs.showing import find_run
from cuebook.cli.session import session
from cuebook.events.errors import NotFoundError, UnavailableError
from cuebook.events.subjects import check_token, parse_task_id

__all__ = ["Waiting", "Work", "cancel", "retry", "submit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is submitted: a run of `saga`, or without one a task for `agent`."""

    saga: str
    agent: str
    input: Any
    handler: str
    run_id: str
    priority: int
    affinity: str | None
    labels: dict[str, str] | None
    timeout_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Whether and how long to wait for the outcome; who interrupts is told how to go on."""

    wait: bool
    at_most_s: float | None
    interruption: Interruption


async def submit(target: Target, work: Work, waiting: Waiting, output: Output, *, by: str, check: bool) -> Exit:
    """Submit and print the id, or the outcome. Raises NotFoundError, InputError, CommandRejectedError."""
    check_token(work.saga or work.agent, "saga" if work.saga else "agent")
    async with session(target, by=by, follows=waiting.wait) as client:
        run_id = work.run_id
        if check and work.agent:
            with _explained():
                await check_task(client.log, work.agent, work.handler, work.input)
        elif check:
            run_id = await _check_run(client, work, output)
        run_id = await _submit(client, work, run_id)
        if not waiting.wait:
            show_one(output, {"run_id": run_id, "status": "requested"}, lambda: line(run_id))
            note(f"follow it with: cuebook run tail {run_id}{target.hint}", output)
            return Exit.OK
        waiting.interruption.resume = f"cuebook run tail {run_id}{target.hint}"
        note(f"run {run_id}", output)
        return await _wait(client, run_id, waiting, output)


async def _check_run(client: Client, work: Work, output: Output) -> str:
    """The id that was chosen, else the one that the saga's key gives, if it has one."""
    try:
        with _explained():
            key = await check_saga(client, work.saga, work.input)
    except UnavailableError as error:
        if not work.run_id:
            raise UnavailableError(
                f"{error}, so nobody tells the key that names a run of saga {work.saga!r}",
                remedy=f"{error.remedy}; or choose the run's id with --id, or have a fresh one with --no-check: "
                "the run begins once an orchestrator answers",
            ) from error
        note("no orchestrator answers; the run begins once one does", output)
        return work.run_id
    return work.run_id or derive_run_id(work.saga, key, work.input)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (NotFoundError, InputError) as error:
        raise type(error)(str(error), remedy=f"{error.remedy} (--no-check submits it anyway)") from error


async def _submit(client: Client, work: Work, run_id: str) -> str:
    if work.saga:
        return await client.submit_run(work.saga, work.input, run_id=run_id or client.new_id(work.saga[:40]))
    return await client.submit_task(
        work.agent,
        work.input,
        handler=work.handler,
        run_id=run_id,
        priority=work.priority,
        affinity=work.affinity,
        labels=work.labels,
        timeout_s=work.timeout_s,
    )


async def _wait(client: Client, run_id: str, waiting: Waiting, output: Output) -> Exit:
    try:
        outcome = await client.wait(run_id, timeout_s=waiting.at_most_s)
    except TimeoutError:
        message = f"run {run_id} has not ended within {waiting.at_most_s:g} s; it goes on"
        print_error(message, f"follow it with: {waiting.interruption.resume}", as_json=output.for_programs)
        return Exit.RUN_UNFINISHED
    show_one(output, _outcome_view(outcome), lambda: _print_outcome(outcome))
    return OUTCOMES[outcome.status]


def _outcome_view(outcome: Outcome) -> dict[str, Any]:
    return {
        "run_id": outcome.run_id,
        "status": outcome.status,
        "result": outcome.result,
        "error": outcome.error or None,
    }


def _print_outcome(outcome: Outcome) -> None:
    note(f"{outcome.status}{': ' if outcome.error else ''}{outcome.error}")
    if outcome.status == "completed":
        document(outcome.result)


async def cancel(target: Target, name: str, reason: str, output: Output, *, by: str) -> None:
    """Ask for the end of a run or of one task. Raises NotFoundError, CommandRejectedError."""
    run_id, n = parse_task_id(name)
    async with session(target, by=by) as client:
        await find_run(client.log, run_id)
        sequence = await client.cancel(run_id, n=n if "/" in name else None, reason=reason)
    view = {"run_id": run_id, "requested": "cancel", "sequence": sequence}
    show_one(output, view, lambda: line(f"asked {name} to end; follow it with: cuebook run tail {run_id}{target.hint}"))


async def retry(target: Target, run_id: str, note_text: str, output: Output, *, by: str) -> None:
    """Go on with a stuck run, or repeat an ended one. Raises NotFoundError, CommandRejectedError."""
    async with session(target, by=by) as client:
        await find_run(client.log, run_id)
        goes_on = await client.retry(run_id, note=note_text)
    show_one(output, {"run_id": goes_on, "retry_of": run_id if goes_on != run_id else None}, lambda: line(goes_on))
    note(f"follow it with: cuebook run tail {goes_on}{target.hint}", output)

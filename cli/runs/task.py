"""`cuebook task`: one unit of work, or one question, sleep or wait of a run."""

from __future__ import annotations

from typing import Any

import typer

from cuebook.cli.exits import reported_errors
from cuebook.cli.groups import Noun
from cuebook.cli.options import (
    DEFAULT_NATS_URL,
    DEFAULT_SPACE,
    At,
    Creds,
    NatsUrl,
    Output,
    OutputOption,
    Space,
    Target,
    TaskId,
)

__all__ = ["app"]

app = typer.Typer(cls=Noun, add_completion=False, help="Show one task of a run.")


@app.callback()
def _noun() -> None:  # a single command would otherwise be the noun itself
    pass


@app.command()
def show(
    task: TaskId,
    at: At = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Show a task: input, output, every attempt, why it waits, its history. Also a sleep, a wait or a question."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.session import run_command

        run_command(_show(Target(nats_url=nats_url, creds=creds, space=space), task, at, output))


async def _show(target: Target, name: str, at: str, output: Output) -> None:
    from cuebook.actors.orchestrator.state import TaskState
    from cuebook.cli.history.points import find_place
    from cuebook.cli.history.views import Item, event_view, item_view
    from cuebook.cli.output import show_one
    from cuebook.cli.runs import showing
    from cuebook.cli.session import session
    from cuebook.events.envelope import Envelope
    from cuebook.events.errors import NotFoundError
    from cuebook.events.subjects import parse_task_id

    run_id, n = parse_task_id(name)
    async with session(target) as client:
        until = (await find_place(client.log, at)).sequence if at else None
        state, history = await showing.find_run(client.log, run_id, until)
        item = state.items.get(n)
        if item is None:
            numbers = ", ".join(map(str, sorted(state.items))) or "none yet"
            raise NotFoundError(f"run {run_id} has no task or step {n}", remedy=f"its numbers: {numbers}")
        waiting = {}
        if isinstance(item, TaskState) and not item.closed and not at:
            waiting = await showing.why_waiting(client, state, output)
        progress = await showing.read_progress(client.log, state, until)
    own: list[Item] = [one for one in history if isinstance(one, Envelope) and one.address.n == n]
    view = {
        **item_view(item, history, waiting.get(str(n), ""), progress.get(n)),
        "run_id": run_id,
        "saga": state.saga or None,
        "history": [event_view(one) for one in own],
    }
    show_one(output, view, lambda: _print(view, own))


def _print(view: dict[str, Any], history: list[Any]) -> None:
    from cuebook.cli.history.timeline import run_line
    from cuebook.cli.moments import span
    from cuebook.cli.output import fields, heading, line, section

    names = ["id", "kind", "status", "saga", "agent", "handler", "question", "topic", "match", "schema", "context",
             "instance", "priority", "affinity", "labels", "timeout_s", "compensates", "waiting", "progress", "placed",
             "cancel_requested", "opened_at", "requested_at", "assigned_at", "due", "ended_at", "input", "output",
             "value", "by", "error"]  # fmt: skip
    error = view.get("error")
    shown = {**view, "error": f"{error['type']}: {error['message']}" if error else None}
    fields((name.replace("_", " "), shown[name]) for name in names if name in shown)
    if view.get("attempts"):
        section(
            "attempts",
            ["N", "INSTANCE", "OUTCOME", "ASSIGNED (UTC)", "TOOK", "ERROR"],
            [
                [
                    str(one["attempt"]),
                    one["instance"],
                    one["outcome"],
                    str(one["assigned_at"])[:19].replace("T", " "),
                    span(one["duration_s"]) if one["duration_s"] is not None else "",
                    f"{one['error']['type']}: {one['error']['message']}" if one["error"] else "",
                ]
                for one in view["attempts"]
            ],
        )
    heading("history")
    for item in history:
        line(run_line(item, history[0].recorded_at))

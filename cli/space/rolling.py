"""The generations of a space's log as people see them, and the roll to a fresh one."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from cuebook.actors.rolling import Plan, Rolled, Roller
from cuebook.cli.exits import InputError
from cuebook.cli.meter import Meter
from cuebook.cli.options import Output, Target
from cuebook.cli.output import fields, line, note, section, show_list, show_one, table
from cuebook.cli.session import session
from cuebook.events.connection import connect
from cuebook.events.errors import CuebookError
from cuebook.events.jetstream import js_request
from cuebook.events.stream import RECORDING, StreamFacts

__all__ = ["SUBJECT_BYTES", "roll", "show_space", "show_spaces"]

SUBJECT_BYTES = 700
"""Of the server's memory for each subject of a stream; see docs/operations.md."""
_PAUSE_S, _PAUSE_OF_FILTER_S = 0.4, 0.0005
"""What a pause takes at the least, and each scope that is carried over: about so on two cores with server 2.15.1."""
_is_log = re.compile(r"([A-Z0-9][A-Z0-9_-]*)(?:@[0-9]+)?").fullmatch
_COLUMNS = ["GENERATION", "STREAM", "FIRST", "LAST", "MESSAGES", "SUBJECTS", "BYTES", "STATE"]


async def show_spaces(target: Target, output: Output) -> None:
    """The spaces of a server: each stream that takes in all of one name, and nothing else."""
    connection = await connect(target.nats_url, name="cuebook cli", retry=False, **target.client_options)
    rows: list[dict[str, Any]] = []
    try:
        offset = 0
        while True:
            answer = await js_request(connection, "STREAM.LIST", {"offset": offset})
            streams = answer.get("streams") or []
            rows += [row for one in streams if (row := _space(one)) is not None]
            offset += len(streams)
            if not streams or offset >= answer["total"]:
                break
    finally:
        await connection.close()
    rows.sort(key=lambda row: str(row["space"]))
    cells = [
        [row["space"], row["stream"], str(row["last"]), str(row["messages"]), str(row["bytes"]), row["state"]]
        for row in rows
    ]
    columns = ["SPACE", "STREAM", "LAST", "MESSAGES", "BYTES", "STATE"]
    show_list(output, rows, lambda: table(columns, cells, empty="there is no space on this server"))


def _space(info: dict[str, Any]) -> dict[str, Any] | None:
    config, state = info["config"], info["state"]
    match = _is_log(config["name"])
    subjects = config.get("subjects") or [""]
    space = match[1].lower() if match else ""
    if subjects == [f"{space}.>"]:
        recording = RECORDING in (config.get("metadata") or {})
        how = "recording" if recording else "open"
    elif subjects == [f"{space}.space.rolled"]:
        how = "being rolled"
    else:
        return None
    return {
        "space": space, "stream": config["name"], "last": state["last_seq"], "messages": state["messages"],
        "bytes": state["bytes"], "state": how,
    }  # fmt: skip


async def show_space(target: Target, output: Output) -> None:
    """One space with its generations, the current one last."""
    async with session(target) as client:
        facts = await client.log.verify()
        rows = await _generations(client.log.chain.start, facts, client.log)
    view = {
        "space": target.space, "generation": facts.generation, "stream": facts.name, "last": facts.last_sequence,
        "events": facts.messages, "bytes": facts.bytes, "subjects": facts.subjects, "replicas": facts.replicas,
        "rolling": facts.rolling, "generations": rows,
    }  # fmt: skip
    show_one(output, view, lambda: _print_space(view))


async def _generations(start: int, facts: StreamFacts, log: Any) -> list[dict[str, Any]]:
    rows = [
        {
            "generation": one.generation, "stream": one.segments or one.stream, "first": one.first, "last": one.last,
            "messages": one.messages, "subjects": one.subjects, "bytes": one.bytes,
            "state": "in segments" if one.segments else "ended",
        }
        for one in facts.earlier
    ]  # fmt: skip
    ended = sum(one.bytes for one in facts.earlier if not one.segments)
    info = await log.chain.look()
    rows.append(
        {
            "generation": facts.generation, "stream": facts.name, "first": start + 1, "last": facts.last_sequence,
            "messages": info["state"]["messages"], "subjects": facts.subjects, "bytes": facts.bytes - ended,
            "state": "being rolled" if facts.rolling else "current",
        }
    )  # fmt: skip
    return rows


def _print_space(view: dict[str, Any]) -> None:
    fields(
        [
            ("space", view["space"]),
            ("events", f"{view['events']}, the last one has sequence {view['last']}"),
            ("on disk", _size(view["bytes"])),
            ("memory", f"about {_size(view['subjects'] * SUBJECT_BYTES)} of the server's, for the current stream"),
            ("replicas", view["replicas"]),
        ]
    )
    names = ("generation", "stream", "first", "last", "messages", "subjects", "bytes", "state")
    section("generations", _COLUMNS, [[str(row[name]) for name in names] for row in view["generations"]])


async def roll(target: Target, by: str, output: Output, *, dry_run: bool, abort: bool) -> None:
    """Roll a space, say what that would do, or undo one that was begun. Raises CuebookError."""
    if dry_run and abort:
        raise InputError("--dry-run and --abort exclude each other")
    meters: dict[int, tuple[int, Meter]] = {}

    def read(at: int, until: int) -> None:  # folded twice: what there is, and in the pause what came since
        if until not in meters:
            meters[until] = at, Meter(at, until, silent=output.for_programs)
        first, meter = meters[until]
        meter.reached(at, at - first + 1)

    async with session(target, by=by, follows=True) as client:
        log = client.log
        roller = Roller(log, by=log.source, say=lambda text: note(text, output), read=read)
        try:
            if abort:
                await roller.abort()
                show_one(output, {"space": target.space, "stream": log.chain.stream, "aborted": True}, lambda: None)
            elif dry_run:
                _show_plan(await roller.plan(), output)
            else:
                rolled = await roller.roll()
                _show_rolled(rolled, log.chain.stream, output)
        except CuebookError:
            if log.chain.rolling:
                note(f"space {target.space} is left half rolled: say 'cuebook space roll' again", output)
            raise
        finally:
            for _, meter in meters.values():
                meter.__exit__()


def _show_plan(plan: Plan, output: Output) -> None:
    pause_s = _PAUSE_S + _PAUSE_OF_FILTER_S * len(plan.filters)
    view = {**asdict(plan), "filters": len(plan.filters), "pause_s": round(pause_s, 1)}
    what = f"{plan.runs} open runs, {plan.instances} agent instances, what sagas are served"
    if plan.kept:
        what = f"all {plan.last - plan.kept + 1} messages from sequence {plan.kept} on, where the oldest open run began"
    pairs = [
        ("from", f"stream {plan.stream}, which ends at about sequence {plan.last}"),
        ("to", f"stream {plan.into}, generation {plan.generation}"),
        ("carried over", what),
        ("pause", f"about {pause_s:.1f} s, in which what is written waits"),
    ]
    show_one(output, view, lambda: fields(pairs))


def _show_rolled(rolled: Rolled | None, stream: str, output: Output) -> None:
    if rolled is None:
        show_one(
            output,
            {"stream": stream, "completed": True},
            lambda: line(f"the last roll is complete now; the log goes on in stream {stream}"),
        )
        return
    before, after = rolled.subjects_before * SUBJECT_BYTES, rolled.subjects_after * SUBJECT_BYTES
    view = {**asdict(rolled), "pause_ms": None if rolled.pause_s is None else round(rolled.pause_s * 1000)}
    del view["pause_s"]
    pause = "begun by an earlier attempt" if rolled.pause_s is None else f"{rolled.pause_s * 1000:.0f} ms"
    pairs = [
        ("ended", f"stream {rolled.stream}, at sequence {rolled.last}, with {rolled.messages_before} messages"),
        ("goes on", f"in stream {rolled.into}, with {rolled.carried} messages carried over"),
        ("subjects", f"{rolled.subjects_before} before, {rolled.subjects_after} now"),
        ("memory", f"about {_size(before)} of the server's before, {_size(after)} now; the ended stream keeps its own"),
        ("pause", pause),
    ]
    show_one(output, view, lambda: fields(pairs))


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"

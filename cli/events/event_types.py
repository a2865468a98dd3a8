"""Event types and their schemas: listed, shown, and held against what was released.

Beside cuebook's own there are outside events, whose form is the input of the sagas that listen to them. What those were
when they were released stands in a file of their author's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from cuebook.cli.directory import nearest
from cuebook.cli.exits import DriftError, InputError
from cuebook.cli.loading import load_sagas
from cuebook.cli.options import Output
from cuebook.cli.output import compact, document, fields, line, note, show_list, show_one, table
from cuebook.events.catalogue import CATALOGUE, version_of
from cuebook.events.errors import NotFoundError
from cuebook.events.schemas import Finding, compare, present_schemas, released_schemas

__all__ = ["check_schemas", "list_types", "show_schema"]

_NEXT = {
    "edited": "give the change a version of its own: docs/versioning.md",
    "removed": "add its upcaster: docs/versioning.md",
    "extended": "record it with --write",
    "new": "record it with --write",
}


def list_types(specs: Sequence[str], output: Output) -> None:
    """Print every type that this release writes, and those of outside events that the sagas listen to."""
    rows = [_row(event_type, schema) for event_type, schema in (present_schemas() | _outside(specs)).items()]
    show_list(output, rows, partial(_print_types, rows))


def _row(event_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": event_type,
        "older": CATALOGUE.older(event_type) if event_type in CATALOGUE.types else [],
        "fields": list(schema.get("properties", {})),
        "required": schema.get("required", []),
        "description": schema.get("description", ""),
    }


def _print_types(rows: Sequence[dict[str, Any]]) -> None:
    cells = [
        [
            row["type"],
            ", ".join(row["older"]),
            ", ".join(name + ("*" if name in row["required"] else "") for name in row["fields"]),
            row["description"].partition(". ")[0],
        ]
        for row in rows
    ]
    table(["TYPE", "ALSO READS", "FIELDS (* REQUIRED)", "MEANING"], cells, empty="")


def show_schema(event_type: str, specs: Sequence[str], output: Output) -> None:
    """Print one type's schema, also of an older version. Raises NotFoundError."""
    known = released_schemas() | present_schemas() | _outside(specs)
    schema = known.get(event_type) or known.get(CATALOGUE.newest.get(event_type, ""))
    if schema is None:
        remedy = nearest(event_type, known, "type")
        raise NotFoundError(f"there is no event type {event_type!r}", remedy=remedy)
    name = event_type if event_type in known else CATALOGUE.newest[event_type]
    view: dict[str, Any] = {"type": name, "schema": schema, "newest": None, "upcasters": []}
    if name.count(".") == 2 and (newest := CATALOGUE.newest.get(name.rpartition(".")[0])) is not None:
        numbers = range(version_of(name), version_of(newest))
        view |= {"newest": newest, "upcasters": [f"{name.rpartition('.')[0]}.v{number}" for number in numbers]}
    show_one(output, view, partial(_print_schema, view))


def _print_schema(view: dict[str, Any]) -> None:
    steps = " -> ".join([*view["upcasters"], view["newest"]]) if view["upcasters"] else None
    fields([("type", view["type"]), ("read as", steps)])
    document(view["schema"])


def check_schemas(specs: Sequence[str], file: str, output: Output, *, write: bool) -> None:
    """Hold the types against those released. Raises DriftError when one was edited, or is not recorded as it is.

    With `write` what may be added is recorded first: in the file where one is given, else in cuebook's own.
    """
    if bool(specs) is not bool(file):
        raise InputError(
            "--saga and --file go together" + (": where are its schemas kept?" if specs else ""),
            remedy="say both to check outside events too, or neither",
        )
    released, present, own = released_schemas(), present_schemas(), Path(str(files("cuebook.events") / "types.json"))
    findings = compare(released, present, CATALOGUE.upcasters)
    kept, outside = (_read(Path(file)), _outside(specs)) if file else ({}, {})
    findings_outside = compare(kept, outside, {})
    if write and file:
        findings_outside = _record(Path(file), kept, outside, findings_outside)
    elif write:
        findings = _record(own, released, present, findings)
    found = [*findings, *findings_outside]
    rows = [
        {"type": one.event_type, "what": one.kind, "details": one.details, "next": _NEXT[one.kind]} for one in found
    ]
    show_list(output, rows, partial(_print_findings, rows))
    note(f"{len(present) + len(outside)} types checked, {len(released.keys() - present.keys())} older ones", output)
    if broken := sum(one.breaks for one in found):
        raise DriftError(
            f"{broken} released {'types were' if broken > 1 else 'type was'} edited or removed instead of versioned",
            remedy="restore it and add the next version; see docs/versioning.md",
        )
    if found:
        raise DriftError(f"{len(found)} types are not recorded as they are", remedy="record them with --write")


def _print_findings(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        line(f"{row['type']} {'is' if row['what'] == 'new' else 'was'} {row['what']}")
        for detail in row["details"]:
            line(f"  {detail}")


def _outside(specs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The form of the outside events that sagas listen to, by `event.<topic>`; of several sagas each for itself."""
    sagas = [saga for saga in load_sagas(specs) if saga.on]
    topics = [saga.on for saga in sagas]
    return {
        f"event.{saga.on}" + (f" ({saga.name})" if topics.count(saga.on) > 1 else ""): saga.input_type.schema()
        for saga in sorted(sagas, key=lambda one: (one.on, one.name))
    }


def _record(
    path: Path, released: Mapping[str, Any], present: Mapping[str, Any], findings: Sequence[Finding]
) -> list[Finding]:
    """Write what was added and extended; returns what is left, which nothing but a new version mends."""
    left = [one for one in findings if one.breaks]
    keep = {one.event_type for one in left}
    content = {**released, **{name: schema for name, schema in present.items() if name not in keep}}
    if content != released or not path.exists():
        path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    return left


def _read(path: Path) -> dict[str, Any]:
    """The schemas in a file; none in one that is not there yet. Raises InputError."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {compact(str(error))}", remedy="restore it from its last release"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(schema, dict) for schema in content.values()):
        raise InputError(f"{path} is no object of schemas by type", remedy="restore it from its last release")
    return content

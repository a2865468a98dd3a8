"""Writes the parts of docs/wire-format.md that follow from the code: `uv run python -m tests.wire_format`.

They stand between `<!-- name -->` and `<!-- /name -->`; `just test` fails where they differ from what is written here.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from cuebook.events.catalogue import EVENT_TYPES
from cuebook.events.codec import encode
from cuebook.events.facts import Error, Event, HandlerSpec, Origin, RetryPolicy, RetryRule, TaskCompleted

__all__ = ["DOCUMENT", "EXAMPLE", "example_body", "parts", "rewritten"]

DOCUMENT = Path(__file__).parent.parent / "docs" / "wire-format.md"
EXAMPLE = TaskCompleted(output={"n": 2}, attempt=1, duration_s=0.5, by="i7")

_FAMILIES = ("run", "task", "step", "progress", "agent", "saga", "rejected", "space")
_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "Any": "any"}
_BYTES_A_LINE = 24


def parts() -> dict[str, str]:
    """Every generated part by its name."""
    generated = {family: _table([cls for cls in EVENT_TYPES if _family(cls) == family]) for family in _FAMILIES}
    generated["objects"] = _objects([Error, Origin, RetryPolicy, RetryRule, HandlerSpec])
    generated["hex"] = _hex()
    return generated


def rewritten(text: str) -> str:
    """The document with every generated part as it should be."""
    for name, part in parts().items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        text = f"{before}{begin}{part}{end}{after}"
    return text


def _family(cls: type[Event]) -> str:
    return cls.event_type.partition(".")[0]


def _table(classes: list[type[Event]]) -> str:
    rows = [f"| `{cls.event_type.split('.')[1]}` | {_fields(cls)} | {_meaning(cls)} |" for cls in classes]
    return "\n".join(["| fact | data | meaning |", "|---|---|---|", *rows, ""])


def _objects(classes: list[type[Any]]) -> str:
    rows = [f"| `{cls.__name__}` | {_fields(cls)} | {_meaning(cls)} |" for cls in classes]
    return "\n".join(["| object | fields | meaning |", "|---|---|---|", *rows, ""])


def _fields(cls: type[Any]) -> str:
    said = []
    for one in fields(cls):
        required = one.default is MISSING and one.default_factory is MISSING
        name = f"**`{one.name}`**" if required else f"`{one.name}`"
        default = "" if one.default in (MISSING, None, "", 0, False) else f" = {one.default!r}"
        said.append(f"{name} {_type(str(one.type))}{default}")
    return "<br>".join(said) or "none"


def _type(annotation: str) -> str:
    plain = annotation.removesuffix(" | None")
    if found := re.fullmatch(r"ListOf\[(.+)\]", plain):
        return f"list of {_type(found[1])}"
    if found := re.fullmatch(r"dict\[str, (.+)\]", plain):
        return f"map to {_type(found[1])}"
    if plain.startswith("Literal["):
        return " or ".join(f"`{word}`" for word in re.findall(r"['\"](\w+)['\"]", plain))
    return _TYPES.get(plain, f"`{plain}`")


def _meaning(cls: type[Any]) -> str:
    return " ".join((inspect.getdoc(cls) or "").split())


def _hex() -> str:
    body = example_body().hex(" ")
    words = body.split(" ")
    lines = [" ".join(words[at : at + _BYTES_A_LINE]) for at in range(0, len(words), _BYTES_A_LINE)]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def example_body() -> bytes:
    """The body of the example, always the same."""
    return encode(
        EXAMPLE,
        event_id="5f3a-2",
        source="agents",
        correlation_id="5f3a-0",
        causation_id="5f3a-1",
        now=1_767_225_600_000_000,
    )


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text()))

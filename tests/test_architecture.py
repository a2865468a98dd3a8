"""Imports point one way, by the installed names, and files stay readable in one sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 700

# What each package may import from the others. Actors and projections meet only in the log.
ALLOWED = {
    "events": set[str](),
    "telemetry": {"events"},
    "actors": {"events", "telemetry"},
    "projections": {"events", "telemetry"},
    "embedded": {"events"},
    "examples": {"actors", "events"},
    "ledger": {"events"},
    "cli": {"actors", "embedded", "events", "examples", "ledger", "projections", "telemetry"},
}

# The same inside the command line: what each folder may import from the others. What all share stands beside them.
CLI = {
    "agents": {"history", "runs"},
    "audit": {"events", "space"},
    "checks": set[str](),
    "demo": {"dev", "serving"},
    "dev": {"serving"},
    "diagnosis": {"checks", "history"},
    "events": {"history"},
    "history": set[str](),
    "projections": set[str](),
    "replay": {"agents", "history", "runs", "sagas"},
    "runs": {"history"},
    "sagas": {"history", "runs"},
    "serving": {"units"},
    "space": set[str](),
    "top": {"diagnosis", "history"},
    "units": set[str](),
}
MODULES = sorted(path.relative_to(ROOT) for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_one_way(module: Path) -> None:
    package = module.parts[0]
    wrong = {name for name in imported(module) if not may_import(package, name)}
    assert not wrong, f"{package} may import only {sorted(ALLOWED[package])} of ours"


def test_each_folder_of_the_command_line_says_what_it_needs_of_the_others_and_none_goes_round() -> None:
    needs: dict[str, set[str]] = {
        path.name: set() for path in (ROOT / "cli").iterdir() if (path / "__init__.py").exists()
    }
    for module in (module for module in MODULES if module.parts[0] == "cli"):
        others = {folder for name in imported(module) if (folder := folder_of_cli(name)) in needs}
        if len(module.parts) == 2:
            assert not others, f"{module} is shared by all and may import none of them"
        else:
            needs[module.parts[1]] |= others - {module.parts[1]}
    assert needs == CLI
    list(TopologicalSorter(CLI).static_order())  # raises CycleError


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_is_readable_in_one_sitting(module: Path) -> None:
    assert len((ROOT / module).read_text().splitlines()) <= MAX_LINES


def test_embedded_knows_only_the_errors_of_events() -> None:
    names = {name for module in MODULES if module.parts[0] == "embedded" for name in imported(module)}
    assert {name for name in names if name.startswith("cuebook.events")} <= {"cuebook.events.errors"}


def test_server_configuration_never_shadows_the_client_library() -> None:
    files = [path.relative_to(ROOT / "nats").as_posix() for path in (ROOT / "nats").rglob("*")]
    assert [name for name in files if name.endswith(".py") or name == "server"] == []


def test_what_is_deployed_is_no_python() -> None:
    assert [path.name for path in (ROOT / "deploy").rglob("*.py")] == []


def test_a_wrong_arrow_is_noticed() -> None:
    assert may_import("actors", "cuebook.events.log")
    assert may_import("actors", "cuebook.actors.agent")
    assert not may_import("actors", "cuebook.projections.runner")
    assert not may_import("events", "actors.agent")
    assert not may_import("cli", "events.log")


def imported(module: Path) -> Iterator[str]:
    """The full name of every module imported anywhere in the file, also inside functions."""
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            where = node.module or ""
            if node.level:  # relative: counted from the file's own package
                parts = ["cuebook", *module.parent.parts]
                where = ".".join([*parts[: len(parts) - node.level + 1], where]).rstrip(".")
            yield from (f"cuebook.{alias.name}" for alias in node.names) if where == "cuebook" else [where]


def folder_of_cli(name: str) -> str:
    """The folder of the command line that a module stands in; empty for the shared ones and for other packages."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["cuebook", "cli"] and len(parts) > 2 else ""


def may_import(package: str, name: str) -> bool:
    """Whether a module of the package may import this. Our packages go by their installed names only."""
    top, *rest = name.split(".")
    if top == "cuebook":
        return bool(rest) and rest[0] in ALLOWED[package] | {package}
    return top not in ALLOWED and top not in {"tests", "benchmarks"}

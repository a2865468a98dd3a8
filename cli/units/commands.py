"""`cuebook units`: systemd units of this machine, or of one person's session."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cuebook.cli.exits import InputError, reported_errors
from cuebook.cli.groups import Noun
from cuebook.cli.options import Output, OutputOption, flag, read_setting

__all__ = ["app"]

app = typer.Typer(cls=Noun, add_completion=False, help="Install, list, show and remove systemd units.")

_SHOWN: Final = ("Id", "UnitFileState", "ActiveState", "SubState", "MainPID", "NRestarts", "StatusText")

User = Annotated[bool, flag("--user", help="Those of your own session, not of the system; needs no root.")]
Root = Annotated[
    Path, flag("--root", metavar="DIR", file_okay=False, help="The machine below DIR, such as an image being made.")
]
Program = Annotated[
    Path | None, flag("--program", metavar="FILE", help="The cuebook that units start; default: the one you call.")
]


@app.command("install")
def install(
    *,
    user: User = False,
    root: Root = Path("/"),
    program: Program = None,
    force: Annotated[bool, flag("--force", help="Replace unit files that somebody has edited.")] = False,
    nats_cluster: Annotated[
        str,
        flag(
            "--nats-cluster",
            metavar="NODE=ADDRESS,...",
            help="This machine's nats-server is one of these three or five.",
        ),
    ] = "",
    nats_node: Annotated[str, flag("--nats-node", metavar="NODE", help="Which of them it is.")] = "",
    edge: Annotated[str, flag("--edge", metavar="NAME", help="This machine is an edge, and is called so.")] = "",
    hub: Annotated[
        str,
        flag(
            "--hub",
            metavar="URL|@FILE",
            callback=read_setting,
            help="Where the edge's nats-server connects: nats-leaf://edge:PASSWORD@HOST:7422.",
        ),
    ] = "",
    edges: Annotated[
        str, flag("--edges", metavar="HOST[:PORT]", help="Let edges connect to this machine's nats-server there.")
    ] = "",
) -> None:
    """Write the units, and settings where there are none. Starts nothing; again after an upgrade does no harm."""
    from cuebook.cli.units.edges import EdgeNode, Hub
    from cuebook.cli.units.unit_files import NatsNode, Place, installed_program, write

    place = Place(user=user, root=root)
    with reported_errors():
        roles = [NatsNode.parse(nats_cluster, nats_node), EdgeNode.parse(edge, hub), Hub.parse(edges)]
        found = [one for one in roles if one is not None]
        role = found[0] if found else None
        if len(found) > 1:
            raise InputError(
                "a nats-server is one of a cluster, or at an edge, or the hub of edges",
                remedy="install twice for a cluster's node that edges connect to, first with --nats-cluster",
            )
        for path in write(place, program or installed_program(), force=force, role=role):
            typer.echo(f"wrote {path}")
        _reload_manager(place.user, place.root)
    scope = " --user" if user else ""
    parts = "cuebook-nats cuebook-edge" if edge else "cuebook-nats cuebook-orchestrator cuebook-projections"
    typer.echo(f"settings are in {place.settings}; secrets in {place.settings / 'credentials'}, a file each")
    typer.echo(f"then: systemctl{scope} enable --now cuebook.target {parts}")
    if isinstance(role, Hub):
        typer.echo(f"a server that runs already needs: systemctl{scope} restart cuebook-nats")
        typer.echo(role.at_an_edge(place.settings))


@app.command("list")
def list_(*, user: User = False, output: OutputOption = Output.TEXT) -> None:
    """All cuebook units that systemd knows, with what each says about itself."""
    from cuebook.cli.output import show_list, table

    with reported_errors(as_json=output.for_programs):
        rows = _units(user)
    columns = ("unit", "enabled", "active", "pid", "restarts", "status")
    show_list(
        output,
        rows,
        lambda: table(
            columns,
            ([str(row[name]) for name in columns] for row in rows),
            empty="no units: see 'cuebook units install'",
        ),
    )


@app.command("show")
def show(
    unit: Annotated[str, typer.Argument(metavar="UNIT", help="Such as cuebook-nats.")],
    *,
    user: User = False,
    program: Program = None,
) -> None:
    """Print a unit file as 'install' would write it."""
    from cuebook.cli.units.unit_files import UNITS, installed_program, render
    from cuebook.events.errors import NotFoundError

    with reported_errors():
        if f"{unit}.service" in UNITS:
            unit += ".service"
        if unit not in UNITS:
            raise NotFoundError(f"there is no unit {unit!r}", remedy=f"one of {', '.join(UNITS)}")
        typer.echo(render(unit, program or installed_program(), user=user), nl=False)


@app.command("remove")
def remove_(*, user: User = False, root: Root = Path("/")) -> None:
    """Stop and disable all cuebook units and take their files away. Settings, secrets and data stay."""
    from cuebook.cli.units.unit_files import Place, remove

    place = Place(user=user, root=root)
    with reported_errors():
        if place.root == Path("/") and (names := [row["unit"] for row in _units(user)]):
            _systemctl(user, "stop", *names)
            _systemctl(user, "disable", *names)
        for path in remove(place):
            typer.echo(f"removed {path}")
        _reload_manager(place.user, place.root)
    data = "cuebook-nats in ~/.local/state, before systemd 254 ~/.config" if user else "/var/lib/cuebook-nats"
    typer.echo(f"settings and secrets are still in {place.settings}, the log in {data}")


def _units(user: bool) -> list[dict[str, Any]]:
    """What systemd says about each of our units, loaded or only enabled."""
    listed = _systemctl(user, "list-units", "--all", "--plain", "--no-legend", "cuebook*").splitlines()
    files = _systemctl(user, "list-unit-files", "--plain", "--no-legend", "cuebook*", nothing=1).splitlines()
    names = {line.split()[0] for line in [*listed, *files] if line.split()}
    names = {name for name in names if "@." not in name and name.endswith((".service", ".target"))}
    if not names:
        return []
    blocks = _systemctl(user, "show", f"--property={','.join(_SHOWN)}", *sorted(names)).split("\n\n")
    found = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in blocks if block.strip()]
    return [
        {
            "unit": one["Id"],
            "enabled": one.get("UnitFileState", ""),
            "active": f"{one.get('ActiveState', '')} ({one.get('SubState', '')})",
            "pid": int(one.get("MainPID") or 0),
            "restarts": int(one.get("NRestarts") or 0),
            "status": one.get("StatusText", ""),
        }
        for one in found
    ]


def _reload_manager(user: bool, root: Path) -> None:
    if root == Path("/"):
        _systemctl(user, "daemon-reload")


def _systemctl(user: bool, *words: str, nothing: int = 0) -> str:
    """What systemctl prints. `nothing`: the status by which it says that there is nothing to print.

    Raises UnavailableError when there is no systemd to talk to, or it refuses.
    """
    from cuebook.events.errors import UnavailableError

    try:
        done = subprocess.run(
            ["systemctl", *(["--user"] if user else []), *words],  # noqa: S607 - wherever the system keeps it
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise UnavailableError("there is no systemctl", remedy="units need a machine with systemd") from error
    if done.returncode and (done.returncode != nothing or done.stderr):
        said = done.stderr.strip() or f"status {done.returncode}"
        raise UnavailableError(f"systemctl {words[0]}: {said}", remedy="--root writes the files without a systemd")
    return done.stdout

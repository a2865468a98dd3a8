"""The systemd units of `deploy/systemd`, made to fit a machine: what is written where, and taken away again.

A unit file belongs to us: it is replaced at the next installation, unless somebody has edited it, which its first line
gives away. Settings belong to the operator: they are written once, and never touched again.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cuebook.cli.exits import InputError
from cuebook.cli.units.edges import EDGE_CREDENTIALS, EdgeNode, Hub
from cuebook.embedded.nats_server import CONFIGURATIONS
from cuebook.events.errors import ConfigurationError
from cuebook.events.subjects import check_token

__all__ = ["UNITS", "NatsNode", "Place", "installed_program", "remove", "render", "write"]

# Beside the package, as the server's configuration is; see there why not by importlib.resources.
_TEMPLATES: Final = CONFIGURATIONS.parent / "deploy" / "systemd"
UNITS: Final = (
    "cuebook.target",
    "cuebook-nats.service",
    "cuebook-orchestrator.service",
    "cuebook-orchestrator@.service",
    "cuebook-projections.service",
    "cuebook-sealer.service",
    "cuebook-agent@.service",
    "cuebook-edge.service",
)
_SETTINGS: Final = (
    "cuebook.env",
    "orchestrator.env",
    "orchestrator@standby.env",
    "projections.env",
    "sealer.env",
    "edge.env",
)
_CREDENTIALS: Final = (
    "nats-creds",
    "nats-url",
    "database-url",
    "otlp-headers",
    "nats-cert",
    "nats-key",
    *EDGE_CREDENTIALS,
)
_REACHES: Final = "cuebook-nats.service.d/reaches-others.conf"
"""What lets the server of an edge, or of a hub, out of its own machine."""
_FEWEST_NODES: Final = 3
"""Of a cluster; and an odd number, since a fourth node makes it no safer than three."""
_MARK: Final = "# Written by 'cuebook units install', which replaces it; change it with 'systemctl edit'. Checked by "
_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - names, nothing is written there


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where units go: those of the system, or of one `user`; under `root`, such as an image that is being made."""

    user: bool = False
    root: Path = Path("/")

    @property
    def units(self) -> Path:
        """The folder of the unit files."""
        return self._under(_user_folder() / "systemd/user" if self.user else Path("/etc/systemd/system"))

    @property
    def settings(self) -> Path:
        """The folder of the operator's files, which units know as `%E/cuebook`."""
        return self._under(_user_folder() / "cuebook" if self.user else Path("/etc/cuebook"))

    def _under(self, path: Path) -> Path:
        return self.root / path.relative_to("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsNode:
    """This machine's nats-server as one of a cluster. `addresses`: of all nodes by name, this one too."""

    name: str
    addresses: Mapping[str, str]
    configuration = "production-cluster.conf"
    title = "a cluster's node"

    @classmethod
    def parse(cls, cluster: str, name: str) -> NatsNode | None:
        """From `a=10.0.0.1,b=10.0.0.2,c=10.0.0.3` and the name of ours; None from nothing. Raises InputError."""
        if not cluster and not name:
            return None
        pairs = [one.partition("=") for one in cluster.split(",")]
        addresses = {check_token(node, "name of a node"): address for node, _, address in pairs if address}
        if len(addresses) != len(pairs) or len(pairs) < _FEWEST_NODES or len(pairs) % 2 == 0:
            raise InputError(
                f"{cluster!r} is no cluster: it takes 3 nodes, or 5",
                remedy="say NAME=ADDRESS of each, with commas between",
            )
        if name not in addresses:
            raise InputError(f"{name!r} is none of the nodes", remedy=f"--nats-node is one of {', '.join(addresses)}")
        return cls(name=name, addresses=addresses)

    def write(self, folder: Path) -> Iterator[Path]:
        """Write `nats.env`, and how many replicas there are, into a folder of settings that has neither."""
        replicas = _template("orchestrator.env").replace("#CUEBOOK_REPLICAS=", "CUEBOOK_REPLICAS=")
        for name, text in (("nats.env", self._environment()), ("orchestrator.env", replicas)):
            yield from _write_once(folder / name, text)

    def _environment(self) -> str:
        routes = ", ".join(f'"tls://{address}:6222"' for address in self.addresses.values())
        text = _template("nats.env")
        for gap, value in {
            "@NAME@": self.name,
            "@ADDRESS@": self.addresses[self.name],
            "@ROUTES@": routes,
        }.items():
            text = text.replace(gap, value)
        return text


def installed_program() -> Path:
    """The command `cuebook` of this installation."""
    return Path(sysconfig.get_path("scripts")) / "cuebook"


def render(unit: str, program: Path, *, user: bool) -> str:
    """The text of a unit file. Raises ConfigurationError for a program that the unit could not see."""
    if not user:
        _require_in_sight(program)
    text = (_TEMPLATES / unit).read_text(encoding="utf-8")
    hardening = _template("hardening-user.conf" if user else "hardening.conf")
    text = text.replace("@LOCALHOST_ONLY@\n", "" if user else _template("localhost-only.conf"))
    text = text.replace("@HARDENING@\n", hardening).replace("@CUEBOOK@", _quoted(program))
    text = text.replace("@TARGET@", "default.target" if user else "multi-user.target")
    return _marked(text)


def write(
    place: Place, program: Path, *, force: bool = False, role: NatsNode | EdgeNode | Hub | None = None
) -> list[Path]:
    """Write all units, and what is missing of the settings; returns what was written.

    `role`: what the server is beside or in place of one alone; a configuration of such a one is replaced, if nobody
    has edited it. Raises ConfigurationError for a file that somebody has edited, unless forced, and where we may not
    write.
    """
    texts = {place.units / unit: render(unit, program, user=place.user) for unit in UNITS}
    if isinstance(role, EdgeNode | Hub) and not place.user:  # those of a user reach all anyway
        texts[place.units / _REACHES] = _marked(_template("reaches-others.conf").replace("@ADDRESSES@", role.reaches))
    try:
        edited = [str(path) for path in texts if _is_edited(path)]
        if edited and not force:
            raise ConfigurationError(
                f"edited since it was installed: {', '.join(edited)}",
                remedy="move your changes into 'systemctl edit', or replace them with --force",
            )
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return [*texts, *_write_settings(place.settings, role)]
    except OSError as error:
        raise _refused(error) from error


def remove(place: Place) -> list[Path]:
    """Take the unit files away, settings and data stay; returns what is gone. Raises ConfigurationError."""
    gone = [path for unit in (*UNITS, _REACHES) if (path := place.units / unit).exists()]
    try:
        for path in gone:
            path.unlink()
            if path.parent != place.units and not any(path.parent.iterdir()):
                path.parent.rmdir()
    except OSError as error:
        raise _refused(error) from error
    return gone


def _write_settings(folder: Path, role: NatsNode | EdgeNode | Hub | None) -> Iterator[Path]:
    secrets = folder / "credentials"
    for directory, mode in ((folder, 0o755), (folder / "agents", 0o755), (secrets, 0o700)):
        if not directory.exists():
            directory.mkdir(parents=True, mode=mode)
            directory.chmod(mode)  # whatever the umask is
    texts = {name: _template(name) for name in _SETTINGS} | {"agents/example.env": _template("agent.env")}
    if isinstance(role, NatsNode | EdgeNode):
        _make_way(folder / "nats.conf", role)
        texts["nats.conf"] = _configuration(role.configuration)
    else:
        texts["nats.conf"] = _configuration("production.conf")
    if isinstance(role, NatsNode):
        yield from role.write(folder)
    for name, text in texts.items():
        yield from _write_once(folder / name, text)
    if isinstance(role, EdgeNode | Hub):
        yield from role.write(folder)
    for path in (secrets / name for name in _CREDENTIALS):
        if not path.exists():
            path.touch(mode=0o600)
            yield path


def _write_once(path: Path, text: str) -> Iterator[Path]:
    if not path.exists():
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        yield path


def _make_way(config: Path, role: NatsNode | EdgeNode) -> None:
    """Take away the configuration of a server that is alone, which only we have written."""
    present = config.read_text(encoding="utf-8") if config.exists() else ""
    if present == _configuration("production.conf"):
        config.unlink()
    elif present not in ("", _configuration(role.configuration)):
        raise ConfigurationError(
            f"{config} has been edited, and is not that of {role.title}",
            remedy="move it away, install again, and put your changes into the new one",
        )


def _configuration(name: str) -> str:
    return (CONFIGURATIONS / name).read_text(encoding="utf-8")


def _require_in_sight(program: Path) -> None:
    seen = [program, program.resolve()]
    if program == installed_program():
        seen.append(Path(sys.base_prefix))  # a virtual environment needs the Python that it was made from
    hidden = next((path for path in seen for top in _HIDDEN if path.is_relative_to(top)), None)
    if hidden is not None:
        raise ConfigurationError(
            f"units of the system see nothing below {', '.join(_HIDDEN)}, and there is {hidden}",
            remedy="install cuebook with the system's Python in /opt/cuebook, or use --user",
        )


def _is_edited(path: Path) -> bool:
    if not path.exists():
        return False
    first, _, text = path.read_text(encoding="utf-8").partition("\n")
    return first != _MARK + _digest(text)


def _refused(error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{error.filename}: {error.strerror}", remedy="be root for the units of the system, or say --user for your own"
    )


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _marked(text: str) -> str:
    return f"{_MARK}{_digest(text)}\n{text}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _quoted(program: Path) -> str:
    text = str(program).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if " " in text else text


def _user_folder() -> Path:
    named = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(named) if named.startswith("/") else Path.home() / ".config"

"""What the installation of units writes more where leaf nodes come in: at an edge, and on the hub that it connects to.

Secrets are made here or asked for once; each is a file of its own, readable by root alone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from cuebook.cli.exits import InputError
from cuebook.embedded.nats_server import CONFIGURATIONS
from cuebook.events.errors import ConfigurationError
from cuebook.events.subjects import check_token

__all__ = ["EDGE_CREDENTIALS", "EdgeNode", "Hub"]

EDGE_CREDENTIALS: Final = ("edge-url", "edge-password", "hub-url", "leaf-password")
LEAF_PORT: Final = 7422
_SCHEMES: Final = ("nats-leaf", "nats", "tls", "ws", "wss")
_INCLUDE: Final = "include ./hub.conf"
_ANY: Final = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeNode:
    """This machine is an edge called `name`, and `hub` is where its leaf node connects, with what it says there."""

    name: str
    hub: str
    configuration = "leaf.conf"
    title = "an edge"

    @classmethod
    def parse(cls, name: str, hub: str) -> EdgeNode | None:
        """From the name and an address such as `nats-leaf://edge:PASSWORD@hub.example:7422`; None from nothing.

        The scheme and the port may be left out. Raises InputError, InvalidTokenError.
        """
        if not name and not hub:
            return None
        if not name or not hub:
            raise InputError(
                "an edge has a name and a hub", remedy="say --edge NAME --hub nats-leaf://edge:PASSWORD@HOST:7422"
            )
        return cls(name=check_token(name, "edge"), hub=_hub_url(hub))

    @property
    def reaches(self) -> str:
        """Which addresses its nats-server connects to: the hub's, or any where that is a name which may move."""
        host = urlsplit(self.hub).hostname or ""
        return str(ipaddress.ip_address(host)) if _is_address(host) else _ANY

    def write(self, folder: Path) -> Iterator[Path]:
        """Write what is this edge's own into the folder of settings. Raises ConfigurationError, OSError."""
        yield from _say(folder / "edge.env", "CUEBOOK_EDGE_NAME", self.name)
        keys = folder / "credentials"
        yield from _keep(keys / "hub-url", self.hub)
        password = _read(keys / "edge-password") or secrets.token_urlsafe(24)
        yield from _fill(keys / "edge-password", password)
        yield from _fill(keys / "nats-url", f"nats://uplink:{quote(password)}@127.0.0.1:4222")
        yield from _fill(keys / "edge-url", f"nats://keeper:{quote(password)}@127.0.0.1:4222")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """This machine's nats-server has the log, and edges connect to it at `listen`, an address of this machine."""

    listen: str
    reaches = _ANY

    @classmethod
    def parse(cls, listen: str) -> Hub | None:
        """From `0.0.0.0:7422` or `0.0.0.0`; None from nothing. Raises InputError."""
        if not listen:
            return None
        host, port = _host_and_port(f"nats-leaf://{listen}", listen)
        return cls(listen=f"{f'[{host}]' if ':' in host else host}:{port or LEAF_PORT}")

    def write(self, folder: Path) -> Iterator[Path]:
        """Write what edges need here, and let `nats.conf` take it in. Raises ConfigurationError, OSError."""
        config = folder / "nats.conf"
        yield from _keep(folder / "hub.conf", _configuration("hub.conf"), mode=0o644, once=True)
        yield from _say(folder / "nats.env", "CUEBOOK_LEAF_LISTEN", self.listen)
        yield from _fill(folder / "credentials/leaf-password", secrets.token_urlsafe(24))
        present = config.read_text(encoding="utf-8")
        if not re.search(rf"^\s*{re.escape(_INCLUDE)}", present, re.MULTILINE):
            config.write_text(f"{present.rstrip()}\n\n{_INCLUDE}\n", encoding="utf-8")
            yield config

    def at_an_edge(self, folder: Path) -> str:
        """What somebody at an edge has to type, with the place of the password."""
        port = self.listen.rpartition(":")[2]
        password = folder / "credentials/leaf-password"
        return (
            f"at each edge: cuebook units install --edge NAME --hub edge:PASSWORD@THIS-MACHINE:{port}\n"
            f"the password is in {password}"
        )


def _hub_url(text: str) -> str:
    url = text if "://" in text else f"nats-leaf://{text}"
    _, port = _host_and_port(url, text)
    parts = urlsplit(url)
    return url if port else urlunsplit(parts._replace(netloc=f"{parts.netloc.rstrip(':')}:{LEAF_PORT}"))


def _host_and_port(url: str, said: str) -> tuple[str, int | None]:
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in _SCHEMES and parts.hostname and not re.search(r"\s", url):
            return parts.hostname, parts.port
    shown = said.rpartition("@")[2]  # what stands before it is a password
    raise InputError(f"{shown!r} is no address of a server", remedy=f"write it as HOST:PORT, such as hub:{LEAF_PORT}")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _say(path: Path, name: str, value: str) -> Iterator[Path]:
    """Let an environment file say it, unless it does. Raises ConfigurationError where it says something else."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    said = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
    if said and said[-1].strip("'\"") != value:
        raise ConfigurationError(
            f"{path} says {name}={said[-1]}, not {value}",
            remedy="correct it there, or say the same here; what one edge has kept, another name does not find",
        )
    if not said:
        text = re.sub(rf"^#{name}=.*\n", "", text, flags=re.MULTILINE)
        yield from _keep(path, f"{text}{name}={value}\n", mode=0o644)


def _fill(path: Path, value: str) -> Iterator[Path]:
    """Write a secret where none is yet."""
    if not _read(path):
        yield from _keep(path, value)


def _keep(path: Path, value: str, *, mode: int = 0o600, once: bool = False) -> Iterator[Path]:
    text = value if value.endswith("\n") else f"{value}\n"
    if path.exists() and (once or path.read_text(encoding="utf-8") == text):
        return
    path.touch(mode=mode)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    yield path


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _configuration(name: str) -> str:
    return (CONFIGURATIONS / name).read_text(encoding="utf-8")

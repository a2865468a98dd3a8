"""The order agent: looks orders up in the shop's PostgreSQL."""

from cuebook.actors import Agent, Retry, Task, handler
from cuebook.examples.support.database import Database
from cuebook.examples.support.models import Found, Order, OrderQuery
from cuebook.examples.support.settings import database_url

__all__ = ["OrderBusyError", "Orders", "find_order"]


class OrderBusyError(RuntimeError):
    """Somebody else holds the order at the moment; the next attempt may get it."""


class Orders(Agent):
    """Knows every order: what it cost, where it is, how it was paid."""

    name = "orders"
    concurrency = 32

    async def start(self) -> None:
        """Take the address; the connection opens with the first look-up."""
        self.database = Database(database_url())

    async def stop(self) -> None:
        """Close the connection."""
        await self.database.close()

    @handler(timeout_s=10, retry=Retry(attempts=5, backoff_s=0.2, factor=2.0))
    async def find(self, query: OrderQuery, task: Task) -> Found:
        """Look one order up. An unknown number is an answer; a busy order or a lost database is tried again."""
        return Found(order=await find_order(self.database, query.order_id, attempt=task.attempt))


async def find_order(database: Database, order_id: str, *, attempt: int) -> Order | None:
    """Return the order, or None if there is no such number. `attempt` counts from 1.

    Raises:
        OrderBusyError: the order is held for longer than this attempt waits, see `busy_attempts` in schema.sql.
        psycopg.OperationalError: the database cannot be reached.
    """
    rows = await database.fetch(
        """
        select id, customer, email, item, amount_cents, currency, status, payment_intent, charge, busy_attempts
        from support.orders where id = %(order_id)s
        """,
        order_id=order_id,
    )
    if not rows:
        return None
    if attempt <= rows[0]["busy_attempts"]:
        raise OrderBusyError(f"order {order_id} is held by the stock count")
    return Order.model_validate(rows[0])

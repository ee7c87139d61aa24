"""
Payments: durable tasks, which PostgreSQL stores and a worker runs.

The worker is part of the web process, or a process of its own, started in the folder `docs/examples`:
`python -m tasks_core worker shop.payments:engine`.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from tasks_core import RetryPolicy, Task, durable
from tasks_core.engines.procrastinate import ProcrastinateEngine

from .database import Database, open_database
from .gateway import PaymentGateway, open_gateway
from .settings import Settings

logger = logging.getLogger("shop.payments")

SETTINGS = Settings.from_environment()

# A PostgreSQL that a Python package installs. In production: ProcrastinateEngine("postgresql://...")
engine = ProcrastinateEngine.embedded(SETTINGS.data / "postgres")


async def note_failed_payment(task: Task[Any], exception: Exception) -> None:
    """Mark the order after the last attempt. The failure is logged as well, because this returns `None`."""
    order_id, _ = task.args
    async with open_resources() as (database, _):
        await mark_as_failed(database, order_id)


@durable(
    name="shop.charge",
    retry=RetryPolicy(attempts=5, on=ConnectionError, backoff=0.2),
    shield=True,
    timeout=30,
    on_error=note_failed_payment,
)
async def charge_durably(order_id: int, authorisation: str) -> None:
    """Take the money. The arguments are serialized, because the worker may be another process on another machine."""
    async with open_resources() as (database, gateway):
        await take_money(database, gateway, order_id, authorisation)


async def take_money(database: Database, gateway: PaymentGateway, order_id: int, authorisation: str) -> None:
    """Take the money and store the receipt. A second call is safe, because the gateway knows the authorisation."""
    receipt = await gateway.capture(authorisation)
    async with database.transaction() as connection:
        await connection.execute("update orders set status = 'paid', receipt = ? where id = ?", (receipt, order_id))
    logger.info("Order %d is paid", order_id)


async def mark_as_failed(database: Database, order_id: int) -> None:
    """Mark the order: no attempt was able to take the money."""
    async with database.transaction() as connection:
        await connection.execute("update orders set status = 'payment failed' where id = ?", (order_id,))


# ---- resources of a worker ----

_shared: ContextVar[tuple[Database, PaymentGateway] | None] = ContextVar("_shared", default=None)


def share(database: Database, gateway: PaymentGateway) -> None:
    """Give the worker of this process the resources of the application; called in its lifespan."""
    _shared.set((database, gateway))


@asynccontextmanager
async def open_resources() -> AsyncIterator[tuple[Database, PaymentGateway]]:
    """Yield the resources of the application. A worker in a process of its own opens new ones for each payment."""
    shared = _shared.get()
    if shared is not None:
        yield shared
        return
    assert SETTINGS.gateway is not None, "The worker needs SHOP_GATEWAY, the URL of the payment gateway"
    async with open_database(SETTINGS.data / "shop.db") as database, open_gateway(SETTINGS.gateway) as gateway:
        yield database, gateway

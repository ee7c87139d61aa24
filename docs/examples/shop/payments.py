"""
The payment as a durable task: `SHOP_DURABLE=1` has it kept by PostgreSQL, and made by a worker.

`python -m tasks_core worker shop.payments:engine`, in the folder `docs/examples`.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tasks_core import RetryPolicy, durable
from tasks_core.engines.procrastinate import ProcrastinateEngine

from .database import Database, open_database
from .gateway import PaymentGateway, open_gateway
from .settings import Settings

logger = logging.getLogger("shop.payments")

SETTINGS = Settings.from_environment()

engine = ProcrastinateEngine.embedded(SETTINGS.data / "postgres")


@durable(
    name="shop.charge",
    retry=RetryPolicy(attempts=5, on=ConnectionError, backoff=0.2),
    shield=True,
    timeout=30,
)
async def charge_durably(order_id: int, authorisation: str) -> None:
    """Take the money, and note it. May run more than once: the gateway knows the authorisation."""
    async with open_resources() as (database, gateway):
        receipt = await gateway.capture(authorisation)
        async with database.transaction() as connection:
            await connection.execute("update orders set status = 'paid', receipt = ? where id = ?", (receipt, order_id))
    logger.info("Order %d is paid", order_id)


@asynccontextmanager
async def open_resources() -> AsyncIterator[tuple[Database, PaymentGateway]]:
    """A worker is another process, perhaps on another machine: it opens what the payment needs."""
    assert SETTINGS.gateway is not None, "The worker needs SHOP_GATEWAY, the URL of the payment gateway"
    async with open_database(SETTINGS.data / "shop.db") as database, open_gateway(SETTINGS.gateway) as gateway:
        yield database, gateway

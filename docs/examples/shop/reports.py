"""The nightly report: the orders so far, as an e-mail to the owner of the shop."""

from tasks_core import Provided
from tasks_fastapi import current_tasks

from .dependencies import TaskConnection, TaskShop
from .resources import Shop

OWNER = "owner@example.org"


async def report_orders(shop: TaskShop = Provided, connection: TaskConnection = Provided) -> None:
    """Count the orders, and send the e-mail. A periodic task has dependencies, and belongs to no request."""
    cursor = await connection.execute("select count(*), coalesce(sum(total), 0) from orders where status = 'paid'")
    row = await cursor.fetchone()
    assert row is not None
    current_tasks().schedule(send_report, shop, row[0], row[1])


def send_report(shop: Shop, orders: int, total: int) -> None:
    """Send an e-mail to the owner."""
    shop.mailer.send(OWNER, "Report", f"Paid orders: {orders}, {total / 100:.2f} EUR\n")

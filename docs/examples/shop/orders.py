"""Orders: a payment that survives the shutdown of the server, and stock that is given back when something fails."""

from typing import Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field
from tasks_core import Provided, chain
from tasks_fastapi import Task, Tasks, retry

from .analytics import track_order_event
from .dependencies import Connection, CurrentShop, TaskConnection
from .gateway import CardDeclinedError
from .payments import charge_durably, mark_as_failed, take_money
from .resources import Shop
from .users import EmailAddress

router = APIRouter(prefix="/orders", tags=["orders"])


class NewOrder(BaseModel):
    product_id: int = Field(examples=[1])
    quantity: int = Field(gt=0, le=100, examples=[2])
    email: EmailAddress = Field(examples=["ann@example.org"])
    card: str = Field(
        max_length=30,
        examples=["4242 4242 4242 4242"],
        description="The sandbox declines `4000 0000 0000 0002` and accepts every other card",
    )


class Order(BaseModel):
    id: int
    product_id: int
    quantity: int
    total: int = Field(description="In cents")
    email: str
    status: str = Field(description="`placed`, then `paid` or `payment failed`")
    receipt: str | None


@router.post("", status_code=201, summary="Place an order", responses={402: {}, 409: {}})
async def create_order(new: NewOrder, shop: CurrentShop, connection: Connection, tasks: Tasks) -> Order:
    """
    Reserve stock, have the card authorised, store the order. Then:

    - **at once**: an analytics event;
    - **after the response**: a confirmation e-mail, tried three times;
    - **by a worker**: the payment, tried five times. It is stored before the response begins, so it is made even when
      the server is killed;
    - **after the response, if it is an error**: the stock is released. Try the card `4000 0000 0000 0002`.
    """
    total = await reserve_stock(connection, new.product_id, new.quantity)
    tasks.after_response.task(when="error").schedule(release_stock, new.product_id, new.quantity)
    try:
        authorisation = await shop.gateway.authorise(new.card, total)
    except CardDeclinedError:
        raise HTTPException(402, "The card was declined") from None
    order = await store_order(connection, new, total)

    tasks.schedule(track_order_event, shop, order.id, "created")
    tasks.after_response.task(on_error=retry(attempts=3, on=ConnectionError)).schedule(send_confirmation, shop, order)
    if shop.durable:
        tasks.after_response.schedule(
            charge_durably.configure(idempotency_key=f"charge-{order.id}"), order.id, authorisation
        )
    else:  # no PostgreSQL: shielded, it survives a deploy, but not a kill
        tasks.after_response.task(
            shield=True,
            timeout=30,
            on_error=chain(retry(attempts=5, on=ConnectionError, backoff=0.2), note_failed_payment),
        ).schedule(charge, shop, order, authorisation)
    return order


@router.get("/{order_id}", summary="Show an order")
async def read_order(order_id: int, connection: Connection) -> Order:
    """Its `status` becomes `paid` when the payment has gone through, some time after the response to the order."""
    cursor = await connection.execute("select * from orders where id = ?", (order_id,))
    row = await cursor.fetchone()
    if row is None:
        raise HTTPException(404, "There is no such order")
    return Order.model_validate(dict(row))


async def reserve_stock(connection: Connection, product_id: int, quantity: int) -> int:
    """Take the pieces from stock, commit, and return what they cost."""
    cursor = await connection.execute(
        "update products set stock = stock - :quantity where id = :id and stock >= :quantity returning price",
        {"id": product_id, "quantity": quantity},
    )
    row = await cursor.fetchone()
    if row is None:
        raise HTTPException(409, "There is no such product, or not enough of it")
    await connection.commit()  # now, so that no lock is held while the gateway answers
    return quantity * int(row["price"])


async def store_order(connection: Connection, new: NewOrder, total: int) -> Order:
    """Insert the row."""
    cursor = await connection.execute(
        "insert into orders (product_id, quantity, total, email, status) values (?, ?, ?, ?, 'placed') returning *",
        (new.product_id, new.quantity, total, new.email),
    )
    row = await cursor.fetchone()
    assert row is not None
    return Order.model_validate(dict(row))


def send_confirmation(shop: Shop, order: Order) -> None:
    """Send an e-mail to the customer."""
    euros = f"{order.total / 100:.2f} EUR"
    shop.mailer.send(order.email, f"Your order {order.id}", f"Thank you. We shall charge {euros}.\n")


async def charge(shop: Shop, order: Order, authorisation: str) -> None:
    """Make the payment in this process."""
    await take_money(shop.database, shop.gateway, order.id, authorisation)


async def note_failed_payment(task: Task[Any], exception: Exception) -> None:
    """Mark the order after the last attempt. The failure is logged as well, because this returns `None`."""
    shop: Shop
    order: Order
    shop, order, _ = task.args
    await mark_as_failed(shop.database, order.id)


async def release_stock(product_id: int, quantity: int, connection: TaskConnection = Provided) -> None:
    """Put the pieces back into stock."""
    await connection.execute("update products set stock = stock + ? where id = ?", (quantity, product_id))

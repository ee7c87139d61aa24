import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from typing import Annotated

import anyio
from fastapi import Depends, FastAPI
from tasks_core import TaskScheduler
from tasks_fastapi import Tasks, add_tasks, get_scheduler, retry

DATABASE = "shop.db"
SCHEMA = """
create table if not exists payments (
    order_id integer primary key,
    cents integer not null,
    state text not null default 'open'
)
"""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with closing(sqlite3.connect(DATABASE)) as connection:
        connection.execute(SCHEMA)
    scheduler = get_scheduler(app)
    scheduler.service(sweep, scheduler)
    yield


app = FastAPI(lifespan=lifespan)
add_tasks(app, shield_timeout=10)


def get_connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(DATABASE, check_same_thread=False)) as connection:
        yield connection
        connection.commit()


Connection = Annotated[sqlite3.Connection, Depends(get_connection)]


@app.post("/orders/{order_id}", status_code=201)
def create_order(order_id: int, cents: int, connection: Connection, tasks: Tasks) -> None:
    connection.execute(
        "insert into payments (order_id, cents) values (?, ?)",
        (order_id, cents),
    )
    # The task starts after the commit of the row. If the process dies, `sweep` schedules the payment again.
    careful = tasks.after_response.task(shield=True, on_error=retry(attempts=3))
    careful.schedule(pay, order_id)


def pay(order_id: int) -> None:
    with closing(sqlite3.connect(DATABASE)) as connection:
        payment = connection.execute(
            "select cents from payments where order_id = ? and state = 'open'",
            (order_id,),
        ).fetchone()
        if payment is not None:
            charge(f"order-{order_id}", payment[0])
            connection.execute(
                "update payments set state = 'paid' where order_id = ?",
                (order_id,),
            )
            connection.commit()


def charge(key: str, cents: int) -> None:
    """Ask the payment provider, which charges once for each key."""


async def sweep(scheduler: TaskScheduler) -> None:
    """Schedule the payments that a dead process left open: at the start, and every minute."""
    while True:
        for order_id in await anyio.to_thread.run_sync(open_payments):
            scheduler.task(shield=True, name="swept pay").schedule(pay, order_id)
        await anyio.sleep(60)


def open_payments() -> list[int]:
    with closing(sqlite3.connect(DATABASE)) as connection:
        rows = connection.execute("select order_id from payments where state = 'open'")
        return [row[0] for row in rows]

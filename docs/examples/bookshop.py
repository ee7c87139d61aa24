import logging
import os
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tasks_core import RetryPolicy, durable, durable_context
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import Provided, Tasks, add_tasks

logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(name)s: %(message)s")
logger = logging.getLogger("bookshop")

database = create_engine(os.environ.get("BOOKSHOP_DATABASE", "sqlite:///bookshop.db"))
new_session = sessionmaker(database, close_resets_only=False)

tasks_database = os.environ.get("TASKS_DATABASE")
if tasks_database is None:
    engine = ProcrastinateEngine.embedded(".cache/tasks-db")
else:
    engine = ProcrastinateEngine(tasks_database)

app = FastAPI()
add_tasks(app, engine=engine, grace_period=5, shield_timeout=10)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    cents: Mapped[int]
    status: Mapped[str] = mapped_column(default="placed")


def get_session() -> Iterator[Session]:
    with new_session.begin() as session:
        yield session


# With the scope "function" the commit comes before the response, and before a worker can start.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]


def send_confirmation(order_id: int, session: SessionDep = Provided) -> None:
    order = session.get_one(Order, order_id)
    logger.info("mail to %s: thank you for order %d", order.email, order.id)


def ask_provider(key: str, cents: int) -> None:
    """Stands for the payment provider, which takes the money once for each key."""
    logger.info("payment %s: %d cents", key, cents)


@durable(name="charge", retry=RetryPolicy(attempts=5, on=ConnectionError), shield=True)
def charge(order_id: int, session: SessionDep = Provided) -> None:
    order = session.get_one(Order, order_id)
    ask_provider(durable_context().idempotency_key, order.cents)
    order.status = "paid"


@app.post("/orders", status_code=201)
def create_order(email: str, cents: int, session: SessionDep, tasks: Tasks) -> dict[str, int]:
    order = Order(email=email, cents=cents)
    session.add(order)
    session.flush()
    tasks.after_response.schedule(send_confirmation, order.id)
    tasks.after_response.schedule(charge.configure(idempotency_key=f"order-{order.id}"), order.id)
    return {"order": order.id}


@app.get("/orders/{order_id}")
def read_order(order_id: int, session: SessionDep) -> dict[str, str]:
    order = session.get(Order, order_id)
    if order is None:
        raise HTTPException(404)
    return {"status": order.status}


if __name__ == "__main__":
    Base.metadata.create_all(database)

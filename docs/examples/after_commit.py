"""
Tasks that start when a database transaction has been committed, and are dropped when it is rolled back.

    python docs/examples/after_commit.py
"""

import logging
import tempfile
from pathlib import Path

import anyio
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tasks_core import TaskPhase, TaskScheduler


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


def after_commit(scheduler: TaskScheduler, session: AsyncSession) -> TaskPhase:
    """
    Make a batch for what is to happen once the transaction of *session* is committed.

    A rollback discards the tasks. For the next transaction of the session, make another batch.
    """
    batch = TaskPhase(scheduler, "after_commit", origin=session)

    def open_batch(_: Session) -> None:
        batch.open()

    def discard_batch(_: Session) -> None:
        batch.discard("the transaction was rolled back")

    # SQLAlchemy calls these in a greenlet on the thread of the event loop; from any other thread it would work too.
    event.listen(session.sync_session, "after_commit", open_batch, once=True)
    event.listen(session.sync_session, "after_rollback", discard_batch, once=True)
    return batch


async def count_orders(engine: AsyncEngine) -> int:
    """What somebody else sees: another connection, and so only what is committed."""
    async with AsyncSession(engine) as session:
        return len((await session.execute(Order.__table__.select())).all())


async def send_receipt(engine: AsyncEngine, email: str) -> int:
    orders = await count_orders(engine)
    print(f"receipt to {email}; committed orders: {orders}")
    return orders


async def place_order(scheduler: TaskScheduler, engine: AsyncEngine, email: str, *, pay: bool) -> TaskPhase:
    async with AsyncSession(engine) as session:
        batch = after_commit(scheduler, session)
        session.add(Order(email=email))
        await session.flush()
        batch.schedule(send_receipt, engine, email)
        if pay:
            await session.commit()
        else:
            await session.rollback()
    return batch


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = create_async_engine(f"sqlite+aiosqlite:///{Path(folder) / 'shop.db'}")
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with TaskScheduler() as scheduler:
            await place_order(scheduler, engine, "ann@example.org", pay=True)
            await place_order(scheduler, engine, "bob@example.org", pay=False)
        print(scheduler.statistics())
        await engine.dispose()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    anyio.run(main)

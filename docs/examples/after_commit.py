"""
Tasks that start when a database transaction has been committed, and are discarded when it is rolled back.

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
    Return a phase that opens when the transaction of *session* is committed.

    A rollback discards its tasks. The next transaction of the session needs a new phase.
    """
    phase = TaskPhase(scheduler, "after_commit", origin=session)

    def open_phase(_: Session) -> None:
        phase.open()

    def discard_phase(_: Session) -> None:
        phase.discard("the transaction was rolled back")

    # SQLAlchemy calls these on the thread of the event loop; both methods may be called from any thread.
    event.listen(session.sync_session, "after_commit", open_phase, once=True)
    event.listen(session.sync_session, "after_rollback", discard_phase, once=True)
    return phase


async def count_orders(engine: AsyncEngine) -> int:
    """Return the number of committed orders, read by another connection."""
    async with AsyncSession(engine) as session:
        return len((await session.execute(Order.__table__.select())).all())


async def send_receipt(engine: AsyncEngine, email: str) -> int:
    orders = await count_orders(engine)
    print(f"receipt to {email}; committed orders: {orders}")
    return orders


async def place_order(scheduler: TaskScheduler, engine: AsyncEngine, email: str, *, pay: bool) -> TaskPhase:
    async with AsyncSession(engine) as session:
        phase = after_commit(scheduler, session)
        session.add(Order(email=email))
        await session.flush()
        phase.schedule(send_receipt, engine, email)
        if pay:
            await session.commit()
        else:
            await session.rollback()
    return phase


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

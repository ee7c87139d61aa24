"""Cuts of durable tasks with a database, whose state a savepoint brings back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from core_postgres import postgres
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, Connection, Engine, StaticPool, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from tasks_core import TaskScheduler, durable, durable_context
from tasks_testing import TasksRecorder, cut_connections, record_tasks, restore_savepoint

FIXTURES = (postgres,)

make_session = sessionmaker[Session]()
make_async_session = async_sessionmaker[AsyncSession]()


@durable(name="savepoint_count")
def count() -> None:
    with make_session() as session:
        session.execute(text("UPDATE orders SET charged = charged + 1"))
        session.commit()


@durable(name="savepoint_count_once")
async def count_once() -> None:
    async with make_async_session() as session:
        charged = await session.scalar(text("SELECT charged FROM orders"))
        if not charged:
            await session.execute(text("UPDATE orders SET charged = charged + 1"))
        await session.commit()


@durable(name="savepoint_count_in_two_transactions")
async def count_in_two_transactions() -> None:
    async with make_async_session() as session:
        if not await session.scalar(text("SELECT paid FROM orders")):
            await session.execute(text("UPDATE orders SET charged = charged + 1"))
            await session.commit()
            await session.execute(text("UPDATE orders SET paid = 1"))
            await session.commit()


@durable(name="savepoint_complete")
def complete() -> None:
    with make_session() as session:
        session.execute(text("UPDATE orders SET charged = charged + 1"))
        durable_context().complete(session)
        session.commit()


@durable(name="savepoint_complete_async")
async def complete_async() -> None:
    async with make_async_session() as session:
        await session.execute(text("UPDATE orders SET charged = charged + 1"))
        await durable_context().complete(session)
        await session.commit()
    await anyio.lowlevel.checkpoint()


def use_real_transactions(engine: Engine) -> None:
    """Let SQLAlchemy begin the transactions of SQLite, whose driver begins them too late for savepoints."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


CREATE = "CREATE TABLE orders (charged INTEGER, paid INTEGER)"
INSERT = "INSERT INTO orders VALUES (0, 0)"


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    use_real_transactions(engine)
    with engine.connect() as connection:
        connection.execute(text(CREATE))
        connection.execute(text(INSERT))
        make_session.configure(bind=connection, join_transaction_mode="create_savepoint")
        yield connection
    engine.dispose()


def test_a_savepoint_brings_the_rows_back(connection: Connection, tasks_recorder: TasksRecorder) -> None:
    async def submit() -> None:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(count)

    def check() -> int:
        return int(connection.execute(text("SELECT charged FROM orders")).scalar_one())

    anyio.run(submit)
    with pytest.raises(AssertionError, match=r"\nthen it ran again, and check\(\) returned 2,\nwithout a cut 1\n"):
        tasks_recorder.run_durable(cut="everywhere", restore=restore_savepoint(connection), check=check)


def test_a_task_that_completes_counts_once(connection: Connection, tasks_recorder: TasksRecorder) -> None:
    async def submit() -> None:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(complete)

    def check() -> int:
        return int(connection.execute(text("SELECT charged FROM orders")).scalar_one())

    anyio.run(submit)
    tasks_recorder.run_durable(cut="everywhere", restore=restore_savepoint(connection), check=check)
    assert check() == 1


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["asyncpg", "psycopg"])
async def engine(anyio_backend: str, postgres: str, request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    server = conninfo_to_dict(postgres)
    query = {"host": str(server["host"])}
    url = URL.create(f"postgresql+{request.param}", str(server["user"]), database=str(server["dbname"]), query=query)
    engine = create_async_engine(url)
    make_async_session.configure(bind=engine)
    yield engine
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE orders"))
    await engine.dispose()


@pytest.mark.anyio
async def test_an_engine_whose_connections_are_closed_by_a_cut(engine: AsyncEngine) -> None:
    on_cut = cut_connections(engine)
    async with engine.begin() as connection:
        await connection.execute(text(CREATE))
        await connection.execute(text(INSERT))

    async def restore() -> None:
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE orders SET charged = 0, paid = 0"))

    async def check() -> tuple[int, ...]:
        async with engine.connect() as connection:
            return tuple((await connection.execute(text("SELECT charged, paid FROM orders"))).one())

    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(count_once)
            await recorder.arun_durable(cut="everywhere", restore=restore, check=check, on_cut=on_cut)
            await scheduler.schedule(complete_async)
            await recorder.arun_durable(cut="everywhere", restore=restore, check=check, on_cut=on_cut)
            assert await check() == (1, 0)
            await scheduler.schedule(count_in_two_transactions)
            with pytest.raises(AssertionError, match=r"returned \(2, 1\),\nwithout a cut \(1, 1\)\n"):
                await recorder.arun_durable(cut="everywhere", restore=restore, check=check, on_cut=on_cut)


@pytest.mark.parametrize("wrong", [None, "sqlite://"])
def test_what_is_no_connection_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^restore_savepoint\(\) takes a sqlalchemy\.Connection, not "):
        restore_savepoint(wrong)

"""The example of a phase of one's own: a database session's commit."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import pytest
from core_support import states
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from tasks_core import TaskScheduler, TaskState

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "after_commit.py"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # aiosqlite knows no other event loop


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("after_commit_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # SQLAlchemy looks annotations up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def engine(example: ModuleType, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(example.Base.metadata.create_all)
    yield engine
    await engine.dispose()


async def test_a_commit_starts_the_tasks_and_they_see_its_rows(example: ModuleType, engine: AsyncEngine) -> None:
    async with TaskScheduler() as scheduler, AsyncSession(engine) as session:
        batch = example.after_commit(scheduler, session)
        session.add(example.Order(email="ann@example.org"))
        await session.flush()
        task = batch.schedule(example.send_receipt, engine, "ann@example.org")
        assert await example.count_orders(engine) == 0
        assert task.state is TaskState.PENDING
        await session.commit()
        assert await task == 1


async def test_a_rollback_discards_the_tasks(
    example: ModuleType, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with TaskScheduler() as scheduler, AsyncSession(engine) as session:
        batch = example.after_commit(scheduler, session)
        session.add(example.Order(email="bob@example.org"))
        await session.flush()
        task = batch.schedule(example.send_receipt, engine, "bob@example.org")
        await session.rollback()
        late = batch.schedule(example.send_receipt, engine, "bob@example.org")
    assert states(task, late) == [TaskState.DISCARDED] * 2
    assert task.reason == "the transaction was rolled back"
    assert await example.count_orders(engine) == 0


async def test_a_block_that_fails_rolls_back_and_discards(example: ModuleType, engine: AsyncEngine) -> None:
    tasks = []

    async def fail_before_the_commit(scheduler: TaskScheduler) -> None:
        async with AsyncSession(engine) as session, session.begin():
            tasks.append(example.after_commit(scheduler, session).schedule(example.send_receipt, engine, "x"))
            session.add(example.Order(email="x"))
            await session.flush()
            raise RuntimeError("no money")

    async with TaskScheduler() as scheduler:
        with pytest.raises(RuntimeError, match="no money"):
            await fail_before_the_commit(scheduler)
    assert states(*tasks) == [TaskState.DISCARDED]


def test_the_example_runs() -> None:
    ran = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=60, check=True)
    assert "receipt to ann@example.org; committed orders: 1\n" in ran.stdout
    assert "bob" not in ran.stdout
    assert "was discarded: the transaction was rolled back" in ran.stderr

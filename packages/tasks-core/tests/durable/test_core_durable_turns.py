"""The engine on PostgreSQL is measured by one process at a time."""

from __future__ import annotations

import pytest
from core_durable_functions import forget, note
from core_postgres import execute, postgres, queue
from tasks_core import TaskScheduler
from tasks_core.engines import DEFAULT_QUEUE, MeteredEngine, QueueStatistics
from tasks_core.engines.procrastinate import ProcrastinateEngine

__all__ = ("forget", "postgres", "queue")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def _default(engine: ProcrastinateEngine, seconds: float = 60.0) -> QueueStatistics | None:
    """Return the numbers of the queue of the test, if the process has the turn."""
    numbers = {one.queue: one for one in await engine.statistics_in_turn(seconds)}
    return numbers.get(DEFAULT_QUEUE)


async def test_one_process_has_the_turn_until_it_ends(postgres: str, queue: str) -> None:
    one, other = (ProcrastinateEngine(postgres, queue=queue, pool_size=2) for _ in range(2))
    assert isinstance(one, MeteredEngine)
    async with TaskScheduler(engine=one) as scheduler, other:
        await scheduler.schedule(note, "a")
        numbers = await _default(one)
        assert numbers is not None
        assert numbers.waiting == 1
        assert await _default(other) is None
        assert await _default(one) is not None, "who asks again keeps the turn"
        await execute(postgres, "UPDATE tasks_turns_v1 SET until = now() - interval '1 s' WHERE queue = %s", queue)
        assert await _default(other) is not None
        assert await _default(one) is None


async def test_each_queue_has_a_turn_of_its_own(postgres: str, queue: str) -> None:
    """A process that does not know a queue, because it has not imported its functions, must not keep others from it."""
    one, other = (ProcrastinateEngine(postgres, queue=name, pool_size=2) for name in (queue, f"{queue}-other"))
    async with one, other:
        assert await _default(one) is not None
        assert await _default(other) is not None


async def test_a_turn_is_as_long_as_was_asked_for(postgres: str, queue: str) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, pool_size=2)
    async with engine:
        await _default(engine, 90.0)
        [[seconds]] = await execute(
            postgres, "SELECT extract(epoch FROM until - now())::float FROM tasks_turns_v1 WHERE queue = %s", queue
        )
    assert 30 < seconds <= 90

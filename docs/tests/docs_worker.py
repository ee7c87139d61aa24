"""Durable tasks of an example, run by a worker of the same process, from an engine in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from tasks_core import TaskScheduler, Worker
from tasks_core.engines import DurableState
from tasks_testing import InMemoryEngine


@asynccontextmanager
async def working(engine: InMemoryEngine, **options: Any) -> AsyncIterator[TaskScheduler]:
    """A scheduler for the block; then a worker runs what was submitted, to the end."""
    async with TaskScheduler(engine=engine) as scheduler:
        yield scheduler
    stop = anyio.Event()
    async with engine, anyio.create_task_group() as group:
        group.start_soon(Worker(engine, **options).run, stop)
        with anyio.fail_after(30):
            for state in (DurableState.PENDING, DurableState.RUNNING):
                while (await engine.find(state=state)).tasks:
                    await anyio.sleep(0.005)
        stop.set()

"""
How much memory 10,000 waiting tasks take, each in a process of its own.

python packages/tasks-fastapi/benchmarks/memory.py
"""

from __future__ import annotations

import asyncio
import logging
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiojobs
import anyio
import fastapi_tasks.tasks
from tasks_core import TaskPhase, TaskScheduler

_NUMBER = 10_000


async def wait() -> None:
    await asyncio.sleep(3600)


def _kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def _grown(schedule: Callable[[], object]) -> float:
    await asyncio.sleep(0)
    before = _kib()
    for _ in range(_NUMBER):
        schedule()
    await asyncio.sleep(0.2)
    return (_kib() - before) / _NUMBER * 1024


async def create_task() -> float:
    running: set[asyncio.Task[None]] = set()

    def schedule() -> None:
        task = asyncio.create_task(wait())
        running.add(task)
        task.add_done_callback(running.discard)

    grown = await _grown(schedule)
    for task in running:
        task.cancel()
    return grown


async def tasks_running() -> float:
    async with TaskScheduler(grace_period=0) as scheduler:
        return await _grown(lambda: scheduler.schedule(wait))


async def tasks_in_a_phase() -> float:
    async with TaskScheduler(grace_period=0) as scheduler:
        batch = TaskPhase(scheduler, "after_response")
        return await _grown(lambda: batch.schedule(wait))


async def tasks_behind_a_limit() -> float:
    async with TaskScheduler(grace_period=0, max_concurrency=1) as scheduler:
        return await _grown(lambda: scheduler.schedule(wait))


async def fastapi_tasks_running() -> float:
    async with anyio.create_task_group() as group:
        scheduler = fastapi_tasks.tasks.TasksScheduler(group)
        grown = await _grown(lambda: scheduler.schedule(wait))
        group.cancel_scope.cancel()
    return grown


async def aiojobs_running() -> float:
    async with aiojobs.Scheduler(limit=None, pending_limit=0) as scheduler:
        before = _kib()
        for _ in range(_NUMBER):
            await scheduler.spawn(wait())
        await asyncio.sleep(0.2)
        grown = (_kib() - before) / _NUMBER * 1024
        await scheduler.close()
    return grown


CASES: dict[str, Callable[[], Awaitable[float]]] = {
    "create_task, running": create_task,
    "aiojobs, running": aiojobs_running,
    "fastapi-tasks, running": fastapi_tasks_running,
    "tasks, running": tasks_running,
    "tasks, waiting for a phase": tasks_in_a_phase,
    "tasks, waiting for a slot": tasks_behind_a_limit,
}


def main() -> None:
    if len(sys.argv) > 1:
        logging.disable()  # the tasks are lost at the end, and would say so
        print(asyncio.run(CASES[sys.argv[1]]()))  # type: ignore[arg-type]  # each is a coroutine function
        return
    print(f"{'10,000 tasks':<28} {'bytes a task':>12} {'of create_task':>15}")
    base = 0.0
    for name in CASES:
        grown = float(subprocess.check_output([sys.executable, __file__, name]))
        base = base or grown
        print(f"{name:<28} {grown:>12.0f} {grown / base:>15.2f}")


if __name__ == "__main__":
    main()

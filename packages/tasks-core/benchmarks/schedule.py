"""
What a task costs, as ratios to what it is made of; exits non-zero when a bar is missed.

    python packages/tasks-core/benchmarks/schedule.py

20,000 no-op coroutines at once: `schedule()` until all have ended, against `asyncio.create_task()` with the set of
strong references that the documentation of asyncio asks for. Then the same with an observer; then 20,000 no-op plain
functions against `loop.run_in_executor()` on a pool of the same size. In each round everything runs once, one after the
other; what is compared are the medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import anyio
from tasks_core import Task, TaskObserver, TaskScheduler, observe

THREADS = 8

Run = Callable[[int], Awaitable[float]]


async def noop() -> None:
    pass


def noop_plainly() -> None:
    pass


async def create_task(count: int) -> float:
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()
    for _ in range(count):
        task = asyncio.create_task(noop())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:  # noqa: ASYNC110  an event would cost create_task() something
        await asyncio.sleep(0)
    return time.perf_counter() - began


async def schedule(count: int, func: Callable[[], Any] = noop) -> float:
    async with TaskScheduler(max_threads=THREADS, grace_period=math.inf) as scheduler:
        began = time.perf_counter()
        for _ in range(count):
            scheduler.schedule(func)
        await scheduler.aclose()
        return time.perf_counter() - began


async def start_soon(count: int) -> float:
    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(noop)
    return time.perf_counter() - began


async def aiojobs_spawn(count: int) -> float:
    import aiojobs

    async with aiojobs.Scheduler(limit=None) as scheduler:
        began = time.perf_counter()
        for _ in range(count):
            await scheduler.spawn(noop())
        await scheduler.wait_and_close()
        return time.perf_counter() - began


async def fastapi_tasks_schedule(count: int) -> float:
    from fastapi_tasks import Tasks  # type: ignore[import-untyped, unused-ignore]  # a peer, not a dependency

    async with anyio.create_task_group() as group:
        tasks = Tasks(group)
        began = time.perf_counter()
        for _ in range(count):
            tasks.schedule(noop)
    return time.perf_counter() - began


async def schedule_plainly(count: int) -> float:
    return await schedule(count, noop_plainly)


async def run_in_executor(count: int) -> float:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(THREADS) as pool:
        began = time.perf_counter()
        await asyncio.gather(*(loop.run_in_executor(pool, noop_plainly) for _ in range(count)))
        return time.perf_counter() - began


class CountingObserver(TaskObserver):
    """What a metric needs: how many have started, and how many have ended in what way."""

    def __init__(self) -> None:
        self.started = 0
        self.finished: dict[str, int] = {}

    def task_started(self, task: Task[Any]) -> None:
        self.started += 1

    def task_finished(self, task: Task[Any]) -> None:
        self.finished[task.state] = self.finished.get(task.state, 0) + 1


def measure(run: Run, count: int, listening: AbstractContextManager[object]) -> float:
    gc.collect()
    with listening:
        return asyncio.run(_timed(run, count)) / count * 1e6


async def _timed(run: Run, count: int) -> float:
    return await run(count)


def available(run: Run) -> bool:
    try:
        asyncio.run(_timed(run, 1))
    except Exception as error:
        print(f"   {run.__name__:24} left out: {type(error).__name__}: {error}")
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    print(f"Python {sys.version.split()[0]}, {options.count:,} tasks, median of {options.rounds}")
    runs: dict[str, Run] = {"create_task": create_task, "schedule": schedule, "schedule, one observer": schedule}
    runs |= {"run_in_executor": run_in_executor, "schedule a plain function": schedule_plainly}
    peers = {"anyio start_soon": start_soon, "aiojobs spawn": aiojobs_spawn, "fastapi-tasks": fastapi_tasks_schedule}
    runs |= {name: run for name, run in peers.items() if available(run)}

    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            listening = observe(CountingObserver()) if "observer" in name else nullcontext()
            times[name].append(measure(run, options.count, listening))
    median = {name: statistics.median(samples) for name, samples in times.items()}

    for name, microseconds in median.items():
        base = "run_in_executor" if "plain" in name or name == "run_in_executor" else "create_task"
        print(f"   {name:26} {microseconds:8.2f} us   {microseconds / median[base]:6.2f} x {base}")
    bars = [
        ("schedule / create_task", median["schedule"] / median["create_task"], 2.0),
        ("with one observer / without", median["schedule, one observer"] / median["schedule"], 1.3),
        ("plain function / run_in_executor", median["schedule a plain function"] / median["run_in_executor"], 1.3),
    ]
    for name, ratio, bar in bars:
        print(f"{'ok  ' if ratio <= bar else 'MISS'} {name}: {ratio:.2f} (bar: {bar})")
    return 0 if all(ratio <= bar for _, ratio, bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())

"""
A million tasks through one scheduler, and a hundred thousand at its end; exits non-zero when a promise is not kept.

    python packages/tasks-core/benchmarks/stress.py [--tasks 1000000] [--pending 100000]

Tasks of every kind, mixed: coroutines, plain functions, failing, retrying, shielded, with a timeout, in batches,
cancelled. After a warm-up, memory at the end is within 5 MiB of that at the start, the last tenth is at most 10 %
dearer than the first, and every task is in one terminal state. Then tasks that wait for a place are shut down: each is
drained or reported, within the two bounds and a second.

How dear a wave of tasks is: its processor time over that of asyncio alone, for bare tasks and calls in threads right
before and after it. Whatever else the machine does slows both, while what grows with the number of tasks shows in the
wave alone. The wall clock stands next to it, and is not judged: it tells as much about the neighbours. All runs on one
core, because what threads cost depends on whether another core happens to be free. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tasks_core import Task, TaskPhase, TaskScheduler, TaskState, chain, retry

WAVE = 2_000
THREADS = 8
MEMORY_BAR = 5.0
SPEED_BAR = 0.10


async def succeed() -> None:
    await asyncio.sleep(0)


def succeed_plainly() -> None:
    pass


async def fail() -> None:
    raise ValueError


async def handle(task: Task[Any], error: Exception) -> bool:
    return True


again = chain(retry(attempts=2, backoff=0), handle)


def schedule_wave(scheduler: TaskScheduler) -> list[Task[Any]]:
    batch = TaskPhase(scheduler, "later")
    ways = [
        lambda: scheduler.schedule(succeed),
        lambda: scheduler.task(shield=True).schedule(succeed),
        lambda: scheduler.schedule(succeed_plainly),
        lambda: scheduler.task(on_error=handle).schedule(fail),
        lambda: scheduler.task(on_error=again).schedule(fail),
        lambda: scheduler.task(timeout=60).schedule(succeed),
        lambda: batch.schedule(succeed),
        lambda: batch.task(shield=True).schedule(succeed_plainly),
        lambda: batch.task(when="error").schedule(succeed),
        lambda: scheduler.schedule(succeed),
    ]
    tasks: list[Task[Any]] = [ways[number % len(ways)]() for number in range(WAVE)]
    batch.open()
    for task in tasks[:: len(ways)][:10]:
        task.cancel()
    return tasks


def resident_mib() -> float:
    """Memory of the process that is in use now; Linux tells it in pages of 4 KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


async def time_asyncio_alone(pool: Executor) -> float:
    """Processor time of bare tasks and calls in threads: no scheduler has to do with them, nor has its garbage."""
    loop = asyncio.get_running_loop()
    gc.disable()
    began = time.process_time()
    for task in [loop.create_task(succeed()) for _ in range(WAVE // 2)]:
        await task
    for call in [loop.run_in_executor(pool, succeed_plainly) for _ in range(WAVE // 10)]:
        await call
    seconds = time.process_time() - began
    gc.enable()
    return seconds


class Progress:
    """What each wave took: by the wall clock, of processor time, and by the measure that is judged."""

    def __init__(self, pool: Executor) -> None:
        self.pool = pool
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.cost: list[float] = []

    async def wave(self, scheduler: TaskScheduler) -> None:
        alone = await time_asyncio_alone(self.pool)
        wall, processor = time.perf_counter(), time.process_time()
        for task in schedule_wave(scheduler):
            await task.wait()
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)
        alone += await time_asyncio_alone(self.pool)
        self.cost.append(self.processor[-1] / alone)


def growth(waves: list[float]) -> float:
    """How much more the last tenth took than the first: of each, its median wave."""
    tenth = max(1, len(waves) // 10)
    return statistics.median(waves[-tenth:]) / statistics.median(waves[:tenth]) - 1


async def many(count: int) -> list[str]:
    with ThreadPoolExecutor(THREADS) as pool:
        async with TaskScheduler(max_threads=THREADS) as scheduler:
            warm_up, progress = Progress(pool), Progress(pool)
            for _ in range(20):
                await warm_up.wave(scheduler)
            gc.collect()
            before = resident_mib()
            for _ in range(max(10, count // WAVE)):
                await progress.wave(scheduler)
            gc.collect()
            grown = resident_mib() - before
    numbers = scheduler.statistics()
    ended = numbers.succeeded + numbers.failed + numbers.cancelled + numbers.discarded
    dearer, processor, wall = map(growth, (progress.cost, progress.processor, progress.wall))
    print(f"{len(progress.wall) * WAVE:,} tasks in {sum(progress.wall):.1f} s: {numbers.as_dict()}")
    print(f"memory {grown:+.2f} MiB")
    print(f"last tenth against first: {dearer:+.1%} (judged: against asyncio alone, right before and after each wave)")
    print(f"  processor time {processor:+.1%}, wall clock {wall:+.1%} (not judged: other programs slow this machine)")
    return failures(
        (grown <= MEMORY_BAR, f"memory grew by more than {MEMORY_BAR} MiB"),
        (dearer <= SPEED_BAR, f"the end is more than {SPEED_BAR:.0%} dearer than the start"),
        (ended == numbers.scheduled, "scheduled is not the sum of the terminal states"),
    )


async def shutdown(count: int) -> list[str]:
    grace_period, shield_timeout = 1.0, 1.0
    gate = asyncio.Event()

    async def wait_at_gate() -> None:
        await gate.wait()

    async with TaskScheduler(
        grace_period=grace_period, shield_timeout=shield_timeout, max_concurrency=100
    ) as scheduler:
        ways = [scheduler, scheduler.task(shield=True)]
        tasks = [ways[number % 2].schedule(wait_at_gate) for number in range(count)]
        began = time.perf_counter()
    took = time.perf_counter() - began
    report = scheduler.report
    assert report is not None
    states = Counter(task.state for task in tasks)
    print(f"{count:,} pending tasks at shutdown: {took:.2f} s, {report}")
    return failures(
        (took <= grace_period + shield_timeout + 1, "shutdown outlasted its bounds by more than a second"),
        (len(report.lost) + report.succeeded + report.failed == count, "the report does not name every task"),
        (states[TaskState.CANCELLED] + states[TaskState.DISCARDED] == count, "a task is in no terminal state"),
    )


def failures(*promises: tuple[bool, str]) -> list[str]:
    return [broken for kept, broken in promises if not kept]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--pending", type=int, default=100_000)
    options = parser.parse_args()
    logging.basicConfig(handlers=[logging.NullHandler()])
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    broken = asyncio.run(many(options.tasks)) + asyncio.run(shutdown(options.pending))
    for promise in broken:
        print(f"MISS {promise}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

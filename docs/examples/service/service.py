"""
A long-running service without a web framework: it takes readings from a queue and writes them to a file.

    python docs/examples/service/service.py readings.txt --backend trio

Send it SIGTERM, or press Ctrl-C: it reads nothing more from the queue, finishes every write that was scheduled, prints
the report of the shutdown, and exits with status 0.
"""

import argparse
import logging
import signal
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import anyio
from tasks_core import Task, TaskConfig, TaskScheduler, retry

logger = logging.getLogger("service")


class Store:
    """Stores readings. A write takes 0.05 seconds, and every tenth one fails."""

    def __init__(self, path: Path) -> None:
        self.path = anyio.Path(path)
        self.attempts = count(1)

    async def write(self, reading: int) -> None:
        await anyio.sleep(0.05)
        if next(self.attempts) % 10 == 0:
            raise ConnectionError("the disk is far away")
        async with await self.path.open("a") as file:
            await file.write(f"{reading}\n")


async def take_from_queue() -> AsyncIterator[int]:
    """Yield readings; stands for a message broker, a socket or a table."""
    for reading in count(1):
        yield reading
        await anyio.sleep(0.02)


async def count_reading(totals: dict[str, int]) -> None:
    """Count a reading. The task has no shield, so shutdown may cancel it."""
    await anyio.sleep(1)
    totals["readings"] = totals.get("readings", 0) + 1


async def consume(scheduler: TaskScheduler, store: Store) -> None:
    writes = scheduler.task(name="write", shield=True, timeout=5, on_error=retry(attempts=5, on=OSError, backoff=0.1))
    totals: dict[str, int] = {}
    async for reading in take_from_queue():
        await scheduler.wait_for_capacity()
        writes.schedule(store.write, reading)
        await scheduler.wait_for_capacity()  # for each task: it waits for one place
        scheduler.schedule(count_reading, totals)
        print(f"took {reading}", flush=True)


async def report(task: Task[object], error: Exception) -> None:
    logger.error("%s failed in its last attempt, number %d attempts: %r", task.name, task.attempts, error)


async def main(path: Path) -> None:
    config = TaskConfig(on_error=report)
    async with (
        TaskScheduler(
            config=config, grace_period=0.2, shield_timeout=10, max_concurrency=50, max_pending=100
        ) as scheduler,
        anyio.create_task_group() as group,
    ):
        group.start_soon(consume, scheduler, Store(path))
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                print(f"stopping because of {signal.Signals(number).name}", flush=True)
                group.cancel_scope.cancel()  # reads nothing more; the exit of the scheduler waits for the writes
                break
    print(scheduler.report, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="the file that readings are appended to")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    anyio.run(main, options.path, backend=options.backend)

"""
How fast durable tasks are, beside procrastinate's own worker, pgqueuer and SAQ on PostgreSQL, in one run.

    hatch run bench:durable
    hatch run bench:durable --number 3000 --rounds 3 --workers 2 tasks procrastinate

A worker process with 32 slots runs no-ops that are stored already. The clock runs from the first task that is stored as
done to the last one, as the database says. All systems take turns, on one server, so that only the ratios of one run
mean something. Then: what a submit of 1, 10, 1,000 and 5,000 tasks takes, and how late a single task starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

SLOTS = 32
QUEUE = "speed"


class Tasks:
    """This project."""

    name = "tasks"
    left = f"SELECT count(*) FROM procrastinate_jobs WHERE queue_name = '{QUEUE}' AND status IN ('todo', 'doing')"

    @staticmethod
    def engine(address: str) -> Any:
        from tasks_core.engines.procrastinate import ProcrastinateEngine

        return ProcrastinateEngine(address, queue=QUEUE)

    async def fill(self, address: str, number: int) -> None:
        from tasks_core.engines import DurableCall

        async with self.engine(address) as engine:
            await engine.submit_many([DurableCall("nothing", {"number": n}, f"k-{n}") for n in range(number)])

    async def work(self, address: str) -> None:
        import anyio
        from tasks_core import Worker, durable

        @durable(name="nothing")
        async def nothing(number: int) -> None: ...

        async with self.engine(address) as engine:
            await Worker(engine, concurrency=SLOTS).run(anyio.Event())


class Procrastinate:
    """Its own worker, with the task that it knows."""

    name = "procrastinate"
    left = f"SELECT count(*) FROM procrastinate_jobs WHERE queue_name = '{QUEUE}-own' AND status IN ('todo', 'doing')"

    @staticmethod
    def app(address: str) -> tuple[Any, Any]:
        from procrastinate import App, PsycopgConnector

        app = App(connector=PsycopgConnector(conninfo=address))

        @app.task(name="nothing", queue=f"{QUEUE}-own")
        async def nothing(number: int) -> None: ...

        return app, nothing

    async def fill(self, address: str, number: int) -> None:
        app, nothing = self.app(address)
        async with Tasks.engine(address), app.open_async():
            await nothing.batch_defer_async(*[{"number": n} for n in range(number)])

    async def work(self, address: str) -> None:
        app, _ = self.app(address)
        async with app.open_async():
            await app.run_worker_async(queues=[f"{QUEUE}-own"], concurrency=SLOTS, install_signal_handlers=False)


class PgQueuer:
    """With the driver that it recommends, asyncpg."""

    name = "pgqueuer"
    left = "SELECT count(*) FROM pgqueuer"

    async def _pool(self, address: str) -> Any:
        import asyncpg
        from psycopg.conninfo import conninfo_to_dict

        host = conninfo_to_dict(address)["host"]
        return await asyncpg.create_pool(host=host, user="postgres", database="postgres", min_size=4)

    async def fill(self, address: str, number: int) -> None:
        from pgqueuer.db import AsyncpgPoolDriver
        from pgqueuer.queries import Queries

        async with await self._pool(address) as pool:
            queries = Queries(AsyncpgPoolDriver(pool))
            if not await pool.fetchval("SELECT to_regclass('pgqueuer') IS NOT NULL"):
                await queries.install()
            await queries.enqueue(["nothing"] * number, [b"{}"] * number, [0] * number)

    async def work(self, address: str) -> None:
        from pgqueuer import PgQueuer as Worker
        from pgqueuer.db import AsyncpgPoolDriver

        async with await self._pool(address) as pool:
            worker: Any = Worker(AsyncpgPoolDriver(pool))

            @worker.entrypoint("nothing")  # type: ignore[untyped-decorator]  # pgqueuer is not installed here
            async def nothing(job: object) -> None: ...

            await worker.run(batch_size=SLOTS // 2, max_concurrent_tasks=SLOTS)


class Saq:
    """SAQ on PostgreSQL."""

    name = "saq"
    left = "SELECT count(*) FROM saq_jobs WHERE status IN ('new', 'queued', 'active')"

    async def fill(self, address: str, number: int) -> None:
        from saq import Queue

        queue = Queue.from_url(address)
        await queue.connect()
        for start in range(0, number, 50):
            await asyncio.gather(*[queue.enqueue("nothing", ttl=0) for _ in range(start, min(start + 50, number))])
        await queue.disconnect()

    async def work(self, address: str) -> None:
        from saq import Queue, Worker

        async def nothing(context: object) -> None: ...

        queue = Queue.from_url(address)
        await queue.connect()
        await Worker(queue, functions=[("nothing", nothing)], concurrency=SLOTS).start()


SYSTEMS: dict[str, Any] = {system.name: system for system in (Tasks(), Procrastinate(), PgQueuer(), Saq())}


def throughput(server: Any, system: Any, number: int, workers: int) -> float:
    """Return tasks in a second, from the first one that is stored as done to the last."""
    asyncio.run(system.fill(server.address, number))
    command = [sys.executable, __file__, "--address", server.address, "--as-worker", system.name]
    processes = [
        subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(workers)
    ]
    try:
        import psycopg

        with psycopg.connect(server.address, autocommit=True) as connection:
            first: tuple[float, int] | None = None
            limit = time.perf_counter() + 120
            while True:
                row = connection.execute(system.left).fetchone()
                now, left = time.perf_counter(), row[0] if row else 0
                if first is None and left < number:
                    first = now, left
                if left == 0 and first is not None:
                    return first[1] / max(now - first[0], 1e-9)
                if now > limit:
                    raise TimeoutError(f"{system.name}: {left} of {number} tasks are left after 120 seconds")
                time.sleep(0.01)
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def fan_out(server: Any, sizes: tuple[int, ...]) -> dict[int, float]:
    """Return the milliseconds in which a phase submits this many durable tasks: the median of several rounds."""
    from tasks_core import DurablePhase, TaskScheduler, durable

    @durable(name="fan-out")
    async def nothing(number: int) -> None: ...

    times: dict[int, list[float]] = {size: [] for size in sizes}
    async with TaskScheduler(engine=Tasks.engine(server.address)) as scheduler:
        for size in sizes * 2:
            for _ in range(3 if size > 500 else 30):
                phase = DurablePhase(scheduler, "after", submit_on="submit")
                began = time.perf_counter()
                for number in range(size):
                    phase.schedule(nothing, number)
                await phase.submit()
                times[size].append((time.perf_counter() - began) * 1000)
    return {size: statistics.median(took) for size, took in times.items()}


async def latency(server: Any, number: int) -> tuple[float, float]:
    """Return the median and the 95th percentile of the milliseconds from the call of submit to the start."""
    import anyio
    from tasks_core import TaskScheduler, Worker, durable

    starts: asyncio.Queue[float] = asyncio.Queue()

    @durable(name="latency")
    async def start() -> None:
        starts.put_nowait(time.perf_counter())

    engine = Tasks.engine(server.address)
    stop, took = anyio.Event(), []
    async with TaskScheduler(engine=engine) as scheduler, anyio.create_task_group() as group:
        group.start_soon(Worker(engine, concurrency=SLOTS).run, stop)
        await anyio.sleep(1)
        for _ in range(number):
            began = time.perf_counter()
            await scheduler.schedule(start)
            took.append((await starts.get() - began) * 1000)
            await anyio.sleep(0.02)
        stop.set()
    return statistics.median(took), statistics.quantiles(took, n=20)[-1]


async def fill_rows(server: Any, status: str, number: int, due: str) -> None:
    """Fill the table with rows that workers have to look past."""
    import psycopg

    async with await psycopg.AsyncConnection.connect(server.address, autocommit=True) as connection:
        await connection.execute("SET session_replication_role = replica")  # no events, no notifications
        await connection.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, scheduled_at)"
            ' SELECT %s, \'tasks_core.run\', \'{"name": "nothing", "args": {"number": 1}, "key": "k"}\','
            f" '{status}', {due} FROM generate_series(1, %s)".encode(),
            [QUEUE, number],
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", choices=[*SYSTEMS, []], help="which (all)")
    parser.add_argument("--number", type=int, default=3000, help="tasks in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", choices=["throughput", "submit", "latency", "kept"], help="one of the parts")
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--as-worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_worker:
        asyncio.run(SYSTEMS[options.as_worker].work(options.address))
        return 0
    from durable_postgres import Postgres

    with Postgres() as server:
        parts: dict[str, Callable[[], None]] = {
            "throughput": lambda: compare(server, options),
            "submit": lambda: print("submit, ms:", json.dumps(asyncio.run(fan_out(server, (1, 10, 1000, 5000))))),
            "latency": lambda: print("from submit to start, ms, p50 and p95:", asyncio.run(latency(server, 200))),
            "kept": lambda: among_other_rows(server, options),
        }
        for name, part in parts.items():
            if options.only in (None, name):
                part()
    return 0


def compare(server: Any, options: argparse.Namespace) -> None:
    systems = options.systems or list(SYSTEMS)
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(options.rounds):
        for name in systems:  # by turns, so that all have the same machine
            rates[name].append(throughput(server, SYSTEMS[name], options.number, options.workers))
    ours = statistics.median(rates.get("tasks", [0.0]))
    for name, values in rates.items():
        median = statistics.median(values)
        each = ", ".join(f"{value:.0f}" for value in values)
        print(f"{name:15} {median:7.0f}/s ({each}); tasks is {ours / median:.1f} times as fast", flush=True)


def among_other_rows(server: Any, options: argparse.Namespace) -> None:
    rates = {"an empty table": [throughput(server, SYSTEMS["tasks"], options.number, 1) for _ in range(2)]}
    for text, status, due in (
        ("100,000 delayed rows", "todo", "now() + interval '1 day'"),
        ("300,000 rows that are kept", "succeeded", "NULL"),
    ):
        asyncio.run(fill_rows(server, status, 100_000 if status == "todo" else 300_000, due))
        left = " AND (scheduled_at IS NULL OR scheduled_at < now() + interval '1 hour')"
        system = Tasks()
        system.left += left
        rates[text] = [throughput(server, system, options.number, 1) for _ in range(2)]
    for text, values in rates.items():
        print(f"among {text}: {', '.join(f'{value:.0f}/s' for value in values)}")


if __name__ == "__main__":
    sys.exit(main())

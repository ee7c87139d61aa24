"""
How far durable tasks go on one PostgreSQL: more workers, more rows, hours of work, and what an idle worker costs.

    hatch run bench:durable-limits                      # everything, about 20 minutes
    hatch run bench:durable-limits curve idle
    hatch run bench:durable-limits steady --seconds 600

`curve` runs no-ops in 1, 2, 4 and 8 worker processes, `rows` in one worker among ever more rows. `idle` counts the
transactions of a worker that has nothing to do. `steady` submits at one rate while a session that holds an old snapshot
keeps PostgreSQL from cleaning up, as a forgotten `BEGIN` does, and purges what is a few seconds old: the rate and the
dead rows of its end are compared with those after its first fifth.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from durable_postgres import Postgres  # noqa: E402  the folder of this file is on the path now
from durable_speed import QUEUE, SLOTS, Tasks, fill_rows, throughput  # noqa: E402

# Seconds for which the tasks of `steady` are kept: six hours of work meet about as many purges in ten minutes.
KEPT = 20


def curve(server: Postgres, options: argparse.Namespace) -> None:
    """Print the rate for each number of workers."""
    throughput(server, Tasks(), 100, 1)  # which makes the tables
    for workers in (1, 2, 4, 8):
        print(f"{workers} workers: {_rate(server, options.number * min(workers, 4), workers):6.0f}/s", flush=True)


def rows(server: Postgres, options: argparse.Namespace) -> None:
    """Print the rate of one worker for each number of rows."""
    throughput(server, Tasks(), 100, 1)
    print(f"1 worker and an empty table: {_rate(server, options.number, 1):6.0f}/s", flush=True)
    for text, status, due, number in (
        ("100,000 delayed", "todo", "now() + interval '1 day'", 100_000),
        ("1,000,000 kept", "succeeded", "NULL", 1_000_000),
    ):
        asyncio.run(fill_rows(server, status, number, due))
        # They came over weeks, and not a second ago: autovacuum has seen them.
        server.execute("VACUUM ANALYZE")
        print(f"1 worker among {text} rows: {_rate(server, options.number, 1):6.0f}/s", flush=True)


def _rate(server: Postgres, number: int, workers: int) -> float:
    rates = []
    for _ in range(3):
        system = Tasks()
        # The look at what is left must not read the other rows: it would take the time that is measured.
        [[last]] = server.query("SELECT max(id) FROM procrastinate_jobs")
        system.left += f" AND id > {last}"
        rates.append(throughput(server, system, number, workers))
    return statistics.median(rates)


def idle(server: Postgres, options: argparse.Namespace) -> None:
    """Print the transactions in a second of a worker without tasks, less those of the server itself."""
    with _worker(server):
        time.sleep(20)  # a session reports what it has done up to ten seconds later
        busy = _rate_of_transactions(server, options.idle)
    time.sleep(20)
    own = _rate_of_transactions(server, options.idle)
    print(f"an idle worker: {busy - own:.2f} transactions a second (and {own:.2f} of PostgreSQL itself)")


def _rate_of_transactions(server: Postgres, seconds: float) -> float:
    before = _transactions(server)
    time.sleep(seconds)
    return (_transactions(server) - before) / seconds


def _transactions(server: Postgres) -> int:
    [[number]] = server.query("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'")
    return int(number)


@contextmanager
def _worker(server: Postgres) -> Iterator[None]:
    command = [sys.executable, __file__, "--address", server.address]
    process = subprocess.Popen(command, cwd=HERE)
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def _work(address: str) -> None:
    import anyio
    from tasks_core import Worker, durable
    from tasks_core.engines.procrastinate import ProcrastinateEngine

    @durable(name="nothing")
    async def nothing(number: int) -> None: ...

    async with ProcrastinateEngine(address, queue=QUEUE, keep_finished=KEPT) as engine:
        await Worker(engine, concurrency=SLOTS).run(anyio.Event())


def steady(server: Postgres, options: argparse.Namespace) -> None:
    """Print the rate and the dead rows over the time."""
    with _worker(server):
        asyncio.run(_steady(server, options))


async def _steady(server: Postgres, options: argparse.Namespace) -> None:
    import psycopg
    from tasks_core.engines import DurableCall

    samples: list[tuple[float, int, int]] = []
    began = time.monotonic()
    async with Tasks.engine(server.address) as engine, await psycopg.AsyncConnection.connect(server.address) as old:
        number = 0
        while (passed := time.monotonic() - began) < options.seconds:
            if int(passed / 60) != int((passed - 1) / 60):  # a snapshot that is a minute old, all the time
                await old.rollback()
                await old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                await old.execute("SELECT count(*) FROM procrastinate_workers")
            calls = [DurableCall("nothing", {"number": n}, f"steady-{n}") for n in range(number, number + options.rate)]
            number += options.rate
            await engine.submit_many(calls)
            await asyncio.sleep(max(0.0, began + number / options.rate - time.monotonic()))
            samples.append(_sample(server))
            if len(samples) % 30 == 0:
                print("after {:4.0f} s: {:6d} waiting, {:7d} dead rows".format(passed, *samples[-1][1:]), flush=True)
    early, late = samples[len(samples) // 5 : 2 * len(samples) // 5], samples[-len(samples) // 5 :]
    for text, place in (("waiting", 1), ("dead rows", 2)):
        first, last = (statistics.median(sample[place] for sample in part) for part in (early, late))
        print(f"{text}: {first:.0f} in the second fifth, {last:.0f} in the last one")


def _sample(server: Postgres) -> tuple[float, int, int]:
    [[waiting]] = server.query(
        f"SELECT count(*) FROM procrastinate_jobs WHERE queue_name = '{QUEUE}' AND status = 'todo'"
    )
    [[dead]] = server.query("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'procrastinate_jobs'")
    return time.monotonic(), int(waiting), int(dead)


def main() -> int:
    parts: dict[str, Callable[[Postgres, argparse.Namespace], None]] = {
        "curve": curve,
        "rows": rows,
        "idle": idle,
        "steady": steady,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="which (all)")
    parser.add_argument("--number", type=int, default=5000, help="tasks in a round of the curve")
    parser.add_argument("--idle", type=int, default=40, help="seconds")
    parser.add_argument("--seconds", type=int, default=600, help="of steady work")
    parser.add_argument("--rate", type=int, default=300, help="tasks in a second of steady work")
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.address:
        asyncio.run(_work(options.address))
        return 0
    for name in options.parts or parts:
        with Postgres() as server:
            parts[name](server, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

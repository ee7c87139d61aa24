"""What the processes of `durable.py` run: a web application, its durable tasks, and the engine for a worker."""

import asyncio
import datetime
import os
import random
import time
from pathlib import Path

if os.environ.get("DURABLE_CLOCK") == "wrong":  # before anything else has a reference to the function
    _real = time.time
    time.time = lambda: _real() + 86_400

    class _Wrong(datetime.datetime):
        __slots__ = ()

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "_Wrong":
            return cls.fromtimestamp(time.time(), tz)

    datetime.datetime = _Wrong  # type: ignore[misc]  # for the modules that are imported from here on

import psycopg
from fastapi import FastAPI
from tasks_core import RetryPolicy, durable, durable_context, every
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import Tasks, add_tasks

LOG = Path(os.environ.get("DURABLE_LOG", os.devnull))

engine = ProcrastinateEngine(
    os.environ.get("DURABLE_ADDRESS", ""),
    queue=os.environ.get("DURABLE_QUEUE", "tasks"),
    heartbeat=float(os.environ.get("DURABLE_HEARTBEAT", "4")),
    max_deaths=int(os.environ.get("DURABLE_MAX_DEATHS", "5")),
)


def write(*words: object) -> None:
    """Append a line in one piece: several processes write to the file."""
    with LOG.open("a") as log:
        log.write(" ".join(map(str, words)) + "\n")


@durable
async def mark(name: str) -> None:
    write("done", name, os.getpid())


@durable(retry=RetryPolicy(attempts=1))
async def hang_at_first(name: str) -> None:
    attempt = durable_context().attempt
    write("started", name, os.getpid(), attempt)
    if attempt == 1:
        await asyncio.sleep(3600)
    write("done", name, os.getpid(), attempt)


@durable(retry=None)
async def take_effect(name: str) -> None:
    """Write a row, and end with it; say at each step how far it is, so that a test can kill the worker there."""
    write("began", name, os.getpid())
    async with await psycopg.AsyncConnection.connect(engine.conninfo) as connection:
        await connection.execute("INSERT INTO effects VALUES (%s)", [name])
        await durable_context().complete(connection)
        write("stored", name, os.getpid())
        await asyncio.sleep(random.uniform(0, 0.02))
    write("committed", name, os.getpid())
    await asyncio.sleep(random.uniform(0, 0.02))
    write("done", name, os.getpid())


if "DURABLE_PERIODIC" in os.environ:

    @durable(periodic=every(seconds=1))
    async def often() -> None:
        write("ran", durable_context().idempotency_key.split()[-1], os.getpid())


def _workers() -> int:
    return len({line.split()[2] for line in LOG.read_text().splitlines() if line.startswith("came ")})


@durable
async def meet(name: str) -> None:
    """Done as soon as two workers have one of these: a fast worker cannot take every task before the other starts."""
    write("came", name, os.getpid())
    while _workers() < 2:  # noqa: ASYNC110  the other worker is another process
        await asyncio.sleep(0.05)
    write("done", name, os.getpid())


async def in_memory(name: str) -> None:
    await asyncio.sleep(0.1)  # as if it did something
    write("done", name, os.getpid())


app = FastAPI()
add_tasks(app, engine=engine)


@app.post("/durable/{name}")
async def schedule_durable(name: str, tasks: Tasks) -> str:
    tasks.after_response.schedule(mark, name)
    return name


@app.post("/memory/{name}")
async def schedule_in_memory(name: str, tasks: Tasks) -> str:
    tasks.after_response.schedule(in_memory, name)
    return name

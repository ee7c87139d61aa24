"""What the processes of `durable.py` run: a web application, its durable tasks, and the engine for a worker."""

import asyncio
import os
from pathlib import Path

from fastapi import FastAPI
from tasks_core import RetryPolicy, durable, durable_context
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import Tasks, add_tasks

LOG = Path(os.environ.get("DURABLE_LOG", os.devnull))

engine = ProcrastinateEngine(os.environ.get("DURABLE_ADDRESS", ""), queue=os.environ.get("DURABLE_QUEUE", "tasks"))


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

"""An application whose job emits without end, for clients that follow it while the server is stopped."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from fastapi import FastAPI
from tasks_core import emit
from tasks_fastapi import Tasks, add_tasks
from tasks_fastapi.jobs import Job, MakeJob, jobs_router

from servers.event_log import EventLog

log = EventLog(Path(os.environ["TASKS_EVENTS"]))
logging.basicConfig(level=logging.INFO)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    log.note("lifespan opened")
    yield
    log.note("lifespan closed")


app = FastAPI(lifespan=lifespan)
add_tasks(app, grace_period=0.5)
app.include_router(jobs_router(ids_are_enough=True), prefix="/jobs")


async def generate(size: int) -> None:
    try:
        while True:
            emit("x" * size)
            await anyio.sleep(0.005)
    finally:
        log.note("job cancelled")


@app.post("/answers", status_code=202)
async def answer(tasks: Tasks, job: MakeJob, size: int = 1) -> Job[None]:
    return job(tasks.schedule(generate, size))

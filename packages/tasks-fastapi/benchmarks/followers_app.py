"""The application that `followers.py` measures: a job that says the time, some times in a second."""

from __future__ import annotations

import time

import anyio
from fastapi import FastAPI
from tasks_core import emit
from tasks_fastapi import Tasks, add_tasks
from tasks_fastapi.jobs import Job, MakeJob, jobs_router

app = FastAPI()
add_tasks(app, grace_period=0)
app.include_router(jobs_router(ids_are_enough=True), prefix="/jobs")


begun = anyio.Event()


async def clock(events: int, pause: float) -> float:
    """Return by how much the last event was late: followers make no task wait."""
    await begun.wait()
    begin = time.monotonic()
    for number in range(events):
        await anyio.sleep(max(0.0, begin + number * pause - time.monotonic()))
        emit(time.monotonic())
    return time.monotonic() - (begin + (events - 1) * pause)


@app.post("/clocks", status_code=202)
async def start(events: int, pause: float, tasks: Tasks, job: MakeJob) -> Job[float]:
    return job(tasks.schedule(clock, events, pause))


@app.post("/begin")
async def begin() -> None:
    global begun
    begun.set()
    begun = anyio.Event()

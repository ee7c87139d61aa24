"""What the chaos command lets servers run: requests that schedule jobs of every kind, each with an effect on disk."""

import logging
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from fastapi import FastAPI
from servers.event_log import EventLog
from tasks_fastapi import RequestTasks, Tasks, add_tasks, get_scheduler, retry

# A job of this many seconds can only be lost; the grace period is shorter than what shielded jobs may take.
HOPELESS = 30.0
GRACE_PERIOD = 0.15
SHIELDED_AT_MOST = 0.25
# How the names of jobs without a shield end.
PLAIN = "-plain"

log = EventLog(Path(os.environ["TASKS_EVENTS"]))


class NotingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.note(f"log {record.getMessage()}")


logging.getLogger("tasks_core").addHandler(NotingHandler())
logging.getLogger("tasks_core").setLevel(logging.INFO)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    log.note("lifespan opened")
    yield
    log.note("lifespan closed")


app = FastAPI(lifespan=lifespan)
add_tasks(app, grace_period=GRACE_PERIOD)


@app.post("/jobs/{number}")
async def create_jobs(number: int, tasks: Tasks) -> None:
    dice = random.Random(number)
    schedule_jobs(tasks, number, dice)
    await anyio.sleep(dice.uniform(0, 0.02))


@app.post("/jobs-from-thread/{number}")
def create_jobs_from_thread(number: int, tasks: Tasks) -> None:
    dice = random.Random(number)
    schedule_jobs(tasks, number, dice)
    time.sleep(dice.uniform(0, 0.02))


def schedule_jobs(tasks: RequestTasks, number: int, dice: random.Random) -> None:
    log.note(f"request {number}")
    for phase in (tasks, tasks.after_route, tasks.after_response):
        for shield in (True, False):
            name = f"job-{number}-{phase.name}{'' if shield else PLAIN}"
            kind = dice.choice((work, work_in_thread, fail_once, schedule_another))
            hopeless = not shield and dice.random() < 0.1
            phase.task(
                name=name,
                shield=shield,
                when=None if phase is tasks else "always",
                on_error=retry(attempts=2, backoff=0.01) if kind is fail_once else None,
            ).schedule(kind, name, HOPELESS if hopeless else dice.uniform(0, SHIELDED_AT_MOST))
            log.note(f"accepted {name}")


async def work(name: str, seconds: float) -> None:
    await anyio.sleep(seconds)
    log.note(f"done {name}")


def work_in_thread(name: str, seconds: float) -> None:
    time.sleep(seconds)
    log.note(f"done {name}")


failed_once: set[str] = set()


async def fail_once(name: str, seconds: float) -> None:
    await anyio.sleep(seconds / 2)
    if name not in failed_once:
        failed_once.add(name)
        raise ConnectionError("try again")
    await work(name, seconds / 2)


async def schedule_another(name: str, seconds: float) -> None:
    await anyio.sleep(seconds / 2)
    another = f"another-{name}"
    get_scheduler(app).task(name=another, shield=PLAIN not in name).schedule(work, another, seconds / 2)
    log.note(f"accepted {another}")
    log.note(f"done {name}")

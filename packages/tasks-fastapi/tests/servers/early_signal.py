"""An application that is stopped before it serves: its import, or its startup, waits until the signal was sent."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from tasks_fastapi import add_tasks, get_scheduler

from servers.event_log import EventLog

log = EventLog(Path(os.environ["TASKS_EVENTS"]))


class NotingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.note(f"log {record.levelname} {record.getMessage()}")


logging.getLogger("tasks_core").addHandler(NotingHandler())
logging.getLogger("tasks_core").setLevel(logging.INFO)

if os.environ["TASKS_STOP_DURING"] == "import":
    log.note("import")
    log.wait_for("signal sent")


async def precious() -> None:
    log.note("precious ran")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    log.note("lifespan opened")
    get_scheduler(app).task(shield=True).schedule(precious)
    if os.environ["TASKS_STOP_DURING"] == "startup":
        log.note("startup")
        await log.noted("signal sent")
    try:
        yield
    finally:
        log.note("lifespan closed")


app = FastAPI(lifespan=lifespan)
add_tasks(app)

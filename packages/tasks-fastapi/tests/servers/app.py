"""The application that the servers run. It notes what happens, and waits for what the test notes."""

import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from tasks_fastapi import Tasks, add_tasks, get_scheduler

from servers.event_log import EventLog

GRACE_PERIOD = 0.5

log = EventLog(Path(os.environ["TASKS_EVENTS"]))


class NotingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.note(f"log {record.levelname} {self.format(record)}")


for name in ("tasks_core", "tasks_fastapi"):
    logging.getLogger(name).addHandler(NotingHandler())
    logging.getLogger(name).setLevel(logging.INFO)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    get_scheduler(app).schedule(ran, "startup task")
    if "TASKS_FAIL_STARTUP" in os.environ:
        raise RuntimeError("this application does not start")
    async with anyio.create_task_group() as background:
        background.start_soon(note_cancellation_by_the_server)
        log.note("lifespan opened")
        yield
        log.note("lifespan closed")
        background.cancel_scope.cancel()


async def note_cancellation_by_the_server() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        if "lifespan closed" not in log.names():
            log.note("lifespan cancelled")


app = FastAPI(lifespan=lifespan)
add_tasks(app, grace_period=GRACE_PERIOD)


async def ran(what: str) -> None:
    log.note(f"{what} ran")


async def session() -> AsyncIterator[None]:
    """Commits when the request is over, and rolls back when it failed."""
    try:
        yield
    except BaseException:
        log.note("rolled back")
        raise
    log.note("committed")


Session = Annotated[None, Depends(session)]


# ---- phases ----


@app.post("/orders")
async def create_order(tasks: Tasks, session: Session) -> dict[str, str]:
    tasks.schedule(ran, "immediate")
    tasks.after_route.schedule(ran, "after_route")
    tasks.after_response.schedule(hold_loop_until_client_has_response)
    tasks.after_response.task(name="on_error", when="error").schedule(ran, "after_response on error")
    await log.noted("immediate ran")
    log.note("endpoint returns")
    return {"last byte": "!"}


async def hold_loop_until_client_has_response() -> None:
    """While this runs nothing can leave the process that has not left it before."""
    log.note("loop held")
    deadline = time.monotonic() + 5
    while "client has response" not in log.names() and time.monotonic() < deadline:
        time.sleep(0.005)  # noqa: ASYNC251  blocking the loop is the point
    log.note("loop released")


@app.get("/stream")
async def stream(tasks: Tasks, session: Session) -> StreamingResponse:
    tasks.after_route.schedule(ran, "after_route")
    tasks.after_response.schedule(ran, "after_response")
    tasks.after_response.task(name="on_error", when="error").schedule(ran, "after_response on error")
    return StreamingResponse(two_chunks())


async def two_chunks() -> AsyncIterator[bytes]:
    yield b"first chunk"
    await log.noted("client wants more")
    log.note("last chunk")
    yield b"last chunk"


@app.get("/late")
async def late() -> str:
    return "served"


@app.get("/patient")
async def patient(tasks: Tasks, session: Session) -> str:
    """Takes its time, which shutdown may cut short."""
    tasks.after_response.task(when="always", shield=True).schedule(ran, "after_response always")
    tasks.after_response.schedule(ran, "after_response")
    tasks.after_response.task(name="on_error", when="error").schedule(ran, "after_response on error")
    log.note("endpoint waits")
    try:
        await log.noted("client wants response")
    except anyio.get_cancelled_exc_class():
        log.note("endpoint cancelled")
        raise
    return "patient"


# ---- work that shutdown finds ----


@app.post("/work")
async def work(tasks: Tasks) -> str:
    tasks.schedule(obliging)
    started = [
        tasks.schedule(stubborn),
        tasks.task(shield=True).schedule(precious),
        tasks.schedule(hanging_thread),
    ]
    for task in started:
        await task.started.wait()
    return "all started"


async def obliging() -> None:
    """Ends by itself when it is asked to, and needs a part of the grace period for that."""
    await get_scheduler(app).stopping.wait()
    await anyio.sleep(GRACE_PERIOD / 5)
    log.note("obliging finished in the grace period")


async def stubborn() -> None:
    """Ends only when it must."""
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        log.note("stubborn cancelled")
        raise


async def precious() -> None:
    """Ends when the other tasks have ended and the test allows it."""
    try:
        await log.noted("stubborn cancelled")
        await log.noted("precious may finish")
    except anyio.get_cancelled_exc_class():
        log.note("precious cancelled")
        raise
    log.note("precious finished")


def hanging_thread() -> None:
    threading.Event().wait()


# ---- several workers ----


@app.get("/busy")
async def busy(tasks: Tasks) -> StreamingResponse:
    tasks.schedule(obliging)
    return StreamingResponse(busy_chunks())


async def busy_chunks() -> AsyncIterator[bytes]:
    log.note("worker is busy")
    yield b"busy\n"
    while "worker may go on" not in log.names():
        time.sleep(0.005)  # noqa: ASYNC251  the other worker has to take the next connection
    yield b"done"

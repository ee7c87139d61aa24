"""The test of a service that the page about services shows."""

# --8<-- [start:consumer]
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.testclient import TestClient
from tasks_core import TaskScheduler
from tasks_fastapi import add_tasks, get_scheduler
from tasks_testing import TasksRecorder, call


async def deliver(message: str) -> None: ...


async def consume(queue: asyncio.Queue[str], scheduler: TaskScheduler) -> None:
    while True:
        scheduler.schedule(deliver, await queue.get())


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.queue = asyncio.Queue()
    scheduler = get_scheduler(app)
    scheduler.service(consume, app.state.queue, scheduler)
    yield


app = FastAPI(lifespan=lifespan)
add_tasks(app)


@app.post("/messages")
async def send(text: str) -> None:
    app.state.queue.put_nowait(text)


def test_message_is_delivered(tasks_recorder: TasksRecorder) -> None:
    with TestClient(app) as client:
        client.post("/messages?text=hello")
        tasks_recorder.wait_for(call(deliver, "hello"))
        assert [service.name for service in tasks_recorder.services] == ["consume"]


# --8<-- [end:consumer]

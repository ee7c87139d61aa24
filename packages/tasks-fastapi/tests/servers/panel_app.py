"""The application whose page the browser opens; run by `test_fastapi_servers_panel.py`."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import Depends, FastAPI, HTTPException, Request
from tasks_core import current_task, durable, every
from tasks_core.engines import DurableCall
from tasks_fastapi import add_tasks, get_scheduler
from tasks_fastapi.panel import tasks_panel
from tasks_testing import InMemoryEngine

# A name with HTML in it must stay a name. The pictures of the documentation have an ordinary one.
EVIL = "sync_search" if "PANEL_PICTURES" in os.environ else "<img src=x onerror=\"document.title='owned'\">"
engine = InMemoryEngine()


@durable(name="panel.charge")
async def charge(cents: int) -> None:
    raise ConnectionError("gateway")


@durable(name=EVIL)
async def evil() -> None: ...


async def fail() -> None:
    raise KeyError(EVIL)


async def wait_for_cancel() -> None:
    await anyio.sleep_forever()


async def clean_up() -> None:
    assert current_task() is not None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    for number in range(3):
        await engine.submit(DurableCall("panel.charge", {"cents": 4711}, f"charge-{number}"))
    yield


def admin(request: Request) -> None:
    if "admin=1" not in request.headers.get("cookie", ""):
        raise HTTPException(401)


app = FastAPI(title="Shop", lifespan=lifespan)
add_tasks(app, engine=engine, worker_concurrency=2)
app.include_router(tasks_panel(), prefix="/_tasks", dependencies=[Depends(admin)])
app.include_router(tasks_panel(), prefix="/open")


@app.post("/begin")
async def begin(request: Request) -> None:
    """Start what the page shows, when the failed tasks of the worker are there."""
    scheduler = get_scheduler(request.app)
    while len((await engine.find(limit=10)).tasks) < 3 or engine._due:
        await anyio.sleep(0.01)
    await engine.pause(name=EVIL)
    await engine.submit(DurableCall(EVIL, {}, "evil"))
    scheduler.schedule(fail)
    scheduler.task(name=EVIL).schedule(wait_for_cancel)
    scheduler.periodic(every(hours=1)).schedule(clean_up)
    logging.getLogger("tasks_core").warning("Task 'slow' kept the event loop from turning for 1.35 s")


@app.post("/more")
async def more(request: Request) -> None:
    get_scheduler(request.app).task(name="one more").schedule(wait_for_cancel)

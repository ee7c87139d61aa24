"""`health_router()`: alive, ready, and what is wrong."""

from __future__ import annotations

import json

import anyio
import pytest
from asgi_spy import request, running, turns
from fastapi import FastAPI
from tasks_core.engines import EngineUnavailableError
from tasks_fastapi import add_tasks, get_scheduler, health_router
from tasks_testing import InMemoryEngine

pytestmark = pytest.mark.anyio


def make(engine: InMemoryEngine | None = None, *, works: bool = False, max_pending: int | None = None) -> FastAPI:
    app = FastAPI()
    add_tasks(app, engine=engine, worker_concurrency=2 if works else None, max_concurrency=1)
    app.include_router(health_router(max_pending=max_pending), prefix="/health")
    return app


async def ready(app: FastAPI) -> tuple[int, list[str]]:
    answer = await request(app, "/health/ready")
    body = json.loads(answer.body)
    assert body["ready"] is (answer.status == 200)
    return answer.status, body["problems"]


async def test_alive_and_ready_while_the_application_runs() -> None:
    app = make()
    assert await ready(app) == (200, []), "without a lifespan, each request has its own tasks"
    async with running(app):
        assert json.loads((await request(app, "/health/alive")).body) == {"alive": True}
        assert await ready(app) == (200, [])


async def test_not_ready_while_it_drains() -> None:
    app = make()
    go_on = anyio.Event()
    async with anyio.create_task_group() as group, running(app):
        scheduler = get_scheduler(app)
        scheduler.task(shield=True).schedule(go_on.wait)
        group.start_soon(scheduler.aclose)
        await turns(20)
        assert await ready(app) == (503, ["The application is being stopped"])
        go_on.set()


async def test_not_ready_with_too_many_waiting_tasks() -> None:
    app = make(max_pending=1)
    go_on = anyio.Event()
    async with running(app):
        for _ in range(3):
            get_scheduler(app).schedule(go_on.wait)
        await turns(20)
        assert await ready(app) == (503, ["2 tasks are waiting"])
        go_on.set()


class Away(InMemoryEngine):
    async def pauses(self) -> tuple[()]:
        raise EngineUnavailableError("PostgreSQL did not acknowledge")


async def test_not_ready_without_its_engine() -> None:
    app = make(Away())
    async with running(app):
        assert await ready(app) == (503, ["PostgreSQL did not acknowledge"])


async def test_application_that_only_submits_needs_no_worker() -> None:
    engine = InMemoryEngine()
    app = make(engine)
    await engine.pause(queue="default")
    async with running(app):
        assert await ready(app) == (200, [])


async def test_application_that_runs_durable_tasks_needs_its_worker() -> None:
    engine = InMemoryEngine()
    app = make(engine, works=True)
    async with running(app):
        await turns(20)
        assert await ready(app) == (200, [])
        await engine.pause(queue="default")
        assert await ready(app) == (503, ["Queue 'default' is paused"])

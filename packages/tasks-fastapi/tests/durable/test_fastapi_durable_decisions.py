"""What the page for operators shows of a task that has cancelled itself."""

from __future__ import annotations

import time

import pytest
from fastapi import Depends, FastAPI
from starlette.testclient import TestClient
from tasks_core import Cancel, durable
from tasks_core.engines import DurableState
from tasks_fastapi import Tasks, add_tasks
from tasks_fastapi.panel import tasks_panel
from tasks_testing import InMemoryEngine

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")


@durable(name="panel.withdrawn")
async def remind() -> None:
    raise Cancel("the <order> was withdrawn")


def allow() -> None: ...


def test_the_page_has_the_reason_of_a_cancelled_task() -> None:
    engine, app = InMemoryEngine(), FastAPI()
    add_tasks(app, engine=engine, worker_concurrency=1)
    app.include_router(tasks_panel(), prefix="/_tasks", dependencies=[Depends(allow)])

    @app.post("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(remind)

    async def is_cancelled() -> bool:
        return (await engine.status("0")).state is DurableState.CANCELLED

    with TestClient(app) as client:
        client.post("/")
        assert client.portal is not None
        until = time.monotonic() + 30
        while not client.portal.call(is_cancelled):
            assert time.monotonic() < until
        page = client.get("/_tasks", params={"task": "0"}).text
    assert "the &lt;order&gt; was withdrawn" in page

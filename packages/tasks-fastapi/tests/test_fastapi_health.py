"""The health endpoint that the documentation shows."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import anyio
import pytest
from asgi_spy import request, running, turns
from tasks_fastapi import get_scheduler

pytestmark = pytest.mark.anyio

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "health.py"


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("health_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_it_says_what_tasks_do(example: ModuleType) -> None:
    app = example.app
    go_on = anyio.Event()
    async with running(app):
        running_task = get_scheduler(app).schedule(go_on.wait)
        await running_task.started.wait()
        assert (await request(app, "/reports/sales", "POST")).status == 202
        await turns(50)
        answer = await request(app, "/health")
        go_on.set()
    assert answer.status == 200
    body = json.loads(answer.body)
    assert body["healthy"] is True
    assert body["tasks"].pop("oldest_age") >= 0
    assert body["tasks"] == {
        "scheduled": 2,
        "pending": 0,
        "running": 1,
        "retrying": 0,
        "succeeded": 1,
        "failed": 0,
        "cancelled": 0,
        "discarded": 0,
        "by_phase": {"none": 1},
        "periodic": {},
        "services": 0,
    }


async def test_it_says_when_too_much_is_waiting(example: ModuleType) -> None:
    app = example.app
    go_on = anyio.Event()
    async with running(app):
        scheduler = get_scheduler(app)
        first = [scheduler.schedule(go_on.wait) for _ in range(50)]
        await first[-1].started.wait()
        for _ in range(example.MAX_PENDING):
            scheduler.schedule(go_on.wait)
        health = await request(app, "/health")
        refused = await request(app, "/reports/sales", "POST")
        go_on.set()
    assert health.status == 503
    assert json.loads(health.body)["tasks"]["pending"] == example.MAX_PENDING
    assert refused.status == 503
    assert refused.headers["retry-after"] == "5"

"""The six things that people need most, as the documentation shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
import tasks_fastapi
from asgi_lifespan import LifespanManager
from httpx import ASGITransport
from starlette.testclient import TestClient
from tasks_testing import record_tasks

# Imported here, so that the suites that run in this process do not import them anew, each for itself.
IMPORTED = (tasks_fastapi, LifespanManager, ASGITransport, TestClient, record_tasks)

pytest_plugins = ["pytester"]

NEEDS = """
import pytest
from app import app, charge, send_email
from asgi_lifespan import LifespanManager
from httpx import ASGITransport, AsyncClient
from starlette.testclient import TestClient
from tasks_testing import call, finished, opened, started

async def boom(*args):
    raise RuntimeError("boom")

@pytest.fixture
def client():
    with TestClient(app) as c: yield c

def test_welcome(client, tasks_recorder):
    client.post("/users", json={"email": "ann@x"})
    tasks_recorder.after_response.assert_ran(call(send_email, "ann@x"), times=1)

def test_invalid(client, tasks_recorder):
    assert client.post("/users", json={}).status_code == 422
    tasks_recorder.assert_nothing_scheduled()

def test_order(client, tasks_recorder):
    client.post("/users", json={"email": "ann@x"})
    tasks_recorder.request(0).assert_order(
        "route_returned", opened("after_route"), "response_sent", started(send_email), finished(send_email))

@pytest.mark.tasks_recorder(mode="hold")
def test_pending(client, tasks_recorder):
    uid = client.post("/users", json={"email": "ann@x"}).json()["id"]
    assert client.get(f"/users/{uid}").json()["state"] == "pending"
    tasks_recorder.release(send_email); tasks_recorder.drain()
    assert client.get(f"/users/{uid}").json()["state"] == "welcomed"

@pytest.mark.tasks_recorder(virtual_time=True)
def test_retry(client, tasks_recorder):
    tasks_recorder.fail(charge, ConnectionError("down"), times=2)
    client.post("/orders"); tasks_recorder.drain()
    assert tasks_recorder.one(charge).attempts == 3 and tasks_recorder.clock.now == pytest.approx(1 + 2)

@pytest.mark.anyio
async def test_failure(tasks_recorder):
    tasks_recorder.stub(send_email, replacement=boom)
    async with LifespanManager(app) as m, AsyncClient(transport=ASGITransport(m.app), base_url="http://t") as c:
        assert (await c.post("/users", json={"email": "a@x"})).status_code == 201
        await tasks_recorder.adrain()
    tasks_recorder.assert_failed(send_email, RuntimeError, match="boom")
"""


@pytest.mark.parametrize("order", ["client, tasks_recorder", "tasks_recorder, client"])
def test_they_read_as_promised(pytester: pytest.Pytester, order: str) -> None:
    pytester.makepyfile(app=Path(__file__).with_name("testing_app.py").read_text())
    pytester.makepyfile(NEEDS.replace("client, tasks_recorder", order))
    result = pytester.runpytest("-W", "error", "-p", "no:asyncio")
    result.assert_outcomes(passed=7)

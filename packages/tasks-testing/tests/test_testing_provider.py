"""The recorder and arguments that a provider supplies: recorded, stubbed, replaced, and in durable tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from tasks_core import Provided, durable
from tasks_fastapi import Tasks, add_tasks
from tasks_testing import TasksRecorder

opened: list[str] = []
sent: list[str] = []


async def get_session() -> AsyncIterator[str]:
    opened.append("opened")
    yield "a session"
    opened.append("closed")


SessionDep = Annotated[str, Depends(get_session)]


async def send(order_id: int, session: SessionDep = Provided) -> None:
    sent.append(f"{order_id} with {session}")


@durable(name="provided:charge")
async def charge(order_id: int, session: SessionDep = Provided) -> None:
    sent.append(f"charged {order_id} with {session}")


@durable(name="provided:ship")
def ship(order_id: int, session: SessionDep = Provided) -> None:
    sent.append(f"shipped {order_id} with {session}")


@pytest.fixture
def client() -> TestClient:
    opened.clear()
    sent.clear()
    app = FastAPI()
    add_tasks(app)

    @app.post("/send/{order_id}")
    async def send_order(order_id: int, tasks: Tasks) -> None:
        tasks.after_response.schedule(send, order_id)

    @app.post("/charge/{order_id}")
    async def charge_order(order_id: int, tasks: Tasks) -> None:
        tasks.after_response.schedule(charge, order_id)

    @app.post("/ship/{order_id}")
    async def ship_order(order_id: int, tasks: Tasks) -> None:
        tasks.after_response.schedule(ship, order_id)

    return TestClient(app)


def test_a_call_is_recorded_without_what_is_supplied(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    with client:
        client.post("/send/5")
        task = tasks_recorder.wait_for(send)
    assert task.state == "succeeded"
    assert sent == ["5 with a session"]


def test_a_stub_needs_nothing(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    stubbed: list[int] = []
    tasks_recorder.stub(send, stubbed.append)
    with client:
        client.post("/send/5")
        tasks_recorder.wait_for(send)
    assert stubbed == [5]
    assert opened == sent == []


def test_durable_tasks_get_what_they_need(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    with client:
        client.post("/charge/5")
        tasks_recorder.run_durable(times=2)
    assert sent == ["charged 5 with a session"] * 2
    assert opened == ["opened", "closed"] * 2


@pytest.mark.parametrize("path", ["/charge/5", "/ship/5"])
def test_durable_tasks_that_are_cut_off_get_what_they_need(
    client: TestClient, tasks_recorder: TasksRecorder, path: str
) -> None:
    def check() -> None:
        assert {line.partition(" with ")[2] for line in sent} == {"a session"}
        assert [event.error for event in tasks_recorder.durable_runs.events if event.error] == []

    with client:
        client.post(path)
        tasks_recorder.run_durable(cut="everywhere", restore=sent.clear, check=check)


def test_a_builtin_without_a_signature_in_place_of_a_function_is_cut_off(
    client: TestClient, tasks_recorder: TasksRecorder
) -> None:
    with client:
        client.post("/ship/5")
        tasks_recorder.drain()
        tasks_recorder.stub(ship, range)  # whose signature Python does not know
        tasks_recorder.run_durable(cut="everywhere", restore=sent.clear, check=lambda: None)
    tasks_recorder.durable_runs.assert_ran(ship, times=1)
    assert opened == sent == []

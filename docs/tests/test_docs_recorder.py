"""The tests that the page about testing shows; they are its proof, too."""

# --8<-- [start:app]
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
from asgi_lifespan import LifespanManager
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from httpx import ASGITransport, AsyncClient
from tasks_fastapi import Tasks, add_tasks, retry
from tasks_testing import TasksRecorder, call, call_like, finished, opened, started

app = FastAPI()
add_tasks(app)
paid: list[int] = []


async def send_receipt(order_id: int, address: str) -> None: ...


async def charge(order_id: int, cents: int) -> None:
    paid.append(order_id)


async def release_stock(order_id: int) -> None: ...


@app.post("/orders/{order_id}", status_code=201)
async def create_order(order_id: int, address: str, tasks: Tasks) -> None:
    tasks.after_response.task(when="error").schedule(release_stock, order_id)
    if not address:
        raise HTTPException(422, "where to?")
    again = retry(attempts=5, on=ConnectionError)
    tasks.after_response.task(on_error=again, timeout=30).schedule(charge, order_id, cents=4200)
    tasks.after_response.schedule(send_receipt, order_id, address)


@app.get("/orders/{order_id}")
async def show_order(order_id: int) -> dict[str, bool]:
    return {"paid": order_id in paid}


@pytest.fixture
def client() -> Iterator[TestClient]:
    paid.clear()
    with TestClient(app) as client:
        yield client


# --8<-- [end:app]


# --8<-- [start:first]
def test_receipt_is_sent(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    client.post("/orders/1?address=ann@example.org")
    receipt = call(send_receipt, 1, "ann@example.org")
    tasks_recorder.after_response.assert_ran(receipt, times=1)


# --8<-- [end:first]


# --8<-- [start:nothing]
def test_refused_order(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    assert client.post("/orders/1?address=").status_code == 422
    tasks_recorder.assert_ran(call(release_stock, 1))
    tasks_recorder.assert_not_scheduled(charge)
    tasks_recorder.assert_not_scheduled(send_receipt)


# --8<-- [end:nothing]


# --8<-- [start:discarded]
@app.post("/orders/{order_id}/repeat")
async def repeat_order(order_id: int, tasks: Tasks) -> None:
    tasks.after_response.schedule(send_receipt, order_id, "ann@example.org")
    raise HTTPException(409, "sold out")


def test_failed_request_sends_no_receipt(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    assert client.post("/orders/1/repeat").status_code == 409
    tasks_recorder.in_state("discarded").assert_scheduled(send_receipt, times=1)
    tasks_recorder.in_state("succeeded").assert_not_scheduled(send_receipt)


# --8<-- [end:discarded]


# --8<-- [start:like]
def test_amount(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    client.post("/orders/1?address=ann@example.org")
    tasks_recorder.assert_ran(call_like(charge, cents=4200))


# --8<-- [end:like]


# --8<-- [start:order]
def test_order(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    client.post("/orders/1?address=ann@example.org")
    tasks_recorder.request().assert_order(
        "route_returned",
        "response_sent",
        opened("after_response"),
        started(send_receipt),
        finished(send_receipt),
    )


# --8<-- [end:order]


# --8<-- [start:hold]
def test_order_becomes_paid(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.hold(charge)
    client.post("/orders/1?address=ann@example.org")
    assert client.get("/orders/1").json() == {"paid": False}

    tasks_recorder.release(charge)
    tasks_recorder.drain()
    assert client.get("/orders/1").json() == {"paid": True}


# --8<-- [end:hold]


# --8<-- [start:retry]
@pytest.mark.tasks_recorder(virtual_time=True)
def test_retries(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.fail(charge, ConnectionError("gateway is down"), times=2)
    client.post("/orders/1?address=ann@example.org")
    tasks_recorder.drain()
    assert tasks_recorder.one(charge).attempts == 3
    assert tasks_recorder.clock.now == pytest.approx(1 + 2)


# --8<-- [end:retry]


# --8<-- [start:timeout]
@pytest.mark.tasks_recorder(virtual_time=True)
def test_gateway_does_not_answer(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    async def answer_never(order_id: int, cents: int) -> None:
        await anyio.sleep_forever()

    tasks_recorder.stub(charge, answer_never)
    client.post("/orders/1?address=ann@example.org")
    tasks_recorder.clock.advance(30, while_running=True)
    tasks_recorder.assert_failed(charge, TimeoutError)


# --8<-- [end:timeout]


# --8<-- [start:failure]
def test_payment_fails(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.fail(charge, ValueError("card expired"), times=None)
    client.post("/orders/1?address=ann@example.org")
    tasks_recorder.assert_failed(charge, ValueError, match="expired")
    tasks_recorder.assert_ran(send_receipt)


# --8<-- [end:failure]


# --8<-- [start:stub]
def test_without_the_gateway(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.stub(charge)
    client.post("/orders/1?address=ann@example.org")
    tasks_recorder.assert_ran(charge)
    assert paid == []


# --8<-- [end:stub]


# --8<-- [start:async]
@pytest.fixture
async def async_client() -> AsyncIterator[AsyncClient]:
    async with (
        LifespanManager(app) as manager,
        AsyncClient(transport=ASGITransport(manager.app), base_url="http://test") as client,
    ):
        yield client


@pytest.mark.anyio
async def test_async(async_client: AsyncClient, tasks_recorder: TasksRecorder) -> None:
    await async_client.post("/orders/1?address=ann@example.org")
    await tasks_recorder.adrain()
    tasks_recorder.assert_ran(send_receipt)


# --8<-- [end:async]

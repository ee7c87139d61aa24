"""The test of a durable task whose worker dies, which the page about testing shows."""

# --8<-- [start:cut]
import asyncio
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tasks_core import durable, durable_context
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import Tasks, add_tasks
from tasks_testing import TasksRecorder

app = FastAPI()
add_tasks(app, engine=ProcrastinateEngine("postgresql://localhost/shop"))
charges: dict[str, int] = {}
paid: list[int] = []


async def charge(key: str, order_id: int) -> None:
    """Stand for a gateway, which charges once for a key."""
    await asyncio.sleep(0)
    charges[key] = order_id


@durable
async def pay(order_id: int) -> None:
    if order_id not in paid:
        await charge(durable_context().idempotency_key, order_id)
        await asyncio.sleep(0)  # stands for a statement of SQL
        paid.append(order_id)


@app.post("/payments/{order_id}", status_code=202)
async def create_payment(order_id: int, tasks: Tasks) -> None:
    tasks.after_response.schedule(pay, order_id)


def forget() -> None:
    charges.clear()
    paid.clear()


def check() -> None:
    assert list(charges.values()) == [1]
    assert paid == [1]


def test_payment_survives_its_worker(tasks_recorder: TasksRecorder) -> None:
    with TestClient(app) as client:
        client.post("/payments/1")
    tasks_recorder.run_durable(cut="everywhere", restore=forget, check=check)


# --8<-- [end:cut]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture
def _charge_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    async def charge_each_time(key: str, order_id: int) -> None:
        await asyncio.sleep(0)
        charges[f"{key} {next(calls)}"] = order_id

    monkeypatch.setattr(f"{__name__}.charge", charge_each_time)


@pytest.mark.usefixtures("_charge_each_time")
def test_a_gateway_that_charges_each_time_is_found(tasks_recorder: TasksRecorder) -> None:
    with TestClient(app) as client:
        client.post("/payments/1")
    with pytest.raises(AssertionError) as failure:
        tasks_recorder.run_durable(cut="everywhere", restore=forget, check=check)
    assert "await asyncio.sleep(0)  # stands for a statement of SQL" in failure.value.__notes__[0]


@pytest.mark.usefixtures("_charge_each_time")
def test_running_it_twice_does_not_find_that(tasks_recorder: TasksRecorder) -> None:
    with TestClient(app) as client:
        client.post("/payments/1")
    tasks_recorder.run_durable(times=2)
    check()

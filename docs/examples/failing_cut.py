import asyncio

from fastapi import FastAPI
from fastapi.testclient import TestClient
from tasks_core import durable
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import Tasks, add_tasks
from tasks_testing import TasksRecorder

app = FastAPI()
add_tasks(app, engine=ProcrastinateEngine("postgresql://localhost/shop"))
charges: list[int] = []
paid: list[int] = []


async def charge(order_id: int) -> None:
    await asyncio.sleep(0)
    charges.append(order_id)


@durable
async def pay(order_id: int) -> None:
    if order_id not in paid:
        await charge(order_id)
        await asyncio.sleep(0)  # stands for a statement of SQL
        paid.append(order_id)


@app.post("/payments/{order_id}", status_code=202)
async def create_payment(order_id: int, tasks: Tasks) -> None:
    tasks.after_response.schedule(pay, order_id)


def forget() -> None:
    charges.clear()
    paid.clear()


def check() -> None:
    assert charges == [1]


def test_payment_survives_its_worker(tasks_recorder: TasksRecorder) -> None:
    with TestClient(app) as client:
        client.post("/payments/1")
    tasks_recorder.run_durable(cut="everywhere", restore=forget, check=check)

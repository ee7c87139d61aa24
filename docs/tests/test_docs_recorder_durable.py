"""The test of a durable task that the page about testing shows."""

# --8<-- [start:durable]
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tasks_core import durable
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import Tasks, add_tasks
from tasks_testing import TasksRecorder, call

app = FastAPI()
add_tasks(app, engine=ProcrastinateEngine("postgresql://localhost/shop"))
paid: list[int] = []


@durable
async def pay(order_id: int) -> None:
    if order_id not in paid:
        paid.append(order_id)


@app.post("/payments/{order_id}", status_code=202)
async def create_payment(order_id: int, tasks: Tasks) -> None:
    tasks.after_response.schedule(pay, order_id)


def test_payment_is_made_once(tasks_recorder: TasksRecorder) -> None:
    with TestClient(app) as client:
        client.post("/payments/1")
    tasks_recorder.after_response.assert_ran(call(pay, 1))  # it was submitted
    assert paid == []

    tasks_recorder.run_durable(times=2)
    tasks_recorder.durable_runs.assert_ran(call(pay, 1), times=2)
    assert paid == [1]


# --8<-- [end:durable]

from fastapi import FastAPI
from fastapi.testclient import TestClient
from tasks_fastapi import Tasks, add_tasks
from tasks_testing import TasksRecorder, call

app = FastAPI()
add_tasks(app)


async def send_receipt(order_id: int, address: str) -> None: ...


async def track(event: str) -> None: ...


@app.post("/orders/{order_id}", status_code=201)
async def create_order(order_id: int, tasks: Tasks) -> None:
    tasks.schedule(track, "order")
    tasks.after_response.schedule(send_receipt, order_id, "ben@example.org")


def test_receipt_goes_to_ann(tasks_recorder: TasksRecorder) -> None:
    with TestClient(app) as client:
        client.post("/orders/1")
        tasks_recorder.after_response.assert_ran(call(send_receipt, 1, "ann@example.org"))

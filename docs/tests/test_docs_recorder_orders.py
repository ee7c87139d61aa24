"""The test of tasks in other orders, which the page about testing shows."""

# --8<-- [start:orders]
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tasks_fastapi import Tasks, add_tasks
from tasks_testing import TasksRecorder

app = FastAPI()
add_tasks(app)
stock = {"teapot": 1}
offers: list[str] = []


async def reserve(item: str) -> None:
    stock[item] -= 1


async def update_offer(item: str, left: int) -> None:
    offers.append(f"{left} left")


@app.post("/orders/{item}")
async def create_order(item: str, tasks: Tasks) -> None:
    tasks.after_response.schedule(reserve, item)
    tasks.after_response.schedule(update_offer, item, stock[item] - 1)


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def restore() -> None:
    stock["teapot"] = 1
    offers.clear()


def test_offer_is_right_in_any_order(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    def order_teapot() -> None:
        client.post("/orders/teapot")
        tasks_recorder.drain()
        assert stock == {"teapot": 0}
        assert offers == ["0 left"]

    explored = tasks_recorder.explore_orders(order_teapot, restore=restore)
    assert (explored.run, explored.total) == (2, 2)


# --8<-- [end:orders]


def test_an_offer_that_reads_what_the_other_task_writes(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    async def read_stock(item: str, left: int) -> None:
        offers.append(f"{stock[item]} left")

    def order_teapot() -> None:
        tasks_recorder.stub(update_offer, read_stock)
        client.post("/orders/teapot")
        tasks_recorder.drain()
        assert offers == ["0 left"]

    restore()
    order_teapot()  # it passes as long as the tasks start in the order in which they were scheduled
    with pytest.raises(AssertionError) as failure:
        tasks_recorder.explore_orders(order_teapot, restore=restore)
    note = failure.value.__notes__[0]
    assert note.startswith("it fails when the tasks start in another order; 2 of 2 orders were run, with seed 0\n")
    assert "  to run this order alone, write explore_orders(..., order=[1])\n" in note

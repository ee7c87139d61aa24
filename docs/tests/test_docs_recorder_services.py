"""The tests without an application that the page about testing shows."""

# --8<-- [start:service]
import pytest
from tasks_core import TaskScheduler, current_scheduler
from tasks_fastapi import Tasks, current_tasks
from tasks_testing import TasksRecorder, call


async def send_receipt(order_id: int) -> None: ...


class Orders:
    async def pay(self, order_id: int) -> None:
        current_scheduler().schedule(send_receipt, order_id)


async def create_order(order_id: int, tasks: Tasks) -> None:  # an endpoint
    tasks.after_response.schedule(send_receipt, order_id)


@pytest.mark.anyio
async def test_service(tasks_scheduler: TaskScheduler, tasks_recorder: TasksRecorder) -> None:
    await Orders().pay(1)
    await tasks_recorder.adrain()
    tasks_recorder.assert_ran(call(send_receipt, 1), times=1)


@pytest.mark.anyio
async def test_endpoint(tasks_scheduler: TaskScheduler, tasks_recorder: TasksRecorder) -> None:
    await create_order(1, current_tasks())
    await tasks_recorder.adrain()
    tasks_recorder.after_response.assert_ran(call(send_receipt, 1), times=1)


# --8<-- [end:service]

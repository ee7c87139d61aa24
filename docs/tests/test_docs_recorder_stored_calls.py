"""The test of a release against the calls of the one before, which the page about testing shows."""

# --8<-- [start:calls]
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tasks_core import durable
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import Tasks, add_tasks
from tasks_testing import TasksRecorder, check_calls, write_calls

app = FastAPI(version="1.1.0")
add_tasks(app, engine=ProcrastinateEngine("postgresql://localhost/shop"))


@durable(name="shop.bill")
async def bill(order_id: int, currency: str = "EUR") -> None: ...


@app.post("/bills/{order_id}", status_code=202)
async def create_bill(order_id: int, tasks: Tasks) -> None:
    tasks.after_response.schedule(bill, order_id)


@pytest.fixture
def stored_calls(tmp_path: Path) -> Path:
    return tmp_path  # yours: a folder of the repository, such as tests/stored_calls


def test_calls_of_each_release_can_be_run(tasks_recorder: TasksRecorder, stored_calls: Path) -> None:
    with TestClient(app) as client:
        client.post("/bills/1")
    write_calls(stored_calls / f"{app.version}.json", tasks_recorder.durable_calls)
    check_calls(stored_calls)


# --8<-- [end:calls]


STORED = '[{"name": "shop.bill", "args": {"order_id": 1}, "retry": null}]'


def test_a_release_that_cannot_run_them_is_found(stored_calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new parameter without a default, as in the text of the page; with the default, the test passes."""
    (stored_calls / "1.0.0.json").write_text(STORED)
    check_calls(stored_calls)

    async def bill_in(order_id: int, currency: str) -> None: ...

    bill_in.__module__, bill_in.__qualname__ = bill.__module__, bill.__qualname__
    try:
        durable(name="shop.bill")(bill_in)
        with pytest.raises(AssertionError, match="'currency' has no default, and the call has no value for it"):
            check_calls(stored_calls)
    finally:
        durable(name="shop.bill")(bill.func)

"""The longer examples do what their pages say."""

from __future__ import annotations

import importlib.util
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient
from tasks_testing import TasksRecorder, call

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def write_it_down(tmp_path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location("write_it_down", EXAMPLES / "write_it_down.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.DATABASE = str(tmp_path / "shop.db")  # type: ignore[attr-defined]  # the annotation is of any module
    return module


def states(module: ModuleType) -> dict[int, str]:
    with closing(sqlite3.connect(module.DATABASE)) as connection:
        return dict(connection.execute("select order_id, state from payments"))


def test_payment_is_made_after_the_commit(write_it_down: ModuleType, tasks_recorder: TasksRecorder) -> None:
    """An order is paid by its task."""
    with TestClient(write_it_down.app) as client:
        assert client.post("/orders/1?cents=4200").status_code == 201
        tasks_recorder.after_response.assert_ran(call(write_it_down.pay, 1))
    assert states(write_it_down) == {1: "paid"}


def test_sweep_makes_the_payments_that_a_crash_left_open(
    write_it_down: ModuleType, tasks_recorder: TasksRecorder
) -> None:
    """What is in the table when the application starts is paid, without a request."""
    with closing(sqlite3.connect(write_it_down.DATABASE)) as connection:
        connection.execute(write_it_down.SCHEMA)
        connection.execute("insert into payments (order_id, cents) values (7, 100)")
        connection.commit()
    with TestClient(write_it_down.app):
        tasks_recorder.wait_for(call(write_it_down.pay, 7))
    assert states(write_it_down) == {7: "paid"}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_service_ends_on_a_signal_and_finishes_its_orders(name: str) -> None:
    """Every order that was taken is done when the process ends, and it ends by itself."""
    command = [sys.executable, str(EXAMPLES / "stop_on_signal.py")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "order 2 is done" in line:
                process.send_signal(signal.Signals[name])
                break
        lines += process.stderr.readlines()
        assert process.wait(30) == 0
    done = [int(line.split()[3]) for line in lines if "is done" in line]
    assert done == list(range(1, len(done) + 1))
    assert "Tasks drained in" in lines[-1]
    assert "cancelled" not in lines[-1]

"""The example of the page on keys does what the page says."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tasks_testing import TasksRecorder, call

EXAMPLE = Path(__file__).parents[1] / "examples" / "one_at_a_time.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


@pytest.mark.tasks_recorder(virtual_time=True)
def test_ten_documents_are_one_reindex(example: dict[str, Any], tasks_recorder: TasksRecorder) -> None:
    with TestClient(example["app"]) as client:
        for _ in range(10):
            assert client.post("/customers/7/documents").status_code == 200
        client.post("/customers/8/documents")
        tasks_recorder.drain()
        tasks_recorder.assert_ran(call(example["reindex"], 7), times=1)
        tasks_recorder.assert_ran(call(example["reindex"], 8), times=1)


def test_each_booking_is_made_in_order(example: dict[str, Any], tasks_recorder: TasksRecorder) -> None:
    with TestClient(example["app"]) as client:
        for cents in (1, 2, 3):
            client.post(f"/accounts/1/bookings?cents={cents}")
        tasks_recorder.drain()
        for cents in (1, 2, 3):
            tasks_recorder.assert_ran(call(example["book"], 1, cents), times=1)

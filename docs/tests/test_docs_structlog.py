"""The example for structlog, with structlog itself."""

from __future__ import annotations

import io
import json
import logging
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from docs_worker import working
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tasks_core import durable, durable_context
from tasks_core._observer import _observers
from tasks_testing import InMemoryEngine

EXAMPLE = Path(__file__).parents[1] / "examples" / "structlog_logs.py"

pytestmark = pytest.mark.anyio


class Example:
    """The example, whose lines go into memory in place of standard output."""

    def __init__(self) -> None:
        self.app: FastAPI = runpy.run_path(str(EXAMPLE))["app"]
        self.output = io.StringIO()
        [handler] = logging.getLogger().handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(self.output)

    def entries(self, name: str, value: str) -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in self.output.getvalue().splitlines()]
        return [entry for entry in entries if entry[name] == value]


@pytest.fixture
def example() -> Iterator[Callable[[], Example]]:
    """Configures logging for the rest of the test: not here, where pytest has handlers of its own."""
    root = logging.getLogger()
    handlers, level, observers = root.handlers[:], root.level, _observers._entries
    yield Example
    root.handlers[:] = handlers
    root.setLevel(level)
    _observers._replace(observers)
    structlog.reset_defaults()


def test_lines_of_a_task_and_about_it_are_json(example: Callable[[], Example]) -> None:
    shop = example()
    with TestClient(shop.app) as client:
        client.post("/orders/17")
    [own] = shop.entries("logger", "shop")
    assert own["order_id"] == 17
    assert (own["task_name"], own["task_attempt"], own["level"]) == ("send_receipt", 1, "info")
    assert "task_key" not in own
    [failed] = shop.entries("level", "error")
    assert failed["logger"] == "tasks_core"
    assert (failed["task_name"], failed["task_phase"]) == ("send_receipt", "after_response")
    [exception] = failed["exception"]
    assert exception["exc_value"] == "mail server is down"
    assert not any(frame.get("locals") for frame in exception["frames"]), "arguments are not logged"


async def test_lines_of_a_durable_task_name_its_call(example: Callable[[], Example]) -> None:
    @durable(name="docs structlog charge", queue="payments", retry=None)
    async def charge(order_id: int) -> None:
        structlog.get_logger("shop").info("charging")
        await durable_context().scheduler.schedule(count)
        raise ConnectionError("gateway is down")

    async def count() -> None:
        structlog.get_logger("count").info("counted")

    shop = example()
    async with working(InMemoryEngine()) as scheduler:
        receipt = await scheduler.schedule(charge.configure(idempotency_key="charge-17"), 17)
    [own], [failed], [counted] = (
        shop.entries(*wanted) for wanted in (("logger", "shop"), ("level", "error"), ("logger", "count"))
    )
    names = {"task_key", "task_queue", "task_receipt_id"}
    for entry in (own, failed):
        fields = {name: entry.get(name) for name in names}
        assert fields == {"task_key": "charge-17", "task_queue": "payments", "task_receipt_id": receipt.id}
    assert "count" in counted["task_name"]

"""The example for Prometheus, with its client library and the exporter of OpenTelemetry, and a real PostgreSQL."""

from __future__ import annotations

import runpy
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from asgi_spy import running
from core_postgres import new_database, postgres
from prometheus_client.parser import text_string_to_metric_families
from tasks_core import Worker

__all__ = ("postgres",)

EXAMPLE = Path(__file__).parents[1] / "examples" / "prometheus_metrics.py"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def examples() -> Iterator[list[dict[str, Any]]]:
    """The example as often as a test runs it; afterwards, the registry of the process does not know it any more."""
    examples: list[dict[str, Any]] = []
    yield examples
    for example in examples:
        example["meter_provider"].shutdown()


def samples(text: str) -> dict[tuple[str, str | None, str | None], float]:
    """The values by name, queue and outcome."""
    return {
        (sample.name, sample.labels.get("task_queue"), sample.labels.get("task_outcome")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_of_tasks_and_queues_are_there_to_be_scraped(
    postgres: str, monkeypatch: pytest.MonkeyPatch, examples: list[dict[str, Any]]
) -> None:
    async with new_database(postgres, "prometheus") as address:
        monkeypatch.setenv("DATABASE_URL", address)
        examples.append(example := runpy.run_path(str(EXAMPLE)))
        app, stop = example["app"], anyio.Event()
        worker = Worker(example["engine"], telemetry={"meter_provider": example["meter_provider"], "queues": False})
        transport = httpx.ASGITransport(app)
        async with running(app), httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            assert (await client.post("/orders/1")).status_code == 200
            async with anyio.create_task_group() as group:
                group.start_soon(worker.run, stop)
                wanted = {
                    ("tasks_submit_duration_seconds_count", "payments", "succeeded"): 1,
                    ("tasks_duration_seconds_count", "payments", "succeeded"): 1,
                    ("tasks_queue_failed", "payments", None): 0,
                    ("tasks_queue_oldest_age_seconds", "default", None): 0,
                }
                with anyio.fail_after(30):
                    while not wanted.items() <= samples((await client.get("/metrics")).text).items():
                        await anyio.sleep(0.05)
                stop.set()


async def test_worker_has_a_port_to_be_scraped(
    postgres: str, monkeypatch: pytest.MonkeyPatch, examples: list[dict[str, Any]]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("METRICS_PORT", str(port))
    async with new_database(postgres, "prometheus_port") as address:
        monkeypatch.setenv("DATABASE_URL", address)
        examples.append(example := runpy.run_path(str(EXAMPLE)))
        async with running(example["app"]):

            def scrape() -> str:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
                    return str(response.read(), "utf-8")

            with anyio.fail_after(30):
                while "tasks_queue_waiting" not in await anyio.to_thread.run_sync(scrape):
                    await anyio.sleep(0.05)

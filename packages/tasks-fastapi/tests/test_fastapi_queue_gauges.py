"""An application shows the numbers of its queues, whether it runs durable tasks or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from asgi_spy import request, running
from fastapi import FastAPI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tasks_core.engines import QueueStatistics
from tasks_fastapi import TelemetryConfig, add_tasks, get_scheduler
from tasks_testing import InMemoryEngine

pytestmark = pytest.mark.anyio


class Metered(InMemoryEngine):
    """Notes each look."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.looked = anyio.Event()

    async def statistics_in_turn(self, seconds: float, /) -> Sequence[QueueStatistics]:
        self.looks += 1
        self.looked.set()
        return await self.statistics()


def names(reader: InMemoryMetricReader) -> set[str]:
    data = reader.get_metrics_data()
    resources = data.resource_metrics if data else ()
    return {metric.name for one in resources for scope in one.scope_metrics for metric in scope.metrics}


@pytest.mark.parametrize("concurrency", [None, 2])
async def test_an_application_measures_its_queues(concurrency: int | None) -> None:
    reader = InMemoryMetricReader()
    app, engine = FastAPI(), Metered()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    telemetry: TelemetryConfig = {"meter_provider": provider, "queue_interval": 3600.0}
    add_tasks(app, engine=engine, worker_concurrency=concurrency, telemetry=telemetry)
    async with running(app):
        with anyio.fail_after(10):
            await engine.looked.wait()
            while "tasks.queue.oldest_age" not in names(reader):
                await anyio.sleep(0.005)
        assert [service.name for service in get_scheduler(app).services] == ["queue gauges"]
    assert engine.looks == 1, "its worker does not look a second time"


async def test_a_request_without_a_lifespan_measures_nothing() -> None:
    app, engine = FastAPI(), Metered()
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    add_tasks(app, engine=engine, telemetry={"meter_provider": provider})

    @app.get("/")
    async def endpoint() -> None: ...

    assert (await request(app)).status == 200
    assert engine.looks == 0


async def test_an_application_without_an_engine_or_a_provider_measures_nothing() -> None:
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    settings: tuple[dict[str, Any], ...] = ({"telemetry": {"meter_provider": provider}}, {"engine": Metered()})
    for options in settings:
        app = FastAPI()
        add_tasks(app, **options)
        async with running(app):
            assert get_scheduler(app).services == ()

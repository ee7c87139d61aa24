"""Metrics for Prometheus: a route of the web process, and a port of the worker."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest, start_http_server
from tasks_core import durable
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import Tasks, add_tasks

DATABASE_URL = os.environ.get("DATABASE_URL", "postgresql:///shop")
METRICS_PORT = os.environ.get("METRICS_PORT")  # set for a worker, which serves no requests

engine = ProcrastinateEngine(DATABASE_URL)
meter_provider = MeterProvider([PrometheusMetricReader()])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if METRICS_PORT is None:
        yield
    else:
        server, _thread = start_http_server(int(METRICS_PORT))
        with server:
            yield
            server.shutdown()


app = FastAPI(lifespan=lifespan)
add_tasks(app, engine=engine, telemetry={"meter_provider": meter_provider})


@durable(name="charge order", queue="payments")
async def charge(order_id: int) -> None:
    if order_id == 13:
        raise ConnectionError("gateway is down")


@app.post("/orders/{order_id}")
async def place_order(order_id: int, tasks: Tasks) -> None:
    tasks.after_response.schedule(charge, order_id)


@app.get("/metrics", include_in_schema=False)
async def metrics() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

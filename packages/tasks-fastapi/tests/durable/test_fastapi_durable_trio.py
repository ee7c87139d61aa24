"""Durable tasks of an application that trio serves: hypercorn, a socket, and a real PostgreSQL."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import hypercorn.trio
import psycopg
import pytest
import trio
from core_durable_functions import note
from core_postgres import postgres, queue
from fastapi import FastAPI, HTTPException
from hypercorn.config import Config
from tasks_core import durable
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import Tasks, add_tasks

__all__ = ("postgres", "queue")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


noted: dict[trio.lowlevel.TrioToken, anyio.Event] = {}


@durable
async def note_loop() -> None:
    noted[trio.lowlevel.current_trio_token()].set()


def make_app(engine: ProcrastinateEngine, **options: Any) -> FastAPI:
    app = FastAPI()
    add_tasks(app, engine=engine, **options)

    @app.post("/loop")
    async def loop(tasks: Tasks) -> None:
        tasks.after_response.schedule(note_loop)

    @app.post("/{end}")
    async def endpoint(end: int, tasks: Tasks) -> None:
        tasks.after_response.schedule(note, f"success {end}")
        tasks.after_response.task(when="error").schedule(note, f"error {end}")
        if end != 200:
            raise HTTPException(end)

    return app


async def stored(address: str, queue: str) -> list[Any]:
    """What is in the database, seen from a thread: psycopg does not know trio."""

    def look() -> list[Any]:
        with psycopg.connect(address) as connection:
            rows = connection.execute(
                "SELECT args->'args'->>'text' FROM procrastinate_jobs WHERE queue_name = %s ORDER BY id", [queue]
            )
            return [row[0] for row in rows]

    return await anyio.to_thread.run_sync(look)


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an application on a socket, in this event loop."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.loglevel = "warning"
    stop = anyio.Event()
    application: Any = app  # hypercorn names the types of ASGI
    async with anyio.create_task_group() as group:
        (url,) = await group.start(
            lambda task_status: hypercorn.trio.serve(
                application, config, shutdown_trigger=stop.wait, task_status=task_status
            )
        )
        async with httpx.AsyncClient(base_url=url) as client:
            yield client
        stop.set()
    assert not [thread for thread in threading.enumerate() if "portal" in thread.name]


async def test_tasks_are_stored_before_the_response_begins(postgres: str, queue: str) -> None:
    async with served(make_app(ProcrastinateEngine(postgres, queue=queue, pool_size=2))) as client:
        assert (await client.post("/200")).status_code == 200
        assert await stored(postgres, queue) == ["success 200"]
        assert (await client.post("/409")).status_code == 409
        assert await stored(postgres, queue) == ["success 200", "error 409"]


async def test_worker_in_the_web_process(postgres: str, queue: str) -> None:
    """Its tasks run on the event loop that serves requests."""
    engine = ProcrastinateEngine(postgres, queue=queue, pool_size=2, heartbeat=0.2)
    here = noted[trio.lowlevel.current_trio_token()] = anyio.Event()
    async with served(make_app(engine, worker_concurrency=2)) as client:
        assert (await client.post("/loop")).status_code == 200
        with anyio.fail_after(30):
            await here.wait()

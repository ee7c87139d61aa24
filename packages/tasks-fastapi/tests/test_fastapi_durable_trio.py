"""Durable tasks of an application that trio serves: hypercorn, a socket, and a real PostgreSQL."""

from __future__ import annotations

import socket
import threading
from typing import Any

import anyio
import httpx
import hypercorn.trio
import psycopg
import pytest
from core_durable_functions import note
from core_postgres import postgres, queue
from fastapi import FastAPI, HTTPException
from hypercorn.config import Config
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import Tasks, add_tasks

__all__ = ("postgres", "queue")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


def make_app(engine: ProcrastinateEngine) -> FastAPI:
    app = FastAPI()
    add_tasks(app, engine=engine)

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


async def test_tasks_are_stored_before_the_response_begins(postgres: str, queue: str) -> None:
    app: Any = make_app(ProcrastinateEngine(postgres, queue=queue, pool_size=2))  # hypercorn names the types of ASGI
    listener = socket.create_server(("127.0.0.1", 0))
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.loglevel = "warning"
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        (url,) = await group.start(
            lambda task_status: hypercorn.trio.serve(app, config, shutdown_trigger=stop.wait, task_status=task_status)
        )
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.post("/200")).status_code == 200
            assert await stored(postgres, queue) == ["success 200"]
            assert (await client.post("/409")).status_code == 409
            assert await stored(postgres, queue) == ["success 200", "error 409"]
        stop.set()
    assert not [thread for thread in threading.enumerate() if "portal" in thread.name]

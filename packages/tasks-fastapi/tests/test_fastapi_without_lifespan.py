"""No lifespan runs: tasks are bound to their request, which returns when they have ended. Never an error."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from asgi_spy import assert_order, note, request, turns, websocket
from fastapi import FastAPI, HTTPException, WebSocket
from fastapi.testclient import TestClient
from mangum import Mangum
from tasks_core import Task, TaskState
from tasks_core.exceptions import SchedulerNotStartedError
from tasks_fastapi import Tasks, add_tasks, get_scheduler

LINE = (
    "No lifespan of the application is running: tasks are bound to their requests, "
    "and a request ends when its tasks have ended"
)


class App(FastAPI):
    def __init__(self, **options: Any) -> None:
        super().__init__(lifespan=self.lifetime)
        self.log: list[str] = []
        add_tasks(self, **options)
        self.get("/")(self.endpoint)
        self.get("/blocking")(self.blocking)
        self.get("/missing")(self.missing)
        self.get("/broken")(self.broken)
        self.get("/plain")(self.plain)
        self.websocket("/ws")(self.connection)

    @asynccontextmanager
    async def lifetime(self, _app: FastAPI) -> AsyncIterator[None]:
        self.log.append("opened")
        yield
        self.log.append("closed")

    async def plain(self) -> None: ...

    async def slow(self, text: str) -> None:
        await turns()
        self.log.append(text)

    async def endpoint(self, tasks: Tasks) -> str:
        tasks.after_response.schedule(self.slow, "after_response")
        tasks.after_route.schedule(note, self.log, "after_route")
        tasks.schedule(note, self.log, "now")
        await turns(100)
        return "ok"

    def blocking(self, tasks: Tasks) -> None:
        tasks.after_response.schedule(self.log.append, "after_response")

    async def missing(self, tasks: Tasks) -> None:
        tasks.after_response.schedule(self.slow, "never")
        tasks.after_response.task(when="error").schedule(self.slow, "error")
        raise HTTPException(404)

    async def broken(self, tasks: Tasks) -> None:
        tasks.after_response.task(when="error").schedule(self.slow, "error")
        raise ValueError

    async def connection(self, socket: WebSocket, tasks: Tasks) -> None:
        tasks.after_response.schedule(self.slow, "after_response")
        await socket.accept()
        await socket.close()


@pytest.mark.anyio
async def test_the_call_returns_when_the_tasks_have_ended(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    with caplog.at_level(logging.INFO, "tasks_fastapi"):
        await request(app, log=app.log)
        assert app.log == ["now", "start 200", "after_route", "last byte", "last byte sent", "after_response"]
        await request(app)
        await request(app, "/missing")
    lines = [record for record in caplog.records if record.name == "tasks_fastapi"]
    assert [(line.levelno, line.getMessage()) for line in lines] == [(logging.INFO, LINE)]
    assert app.log[-1] == "error"


@pytest.mark.anyio
async def test_a_request_without_tasks_has_nothing_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    with caplog.at_level(logging.INFO, "tasks_fastapi"):
        assert (await request(app, "/plain")).status == 200
    assert LINE not in caplog.text


@pytest.mark.anyio
async def test_the_end_of_a_request_without_tasks_is_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    caplog.set_level(logging.DEBUG, "tasks_core")
    await request(app, "/plain")
    await request(app, "/missing")  # one task, which has ended before the request does or is waited for
    levels = [(record.levelname, "nothing to wait for" in record.getMessage()) for record in caplog.records]
    assert ("DEBUG", True) in levels
    assert ("INFO", True) not in levels
    assert any("1 succeeded" in r.getMessage() and r.levelno == logging.INFO for r in caplog.records)


@pytest.mark.anyio
async def test_there_is_no_grace_period() -> None:
    """A task has all the time it needs, because nothing shuts down."""
    app = App(grace_period=0.0, shield_timeout=0.0)
    await request(app, log=app.log)
    assert app.log[-1] == "after_response"


@pytest.mark.anyio
async def test_an_endpoint_that_fails() -> None:
    app = App()
    assert isinstance((await request(app, "/broken")).error, ValueError)
    assert app.log == ["error"]


@pytest.mark.anyio
async def test_websocket() -> None:
    app = App()
    await websocket(app, "/ws", log=app.log)
    assert app.log == ["accept", "close", "after_response"]


@pytest.mark.anyio
async def test_requests_at_the_same_time() -> None:
    app = App()
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(request, app)
    assert sorted(app.log) == ["after_response"] * 5 + ["after_route"] * 5 + ["now"] * 5


@pytest.mark.anyio
async def test_a_request_that_is_cancelled_takes_its_tasks_along() -> None:
    """What is bound to a request is cancelled with it, and says so; what is shielded is waited for."""
    app = App()
    scheduled: list[Task[Any]] = []

    @app.get("/stuck")
    async def stuck(tasks: Tasks) -> None:
        scheduled.append(tasks.schedule(anyio.sleep_forever))
        scheduled.append(tasks.task(shield=True).schedule(app.slow, "shielded"))
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(request, app, "/stuck")
            while len(scheduled) < 2 or not scheduled[0].started.is_set():
                await turns()
            group.cancel_scope.cancel()
    assert scheduled[0].state is TaskState.CANCELLED
    assert scheduled[0].lost
    assert app.log == ["shielded"]


@pytest.mark.anyio
async def test_follow_ups_are_waited_for() -> None:
    app = App()

    @app.get("/chain")
    async def chain(tasks: Tasks) -> None:
        async def first() -> None:
            await turns()
            tasks.schedule(second)

        async def second() -> None:
            await turns()
            app.log.append("second")

        tasks.after_response.schedule(first)

    await request(app, "/chain")
    assert app.log == ["second"]


@pytest.mark.anyio
async def test_the_scheduler_of_the_application_does_not_exist() -> None:
    app = App()
    await request(app)
    with pytest.raises(SchedulerNotStartedError):
        get_scheduler(app)


@pytest.mark.anyio
async def test_httpx_transport() -> None:
    app = App()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/")).json() == "ok"
        assert_order(app.log, "now", {"after_route", "after_response"})
        assert (await client.get("/blocking")).status_code == 200
        assert app.log[3:] == ["after_response"]
        assert (await client.get("/missing")).status_code == 404
        assert app.log[4:] == ["error"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_client_without_with(backend: Any) -> None:
    app = App()
    client = TestClient(app, backend=backend)
    assert client.get("/").json() == "ok"
    assert_order(app.log, "now", {"after_route", "after_response"})
    assert client.get("/blocking").status_code == 200
    assert app.log[3:] == ["after_response"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_client_with_with(backend: Any) -> None:
    """For comparison: the lifespan runs, and its end waits for the tasks."""
    app = App()
    with TestClient(app, backend=backend) as client:
        assert client.get("/").json() == "ok"
        with client.websocket_connect("/ws"):
            pass
    assert_order(app.log[:4], "opened", "now", {"after_route", "after_response"})
    assert app.log[4:] == ["after_response", "closed"]


def lambda_event(path: str) -> dict[str, Any]:
    """What an HTTP API of AWS sends to a function."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"host": "test"},
        "requestContext": {
            "http": {"method": "GET", "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": ""},
            "stage": "$default",
        },
        "isBase64Encoded": False,
    }


@pytest.fixture
def event_loop() -> Iterator[None]:
    """The event loop of a function on AWS, which is never closed there."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.usefixtures("event_loop")
def test_mangum_without_lifespan(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    handler = Mangum(app, lifespan="off")
    with caplog.at_level(logging.INFO, "tasks_fastapi"):
        for _ in range(2):
            answer = handler(lambda_event("/"), {})  # type: ignore[arg-type]  # the context is not read
            assert (answer["statusCode"], json.loads(answer["body"])) == (200, "ok")
            assert_order(app.log, "now", {"after_route", "after_response"})
            app.log.clear()
    assert caplog.text.count(LINE) == 1


@pytest.mark.usefixtures("event_loop")
def test_mangum_runs_the_lifespan_around_each_request(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    handler = Mangum(app, lifespan="auto")
    with caplog.at_level(logging.INFO, "tasks_fastapi"):
        for _ in range(2):
            assert handler(lambda_event("/"), {})["statusCode"] == 200  # type: ignore[arg-type]  # as above
            assert_order(app.log, "opened", "now", {"after_route", "after_response"}, "closed")
            app.log.clear()
    assert LINE not in caplog.text

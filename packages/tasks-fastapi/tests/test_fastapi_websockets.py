"""WebSockets: `schedule()` starts at once, both phases open when the endpoint has returned."""

from collections.abc import AsyncIterator

import anyio
import pytest
from asgi_spy import assert_order, note, running, turns, websocket
from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect, WebSocketException
from starlette.responses import PlainTextResponse
from tasks_core import TaskObserver, observe
from tasks_fastapi import RequestTasks, Tasks, WebSocketOrigin, add_tasks, get_tasks

pytestmark = pytest.mark.anyio


class App(FastAPI):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        add_tasks(self)

    def schedule(self, tasks: RequestTasks) -> None:
        for phase in (tasks.after_route, tasks.after_response):
            phase.schedule(note, self.log, f"{phase.name} success")
            phase.task(when="error").schedule(note, self.log, f"{phase.name} error")

    async def dependency(self) -> AsyncIterator[None]:
        yield
        await turns()
        self.log.append("dependency left")


SUCCESS = {"after_route success", "after_response success"}
ERROR = {"after_route error", "after_response error"}


async def test_tasks_run_while_the_connection_is_open() -> None:
    app = App()

    @app.websocket("/")
    async def endpoint(socket: WebSocket, tasks: Tasks) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await tasks.schedule(note, app.log, f"got {text}")

    async with running(app):
        await websocket(app, "/", "one", "two", log=app.log)
    assert app.log == ["accept", "got one", "got two"]


@pytest.mark.parametrize("scope", ["function", "request"])
async def test_closed_by_the_application(scope: str) -> None:
    app = App()

    @app.websocket("/", dependencies=[Depends(app.dependency, scope=scope)])  # type: ignore[arg-type]  # a literal
    async def endpoint(socket: WebSocket, tasks: Tasks) -> None:
        app.schedule(tasks)
        await socket.accept()
        await turns()
        await socket.close()
        await turns()
        app.log.append("endpoint ends")

    async with running(app):
        await websocket(app, "/", log=app.log, code=None)
    assert_order(app.log, "accept", "close", "endpoint ends", "dependency left", SUCCESS)


@pytest.mark.parametrize("code", [1000, 1001, 1006])
async def test_the_client_goes_and_the_endpoint_does_not_mind(code: int) -> None:
    app = App()

    @app.websocket("/")
    async def endpoint(socket: WebSocket, tasks: Tasks) -> None:
        app.schedule(tasks)
        await socket.accept()
        while True:
            await socket.receive_text()

    async with running(app):
        await websocket(app, "/", "text", log=app.log, code=code)
    assert_order(app.log, "accept", SUCCESS)


async def test_the_endpoint_handles_the_disconnect() -> None:
    app = App()

    @app.websocket("/")
    async def endpoint(socket: WebSocket, tasks: Tasks) -> None:
        await socket.accept()
        try:
            await socket.receive_text()
        except WebSocketDisconnect:
            app.schedule(tasks)

    async with running(app):
        await websocket(app, "/", log=app.log)
    assert_order(app.log, "accept", SUCCESS)


async def test_an_error_in_the_endpoint() -> None:
    app = App()

    @app.websocket("/")
    async def endpoint(socket: WebSocket, tasks: Tasks) -> None:
        app.schedule(tasks)
        await socket.accept()
        raise ValueError

    async with running(app):
        answer = await websocket(app, "/", log=app.log)
    assert isinstance(answer.error, ValueError)
    assert_order(app.log, "accept", ERROR)


async def test_a_dependency_that_fails_on_exit() -> None:
    app = App()

    async def bad_commit() -> AsyncIterator[None]:
        yield
        raise OSError("commit failed")

    @app.websocket("/", dependencies=[Depends(bad_commit)])
    async def endpoint(socket: WebSocket, tasks: Tasks) -> None:
        app.schedule(tasks)
        await socket.accept()
        await socket.close()

    async with running(app):
        assert isinstance((await websocket(app, "/", log=app.log)).error, OSError)
    assert_order(app.log, "accept", "close", ERROR)


async def test_a_refused_handshake_is_an_error() -> None:
    app = App()

    @app.websocket("/close")
    async def closes(socket: WebSocket, tasks: Tasks) -> None:
        app.schedule(tasks)
        await socket.close()

    @app.websocket("/raise")
    async def raises(socket: WebSocket, tasks: Tasks) -> None:
        app.schedule(tasks)
        raise WebSocketException(1008)

    @app.websocket("/respond")
    async def responds(socket: WebSocket, tasks: Tasks) -> None:
        app.schedule(tasks)
        await socket.send_denial_response(PlainTextResponse("no", status_code=401))

    async with running(app):
        for path, said in (("/close", ["close"]), ("/raise", ["close"])):
            app.log.clear()
            await websocket(app, path, log=app.log)
            await turns(50)
            assert_order(app.log, *said, ERROR)
        seen = Origins()
        with observe(seen):
            await websocket(app, "/respond", log=app.log)
        assert seen.statuses == [401]


class Origins(TaskObserver):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.statuses: list[int] = []

    def origin_event(self, origin: object, event: str) -> None:
        assert isinstance(origin, WebSocketOrigin)
        assert origin.method == "WEBSOCKET"
        self.events.append(event)
        if event == "request_finished":
            self.statuses.append(origin.status)


async def test_what_observers_are_told() -> None:
    app = App()

    @app.websocket("/")
    async def endpoint(socket: WebSocket) -> None:
        assert get_tasks(socket) is get_tasks(socket)
        await socket.accept()
        await socket.close()

    seen = Origins()
    async with running(app):
        with observe(seen):
            await websocket(app, "/", log=[])
    assert seen.events == ["request_started", "route_returned", "request_finished"]
    assert seen.statuses == [0]


async def test_cancelled_by_the_server() -> None:
    app = App()

    @app.websocket("/")
    async def endpoint(socket: WebSocket, tasks: Tasks) -> None:
        app.schedule(tasks)
        await socket.accept()
        app.log.append("accepted")
        await anyio.sleep_forever()

    async def connect() -> None:
        await websocket(app, "/", log=app.log, code=None)

    async with running(app), anyio.create_task_group() as group:
        group.start_soon(connect)
        while "accepted" not in app.log:
            await turns()
        group.cancel_scope.cancel()
    assert_order(app.log, "accept", "accepted", ERROR)

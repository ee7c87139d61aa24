"""`tasks.add_task()` keeps the rule of `BackgroundTasks`; each case runs with both, and they agree."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from asgi_spy import DISCONNECT, EMPTY_BODY, http_scope, note, receiving, request, running, turns, websocket
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Response, WebSocket
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tasks_core import TaskConfig
from tasks_fastapi import Tasks, add_tasks, current_tasks, get_tasks

pytestmark = pytest.mark.anyio


class DeniedError(Exception):
    """An exception for which the application has a handler."""


def denied_plainly(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("denied", status_code=403)


async def denied(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("denied", status_code=403)


class DeniedObject:
    async def __call__(self, _request: Request, _error: Exception) -> Response:
        return PlainTextResponse("denied", status_code=403)


class Catching:
    """A middleware that turns an exception into a response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except LookupError:
            await PlainTextResponse("caught", status_code=404)(scope, receive, send)


class Passing(BaseHTTPMiddleware):
    """It runs the application in a task of its own."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response


def make_app(log: list[str]) -> FastAPI:
    """Have each endpoint twice: behind `/background` with BackgroundTasks, behind `/tasks` with Tasks."""
    app = FastAPI()

    async def exits(broken: bool = False) -> AsyncIterator[None]:
        yield
        if broken:
            raise RuntimeError("commit failed")

    def routes(prefix: str, annotation: Any) -> None:
        async def early(tasks: annotation) -> None:
            tasks.add_task(note, log, "from a dependency")

        @app.get(f"{prefix}/returned")
        async def returned(tasks: annotation, status: int = 200) -> Response:
            tasks.add_task(note, log, "ran")
            return JSONResponse({}, status_code=status)

        @app.get(f"{prefix}/plain")
        def plain(tasks: annotation) -> None:
            tasks.add_task(log.append, "ran")

        @app.get(f"{prefix}/raised")
        async def raised(tasks: annotation, kind: str) -> None:
            tasks.add_task(note, log, "ran")
            raise {
                "http": HTTPException(404),
                "starlette": StarletteHTTPException(404),
                "denied": DeniedError(),
                "unhandled": ValueError("boom"),
                "caught": LookupError(),
            }[kind]

        @app.get(f"{prefix}/invalid", dependencies=[Depends(early)])
        async def invalid(number: int) -> None: ...

        @app.get(f"{prefix}/refused", dependencies=[Depends(early)])
        async def refused(_user: Annotated[None, Depends(refuse)]) -> None: ...

        @app.get(f"{prefix}/handled")
        async def handled(tasks: annotation) -> None:
            try:
                raise KeyError
            except KeyError:
                tasks.add_task(note, log, "ran")

    async def refuse() -> None:
        raise HTTPException(401)

    routes("/background", BackgroundTasks)
    routes("/tasks", Tasks)
    add_tasks(app)
    return app


RUNS = ["returned", "returned?status=404", "returned?status=500", "plain", "handled"]
DOES_NOT_RUN = [
    *[f"raised?kind={kind}" for kind in ("http", "starlette", "denied", "unhandled", "caught")],
    "invalid?number=x",
    "refused",
]
MIDDLEWARES: list[Any] = [None, Passing]


@pytest.mark.parametrize("handler", [denied, denied_plainly, DeniedObject()], ids=["async", "plain", "object"])
@pytest.mark.parametrize("middleware", MIDDLEWARES, ids=["bare", "BaseHTTPMiddleware"])
@pytest.mark.parametrize("path", RUNS + DOES_NOT_RUN)
async def test_it_agrees_with_background_tasks(path: str, middleware: Any, handler: Any) -> None:
    logs: list[list[str]] = []
    app = FastAPI()
    for prefix in ("background", "tasks"):
        log: list[str] = []
        app = make_app(log)
        app.add_exception_handler(DeniedError, handler)
        app.add_middleware(Catching)
        if middleware is not None and path != "raised?kind=caught":
            app.add_middleware(middleware)
        async with running(app):
            name, _, query = path.partition("?")
            await request(app, f"/{prefix}/{name}", query_string=query.encode())
        logs.append(log)
    assert logs[0] == logs[1] == (["ran"] if path in RUNS else [])
    assert app.exception_handlers[DeniedError] is handler


async def test_it_starts_after_the_response_and_after_the_dependencies() -> None:
    log: list[str] = []
    app = FastAPI()
    add_tasks(app)

    async def session() -> AsyncIterator[None]:
        yield
        log.append("committed")

    @app.get("/")
    async def endpoint(tasks: Tasks, _session: Annotated[None, Depends(session)]) -> None:
        task = tasks.add_task(note, log, "ran")
        assert task.phase is not None
        assert task.phase.name == "after_response"
        assert task.where.startswith(__file__)

    async with running(app):
        await request(app, log=log)
        await turns()
    assert log == ["start 200", "last byte", "last byte sent", "committed", "ran"]


async def test_it_runs_when_the_exit_of_a_dependency_fails() -> None:
    """The response was returned, and sent."""
    log: list[str] = []
    app = FastAPI()
    add_tasks(app)

    async def session() -> AsyncIterator[None]:
        yield
        raise RuntimeError("commit failed")

    @app.get("/")
    async def endpoint(tasks: Tasks, _session: Annotated[None, Depends(session)]) -> None:
        tasks.add_task(note, log, "ran")

    async with running(app):
        assert isinstance((await request(app)).error, RuntimeError)
    assert log == ["ran"]


@pytest.mark.parametrize("kind", ["file", "stream", "send fails"])
async def test_it_runs_when_the_client_disconnects_in_the_middle(kind: str, tmp_path: Path) -> None:
    """The clean-up of a temporary file must not depend on the client."""
    app = FastAPI()
    add_tasks(app)
    path = tmp_path / "export.csv"
    path.write_bytes(b"x" * 1_000_000)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await anyio.sleep_forever()

    @app.get("/")
    async def endpoint(tasks: Tasks) -> Response:
        tasks.add_task(path.unlink)
        return StreamingResponse(chunks()) if kind == "stream" else FileResponse(path)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("connection lost")

    async def receive() -> Message:
        return DISCONNECT

    async with running(app):
        if kind == "stream":
            with anyio.fail_after(5):
                await request(app, receive=receive, asgi={"version": "3.0", "spec_version": "2.3"})
        else:
            await request(app, receive=receiving(EMPTY_BODY), send=send)
        with anyio.fail_after(5):
            while path.exists():
                await anyio.sleep(0.001)


async def test_what_does_not_run_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app([])
    with caplog.at_level(logging.INFO):
        async with running(app):
            await request(app, "/tasks/raised", query_string=b"kind=http")
    assert "no response was returned, because the endpoint or a dependency raised" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_mounted_application_and_one_without_handlers() -> None:
    log: list[str] = []

    async def endpoint(connection: Request) -> Response:
        get_tasks(connection).add_task(note, log, "never")
        raise StarletteHTTPException(404)

    app = Starlette(routes=[Route("/", endpoint)])
    add_tasks(app)
    outer = FastAPI()
    outer.mount("/inner", app)
    add_tasks(outer)
    async with running(app):
        assert (await request(app)).status == 404
    async with running(outer):
        assert (await request(outer, "/inner/")).status == 404
    assert log == []


async def test_the_configuration_of_the_application_does_not_choose_the_outcome() -> None:
    log: list[str] = []
    app = FastAPI()
    add_tasks(app, config=TaskConfig(when="error", shield=True))

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        assert tasks.add_task(note, log, "ran").config.shielded

    async with running(app):
        await request(app)
    assert log == ["ran"]


@pytest.mark.parametrize("fails", [False, True])
async def test_websocket(fails: bool) -> None:
    log: list[str] = []
    app = FastAPI()
    add_tasks(app)

    @app.websocket("/")
    async def endpoint(socket: WebSocket, tasks: Tasks) -> None:
        tasks.add_task(note, log, "ran")
        await socket.accept()
        if fails:
            raise ValueError("boom")
        await socket.receive_text()  # raises at the disconnect, which is no error

    async with running(app):
        await websocket(app, "/", log=[])
    assert log == ([] if fails else ["ran"])


async def test_late_calls() -> None:
    """After the response: in the exit of a dependency, and in a task of the request."""
    log: list[str] = []
    app = FastAPI()
    add_tasks(app)

    async def late(tasks: Tasks) -> AsyncIterator[None]:
        try:
            yield
        finally:
            tasks.add_task(note, log, "from the exit")

    async def again() -> None:
        current_tasks().add_task(note, log, "from a task")

    @app.get("/")
    async def endpoint(tasks: Tasks, _late: Annotated[None, Depends(late)], fails: bool = False) -> None:
        tasks.after_response.task(when="always").schedule(again)
        if fails:
            raise HTTPException(404)

    async with running(app):
        await request(app)
        await turns()
        assert sorted(log) == ["from a task", "from the exit"]
        log.clear()
        await request(app, query_string=b"fails=1")
    assert log == []


async def test_a_request_inside_of_an_except_block_is_not_taken_for_one_that_raised() -> None:
    """The exception is that of the client, which calls the application in its own task."""
    log: list[str] = []
    app = FastAPI()
    add_tasks(app)

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.add_task(note, log, "ran")

    async def send(message: Message) -> None: ...

    async with running(app):
        try:
            raise KeyError
        except KeyError:
            await app(http_scope(), receiving(EMPTY_BODY), send)
    assert log == ["ran"]

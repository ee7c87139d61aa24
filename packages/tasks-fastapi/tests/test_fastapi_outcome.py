"""Which deferred tasks run, by how the request ended: `when="success"`, `"error"`, `"always"`, in both phases."""

import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import anyio
import pytest
from asgi_spy import DISCONNECT, EMPTY_BODY, Spy, http_scope, receiving, request, running, turns
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tasks_core import Outcome, Task, TaskState, When, current_task
from tasks_fastapi import RequestTasks, TaskConfig, Tasks, add_tasks, get_tasks

pytestmark = pytest.mark.anyio

WHENS: tuple[When, ...] = ("success", "error", "always")


class HandledError(Exception):
    """For which the application has a handler."""


class Endless:
    """A body that has no end; no generator, which would have to be closed."""

    def __aiter__(self) -> "Endless":
        return self

    async def __anext__(self) -> bytes:
        return b"more"


class Scheduled:
    """For each phase, one task for each `when`; all of one request."""

    def __init__(self) -> None:
        self.tasks: dict[tuple[str, str], Task[Any]] = {}
        self.ran: list[tuple[str, str]] = []

    def schedule(self, tasks: RequestTasks) -> None:
        for phase in (tasks.after_route, tasks.after_response):
            for when in WHENS:
                key = phase.name, when
                self.tasks[key] = phase.task(when=when).schedule(self.ran.append, key)

    async def finished(self) -> None:
        for task in self.tasks.values():
            await task.wait()

    def outcome_of(self, phase: str) -> str:
        """Tell the outcome by which tasks of the phase ran; every other one has to be discarded, for that reason."""
        ran = {when for ran_phase, when in self.ran if ran_phase == phase}
        for when in WHENS:
            task = self.tasks[phase, when]
            assert task.state is (TaskState.SUCCEEDED if when in ran else TaskState.DISCARDED)
        (outcome,) = ran - {"always"}
        assert ran == {outcome, "always"}
        (other,) = set(WHENS) - ran
        assert self.tasks[phase, other].reason == f"it is for when='{other}', and {phase} ended in {outcome}"
        return outcome


def make_app(scheduled: Scheduled) -> FastAPI:
    app = FastAPI()
    add_tasks(app)
    app.add_exception_handler(HandledError, lambda _request, _error: Response("handled"))

    async def all_tasks(tasks: Tasks) -> None:
        scheduled.schedule(tasks)

    async def bad_commit() -> AsyncIterator[None]:
        yield
        await turns()
        raise RuntimeError("commit failed")

    async def rollback() -> AsyncIterator[None]:
        try:
            yield
        except ValueError:
            await turns()
            raise

    app.router.dependencies.append(Depends(all_tasks))

    @app.get("/returned/{status}")
    async def returned(status: int) -> Response:
        return Response(status_code=status)

    @app.get("/http-exception")
    async def http_exception() -> None:
        raise HTTPException(409)

    @app.get("/handled")
    async def handled() -> None:
        raise HandledError

    @app.get("/unhandled", dependencies=[Depends(rollback)])
    async def unhandled() -> None:
        raise ValueError

    @app.get("/validation")
    async def validation(number: Annotated[int, Query()]) -> None: ...

    @app.get("/redirect")
    async def redirect() -> Response:
        return RedirectResponse("/")

    @app.get("/commit/function", dependencies=[Depends(bad_commit, scope="function")])
    async def commit_before_response() -> None: ...

    @app.get("/commit/request", dependencies=[Depends(bad_commit, scope="request")])
    async def commit_after_response() -> None: ...

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        raise RuntimeError("in the middle")

    @app.get("/stream")
    async def stream() -> Response:
        return StreamingResponse(chunks())

    @app.get("/endless")
    async def endless_stream() -> Response:
        return StreamingResponse(Endless())

    class SaysNothing(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await turns()

    @app.get("/silent")
    async def silent() -> Response:
        return SaysNothing()

    class Breaks(JSONResponse):
        """Fails between the head of the response and its body."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise RuntimeError("no body")

    @app.get("/no-body")
    async def no_body() -> Response:
        return Breaks(None)

    class CutOff(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})

    @app.get("/cut-off")
    async def cut_off() -> Response:
        return CutOff()

    @app.get("/slow")
    async def slow() -> None:
        await anyio.sleep_forever()

    return app


@pytest.mark.parametrize(
    "path, status, after_route, after_response",
    [
        ("/returned/204", 204, "success", "success"),
        ("/returned/399", 399, "success", "success"),
        ("/returned/400", 400, "error", "error"),
        ("/returned/404", 404, "error", "error"),
        ("/returned/503", 503, "error", "error"),
        ("/http-exception", 409, "error", "error"),
        ("/handled", 200, "success", "success"),
        ("/unhandled", 500, "error", "error"),
        ("/redirect", 307, "success", "success"),
        ("/commit/function", 500, "error", "error"),
        ("/commit/request", 200, "success", "error"),
        ("/stream", 200, "success", "error"),
        ("/silent", 0, "error", "error"),
        ("/no-body", 200, "success", "error"),
        ("/cut-off", 200, "success", "error"),
    ],
)
async def test_outcome(path: str, status: int, after_route: Outcome, after_response: Outcome) -> None:
    scheduled = Scheduled()
    app = make_app(scheduled)
    async with running(app):
        answer = await request(app, path)
        assert answer.status == status
    assert scheduled.outcome_of("after_route") == after_route
    assert scheduled.outcome_of("after_response") == after_response


async def test_a_request_that_fails_validation_is_an_error() -> None:
    scheduled = Scheduled()
    app = make_app(scheduled)
    async with running(app):
        assert (await request(app, "/validation")).status == 422
    assert scheduled.outcome_of("after_route") == scheduled.outcome_of("after_response") == "error"


async def test_client_that_is_gone_raises_in_send() -> None:
    scheduled = Scheduled()
    app = make_app(scheduled)
    spy = Spy()

    async def send(message: Message) -> None:
        if spy.answer.body:
            raise OSError("connection lost")
        await spy(message)

    async with running(app):
        assert isinstance((await request(app, "/endless", send=send)).error, ClientDisconnect)
    assert scheduled.outcome_of("after_route") == "success"
    assert scheduled.outcome_of("after_response") == "error"


async def test_client_that_is_gone_is_told_by_receive() -> None:
    scheduled = Scheduled()
    app = make_app(scheduled)
    receive = receiving(EMPTY_BODY, DISCONNECT)
    async with running(app):
        answer = await request(app, "/endless", receive=receive, asgi={"version": "3.0", "spec_version": "2.3"})
        assert answer.error is None
    assert scheduled.outcome_of("after_route") == "success"
    assert scheduled.outcome_of("after_response") == "error"


async def test_request_cancelled_by_the_server() -> None:
    scheduled = Scheduled()
    app = make_app(scheduled)
    async with running(app), anyio.create_task_group() as group:
        group.start_soon(request, app, "/slow")
        await turns(100)
        assert scheduled.tasks
        group.cancel_scope.cancel()
    assert scheduled.outcome_of("after_route") == scheduled.outcome_of("after_response") == "error"


async def test_what_is_dropped_is_logged_without_arguments(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    add_tasks(app)

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.task(name="greet").schedule(print, "secret")
        raise HTTPException(404)

    with caplog.at_level(logging.INFO, "tasks_core"):
        async with running(app):
            await request(app)
    (line,) = (record for record in caplog.records if "discarded" in record.getMessage())
    assert line.levelno == logging.INFO
    assert line.getMessage().startswith("Task 'greet' #")
    assert line.getMessage().endswith("was discarded: it is for when='success', and after_response ended in error")
    assert "secret" not in caplog.text


@pytest.mark.parametrize("phase", ["after_route", "after_response"])
async def test_default_of_the_application_for_when(phase: Literal["after_route", "after_response"]) -> None:
    """A task that is for every outcome unless it says otherwise."""
    ran: list[str] = []
    app = FastAPI()
    add_tasks(app, config=TaskConfig(when="always"))

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        getattr(tasks, phase).schedule(ran.append, "always")
        getattr(tasks, phase).task(when="success").schedule(ran.append, "success")
        raise HTTPException(404)

    async with running(app):
        await request(app)
    assert ran == ["always"]


async def test_a_middleware_that_answers_in_place_of_the_application() -> None:
    scheduled = Scheduled()
    app = FastAPI()

    class Refuses:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return
            scheduled.schedule(get_tasks(Request(scope)))
            await Response(status_code=int(scope["path"][1:]))(scope, receive, send)

    add_tasks(app)
    app.add_middleware(Refuses)
    async with running(app):
        await request(app, "/403")
        await scheduled.finished()
        assert scheduled.outcome_of("after_route") == scheduled.outcome_of("after_response") == "error"
        scheduled.ran.clear()
        await request(app, "/200")
    assert scheduled.outcome_of("after_route") == scheduled.outcome_of("after_response") == "success"


async def test_what_the_request_says_of_itself() -> None:
    """`current_task().phase.origin` is the request: its status and outcome, for the tasks that come after it."""
    origins: list[Any] = []

    async def look() -> None:
        task = current_task()
        assert task is not None
        assert task.phase is not None
        origin: Any = task.phase.origin
        origins.append((origin.method, origin.path, origin.status, origin.outcome, origin.error))

    app = FastAPI()
    add_tasks(app)

    @app.post("/orders/{status}")
    async def endpoint(tasks: Tasks, status: int) -> Response:
        tasks.after_response.task(when="always").schedule(look)
        return Response(status_code=status)

    async with running(app):
        await request(app, "/orders/201", "POST")
        await request(app, "/orders/409", "POST")
    assert sorted(origins) == [
        ("POST", "/orders/201", 201, "success", None),
        ("POST", "/orders/409", 409, "error", None),
    ]


async def test_scope_without_a_handler_is_passed_on() -> None:
    """A scope of an unknown type is passed to the application."""
    app = FastAPI()
    add_tasks(app)
    async with running(app):
        with pytest.raises(AssertionError):
            await app({**http_scope(), "type": "webtransport"}, receiving(), Spy())

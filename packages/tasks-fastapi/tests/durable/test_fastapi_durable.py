"""Durable tasks of a request: stored before the response begins, dropped when they are not wanted, or a 503."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from typing import Annotated, Any

import anyio
import core_durable_functions as functions
import pytest
from asgi_spy import Answer, request, running, websocket
from core_durable_functions import forget, note
from core_engine import ListEngine
from fastapi import Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from tasks_core import TaskScheduler, TaskState
from tasks_core.exceptions import InvalidConfigError
from tasks_core.testing import override_engine
from tasks_fastapi import Tasks, add_tasks, get_scheduler

__all__ = ("forget",)

pytestmark = pytest.mark.anyio


async def session(connection: HTTPConnection) -> AsyncIterator[str]:
    """Commits in its exit, which is behind the response."""
    log: list[str] = connection.app.state.log
    try:
        yield "session"
    except BaseException:
        log.append("rolled back")
        raise
    log.append("committed")


def make_app(engine: ListEngine, log: list[str] | None = None, **options: Any) -> FastAPI:
    app = FastAPI()
    add_tasks(app, engine=engine, **options)
    engine.log = app.state.log = [] if log is None else log

    @app.post("/all")
    async def everything(tasks: Tasks, end: int = 200) -> None:
        tasks.schedule(note, "now")
        tasks.after_route.schedule(note, "after_route")
        tasks.after_response.schedule(note, "after_response")
        tasks.after_response.task(when="error").schedule(note, "error")
        tasks.after_response.task(when="always").schedule(note, "always")
        if end != 200:
            raise HTTPException(end)

    @app.post("/sync")
    def in_a_thread(tasks: Tasks) -> None:
        tasks.after_response.schedule(note, "from a thread")

    @app.post("/commit")
    async def commit(tasks: Tasks, session: Annotated[str, Depends(session)]) -> dict[str, str]:
        tasks.after_response.schedule(note.configure(transaction=session), "in the transaction")
        tasks.schedule(note.configure(transaction=session), "immediate")
        return {"state": "stored"}

    @app.post("/raise")
    async def fail(tasks: Tasks) -> None:
        tasks.after_response.schedule(note, "success")
        tasks.after_route.task(when="error").schedule(note, "error")
        raise LookupError

    @app.get("/stream")
    async def stream(tasks: Tasks) -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield "a"
            task = tasks.after_response.schedule(note, "late")
            await task
            engine.log.append("in the middle of the stream")
            yield "b"

        tasks.schedule(note, "early")
        return StreamingResponse(body())

    @app.get("/plain")
    async def no_durable(tasks: Tasks) -> None:
        tasks.after_response.schedule(engine.log.append, "plain task")

    @app.websocket("/ws")
    async def socket(websocket: WebSocket, tasks: Tasks) -> None:
        await websocket.accept()
        await tasks.schedule(note, "immediate")
        await tasks.after_response.schedule(note, "after_response")
        tasks.after_response.task(when="error").schedule(note, "error")
        engine.log.append("endpoint returns")

    return app


def stored(engine: ListEngine) -> list[object]:
    return [call.args["text"] for call in engine.calls]


async def post(engine: ListEngine, path: str, **options: Any) -> Answer:
    app = make_app(engine, **options)
    async with running(app):
        return await request(app, path.partition("?")[0], "POST", query_string=path.partition("?")[2].encode())


async def test_tasks_of_every_phase_are_stored_before_the_response_begins() -> None:
    engine = ListEngine()
    log: list[str] = []
    app = make_app(engine, log)
    async with running(app):
        answer = await request(app, "/all", "POST", log=log)
    assert answer.status == 200
    assert sorted(stored(engine), key=str) == ["after_response", "after_route", "always", "now"]
    begins = log.index("start 200")
    assert log[:begins].count(f"has {note.name}") == 4
    assert f"asked {note.name}" not in log[begins:]
    assert functions.ran == []


async def test_error_stores_what_is_for_errors() -> None:
    engine = ListEngine()
    assert (await post(engine, "/all?end=409")).status == 409
    assert sorted(stored(engine), key=str) == ["always", "error", "now"]


async def test_exception_stores_what_is_for_errors() -> None:
    engine = ListEngine()
    answer = await post(engine, "/raise")
    assert (answer.status, type(answer.error)) == (500, LookupError)
    assert stored(engine) == ["error"]


async def test_endpoint_in_a_thread() -> None:
    engine = ListEngine()
    log: list[str] = []
    app = make_app(engine, log)
    async with running(app):
        await request(app, "/sync", "POST", log=log)
    assert log.index(f"has {note.name}") < log.index("start 200")


async def test_response_waits_for_the_engine() -> None:
    engine = ListEngine()
    engine.gate = anyio.Event()
    log: list[str] = []
    app = make_app(engine, log)
    async with running(app), anyio.create_task_group() as group:
        group.start_soon(lambda: request(app, "/sync", "POST", log=log))
        with anyio.fail_after(10):
            while f"asked {note.name}" not in log:
                await anyio.sleep(0.001)
        await anyio.wait_all_tasks_blocked()
        assert "start 200" not in log
        engine.gate.set()
    assert log.index(f"has {note.name}") < log.index("start 200")


# ---- the engine is away ----


async def test_engine_that_is_away_is_a_503(caplog: pytest.LogCaptureFixture) -> None:
    answer = await post(ListEngine(down=True), "/all")
    assert (answer.status, answer.headers["retry-after"], answer.error) == (503, "5", None)
    assert answer.body == b'{"detail":"A task could not be stored. Try again later."}'
    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.body"]
    assert "POST /all was answered with 503" in caplog.text
    # The first; then the outcome is an error, and those for errors are tried as well.
    assert re.findall(r"\((\w+), .*failed in attempt 1", caplog.text) == ["immediate", *["after_response"] * 2]


async def test_dependency_sees_that_the_response_is_void_and_rolls_back() -> None:
    engine = ListEngine(down=True)
    answer = await post(engine, "/commit")
    assert (answer.status, answer.error) == (503, None)
    assert "rolled back" in engine.log
    assert "committed" not in engine.log


async def test_tasks_are_part_of_the_transaction_when_it_is_committed() -> None:
    engine = ListEngine()
    assert (await post(engine, "/commit")).body == b'{"state":"stored"}'
    has = f"has {note.name}"
    assert engine.log.count(has) == 2
    assert engine.log.index("committed") > max(i for i, line in enumerate(engine.log) if line == has)
    assert engine.transactions == ["session", "session"]


async def test_deferred_tasks_in_memory_see_an_error(caplog: pytest.LogCaptureFixture) -> None:
    engine = ListEngine(down=True)
    app = FastAPI()
    add_tasks(app, engine=engine)
    ran: list[str] = []

    @app.post("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(note, "durable")
        for phase in (tasks.after_route, tasks.after_response):
            phase.schedule(ran.append, "success")
            phase.task(when="error").schedule(ran.append, f"error {phase.name}")

    async with running(app):
        assert (await request(app, "/", "POST")).status == 503
    assert sorted(ran) == ["error after_response", "error after_route"]


async def test_engine_that_objects_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    def object_to(_call: object) -> None:
        raise ValueError("no such table")

    engine = ListEngine()
    engine.on_submit = object_to
    answer = await post(engine, "/sync")
    assert (answer.status, answer.body, answer.error) == (500, b"Internal Server Error", None)
    assert "no such table" in caplog.text


@pytest.mark.parametrize("handled", [Exception, ConnectionError])
async def test_handlers_of_the_application_cannot_answer_twice(handled: type[Exception]) -> None:
    engine = ListEngine(down=True)
    app = make_app(engine)

    async def answer_again(_request: Request, _error: Exception) -> Response:
        return PlainTextResponse("handled", status_code=418)

    app.add_exception_handler(handled, answer_again)
    async with running(app):
        answer = await request(app, "/sync", "POST")
    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.body"]
    assert (answer.status, answer.error) == (503, None)


async def test_behind_a_middleware_that_sends_by_itself() -> None:
    engine = ListEngine(down=True)
    app = make_app(engine)

    async def passing(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    async with running(app):
        answer = await request(app, "/sync", "POST")
    assert (answer.status, answer.error) == (503, None)


async def test_an_error_that_the_replaced_response_does_not_explain_is_not_hidden() -> None:
    engine = ListEngine(down=True)
    app = make_app(engine)

    class Breaking:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return
            with suppress(Exception):
                await self.app(scope, receive, send)
            raise LookupError("from a middleware")

    app.add_middleware(Breaking)
    async with running(app):
        answer = await request(app, "/sync", "POST")
    assert answer.status == 503
    assert isinstance(answer.error, LookupError)


async def test_in_memory_as_an_explicit_choice(caplog: pytest.LogCaptureFixture) -> None:
    engine = ListEngine(down=True)
    assert (await post(engine, "/all", engine_fallback="memory")).status == 200
    assert sorted(functions.ran) == ["after_response", "after_route", "always", "now"]
    assert caplog.text.count("runs in this process, and is lost if that ends") == 4


@pytest.mark.parametrize("lifespan", [True, False])
async def test_in_memory_where_there_is_no_engine(lifespan: bool, caplog: pytest.LogCaptureFixture) -> None:
    """One line at startup; each task waits for its phase and for the outcome, as with an engine."""
    app = FastAPI()
    # An application whose engine is in its settings has no engine in one place, and the other options stay.
    add_tasks(app, engine=None, without_engine="memory", worker_concurrency=4)
    moments: list[list[str]] = []

    @app.post("/orders/{status}")
    async def create_order(tasks: Tasks, status: int) -> None:
        tasks.after_response.schedule(note.configure(idempotency_key="k"), "after_response")
        tasks.after_response.schedule(note.configure(idempotency_key="k"), "the same key")
        tasks.after_response.task(when="error").schedule(note, "error")
        await anyio.wait_all_tasks_blocked()
        moments.append(list(functions.ran))
        if status != 200:
            raise HTTPException(status)

    async with running(app) if lifespan else nullcontext():
        assert (await request(app, "/orders/409", "POST")).status == 409
        assert (await request(app, "/orders/200", "POST")).status == 200
        assert (await request(app, "/orders/200", "POST")).status == 200
    assert moments[0] == []
    # Without a lifespan, each request has a scheduler, and knows the keys of that one.
    # Of two tasks of a phase with one key, either may begin first.
    assert functions.ran[0] == "error"
    assert len(functions.ran) == (2 if lifespan else 3)
    assert set(functions.ran[1:]) <= {"after_response", "the same key"}
    lines = [r for r in caplog.records if r.levelname == "WARNING" and "There is no engine" in r.getMessage()]
    assert len(lines) == lifespan


# ---- where there is no response to wait for ----


async def test_after_the_response_has_begun_they_are_stored_at_once() -> None:
    engine = ListEngine()
    log: list[str] = []
    app = make_app(engine, log)
    async with running(app):
        await request(app, "/stream", log=log)
    assert stored(engine) == ["early", "late"]
    assert "in the middle of the stream" in log


async def test_websocket_stores_them_at_once() -> None:
    engine = ListEngine()
    log: list[str] = []
    app = make_app(engine, log)
    async with running(app):
        await websocket(app, "/ws", log=log)
    assert stored(engine) == ["immediate", "after_response"]
    assert log.index("endpoint returns") > max(i for i, line in enumerate(log) if line.startswith("has"))


async def test_without_a_lifespan_the_engine_is_entered_for_the_request() -> None:
    engine = ListEngine()
    app = make_app(engine)
    assert (await request(app, "/all", "POST")).status == 200
    assert (engine.log[0], engine.log[-1], len(engine.calls)) == ("entered", "left", 4)


# ---- what goes along, and who runs it ----


async def test_request_id_goes_along() -> None:
    engine = ListEngine()
    app = make_app(engine)
    async with running(app):
        await request(app, "/sync", "POST", headers=[(b"x-request-id", b"r-7"), (b"cookie", b"secret")])
    assert engine.calls[0].headers["x-request-id"] == "r-7"
    assert "secret" not in str(engine.calls[0].headers)


@pytest.mark.parametrize("slots", [2, {"default": 1, "payments": 1}])
async def test_embedded_worker_runs_them_in_this_process(slots: int | dict[str, int]) -> None:
    engine = ListEngine()
    app = make_app(engine, worker_concurrency=slots)
    with anyio.fail_after(10):
        async with running(app):
            await request(app, "/sync", "POST")
            while functions.ran != ["from a thread"]:
                await anyio.sleep(0.005)
            statistics = get_scheduler(app).statistics()
            assert statistics.running == 1
    assert engine.log[-2:] == [f"done {note.name}", "left"]


async def test_embedded_worker_gives_way_to_an_override() -> None:
    engine, other = ListEngine(), ListEngine()
    with override_engine(other):
        app = make_app(engine, worker_concurrency=2)
        async with running(app):
            await request(app, "/sync", "POST")
    assert (len(other.calls), engine.log, functions.ran) == (1, [], [])


@pytest.mark.parametrize(
    "options",
    [
        {"worker_concurrency": 2},
        {"engine": ListEngine(), "worker_concurrency": 0},
        {"engine": ListEngine(), "worker_concurrency": {"payments": 0}},
        {"engine": "postgresql://"},
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfigError):
        add_tasks(FastAPI(), **options)


async def test_request_without_durable_tasks_asks_nobody() -> None:
    engine = ListEngine(down=True)
    log: list[str] = []
    app = make_app(engine, log)
    async with running(app):
        assert (await request(app, "/plain", log=log)).status == 200
    assert log.count("plain task") == 1
    assert not [line for line in log if line.startswith("asked")]


async def test_scheduler_outside_of_a_request() -> None:
    engine = ListEngine()
    app = make_app(engine)
    async with running(app):
        scheduler = get_scheduler(app)
        assert isinstance(scheduler, TaskScheduler)
        task = scheduler.schedule(note, "x")
        await task
    assert task.state is TaskState.SUCCEEDED

"""Dependencies in tasks: resolved by FastAPI, in a scope of their own for each attempt."""

import gc
import logging
import re
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from asgi_spy import request, running, turns, websocket
from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Query, Request, Security, WebSocket
from fastapi.security import OAuth2PasswordBearer, SecurityScopes
from opentelemetry import baggage
from opentelemetry.context import attach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from tasks_core import Provided, Task, TaskConfig, TaskScheduler, TaskState, retry
from tasks_core.exceptions import InvalidTaskError
from tasks_fastapi import Tasks, add_tasks, current_tasks, get_scheduler

pytestmark = pytest.mark.anyio


class Session:
    """What a dependency opens. It notes its life in the log of the test."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def __str__(self) -> str:
        return self.name


LOG: list[str] = []


@pytest.fixture(autouse=True)
def empty_log() -> None:
    LOG.clear()


def get_engine() -> str:
    LOG.append("engine")
    return "engine"


async def get_session(engine: Annotated[str, Depends(get_engine)]) -> AsyncIterator[Session]:
    LOG.append("open")
    try:
        yield Session(f"session of {engine}", LOG)
    except BaseException as error:
        LOG.append(f"rollback {type(error).__name__}")
        raise
    else:
        LOG.append("commit")
    finally:
        LOG.append("close")


SessionDep = Annotated[Session, Depends(get_session)]


async def send(order_id: int, session: SessionDep = Provided) -> str:
    LOG.append(f"send {order_id} with {session}")
    if order_id == 13:
        raise ValueError("unlucky")
    return "sent"


async def send_without_default(order_id: int, session: SessionDep) -> None:
    LOG.append(f"send {order_id} with {session}")


async def send_the_old_way(order_id: int, session: Session = Depends(get_session)) -> None:  # noqa: B008
    LOG.append(f"send {order_id} with {session}")


def send_plainly(order_id: int, session: SessionDep = Provided) -> str:
    LOG.append(f"send {order_id} with {session}")
    return threading.current_thread().name


async def send_by_name(*, order_id: int, session: SessionDep = Provided) -> None:
    LOG.append(f"send {order_id} with {session}")


async def send_with_textual_annotation(order_id: int, session: "SessionDep" = Provided) -> None:
    LOG.append(f"send {order_id} with {session}")


class Mailer:
    async def send(self, order_id: int, session: SessionDep = Provided) -> None:
        LOG.append(f"send {order_id} with {session}")

    async def __call__(self, order_id: int, session: SessionDep = Provided) -> None:
        await self.send(order_id, session)


@asynccontextmanager
async def application(**options: Any) -> AsyncIterator[tuple[FastAPI, TaskScheduler]]:
    app = FastAPI()
    add_tasks(app, **options)
    async with running(app):
        yield app, get_scheduler(app)


SENT = ["engine", "open", "send 5 with session of engine", "commit", "close"]
WAYS: dict[str, Callable[[TaskScheduler], Task[Any]]] = {
    "async": lambda scheduler: scheduler.schedule(send, 5),
    "without default": lambda scheduler: scheduler.schedule(send_without_default, 5),  # type: ignore[call-overload]
    "default Depends": lambda scheduler: scheduler.schedule(send_the_old_way, 5),
    "plain": lambda scheduler: scheduler.schedule(send_plainly, 5),
    "by name": lambda scheduler: scheduler.schedule(send_by_name, order_id=5),
    "name of a positional": lambda scheduler: scheduler.schedule(send, order_id=5),
    "textual annotation": lambda scheduler: scheduler.schedule(send_with_textual_annotation, 5),
    "method": lambda scheduler: scheduler.schedule(Mailer().send, 5),
    "object": lambda scheduler: scheduler.schedule(Mailer(), 5),
    "partial": lambda scheduler: scheduler.schedule(partial(send, 5)),
    "with a timeout": lambda scheduler: scheduler.task(timeout=60).schedule(send, 5),
    "with a delay": lambda scheduler: scheduler.task(delay=0.001).schedule(send, 5),
}


@pytest.mark.parametrize("way", WAYS)
async def test_the_dependency_is_open_while_the_task_runs(way: str) -> None:
    async with application() as (_, scheduler):
        task = WAYS[way](scheduler)
        await task
        assert SENT == LOG  # also the exit, before the task is reported as ended
        assert task.args in ((5,), ())
        assert "session" not in task.kwargs
    await turns()


async def test_a_plain_function_runs_in_a_thread_of_the_scheduler() -> None:
    async with application() as (_, scheduler):
        assert await scheduler.schedule(send_plainly, 5) == "tasks worker thread"


async def test_an_argument_that_is_passed_is_not_supplied() -> None:
    async with application() as (_, scheduler):
        mine = Session("mine", LOG)
        await scheduler.schedule(send, 5, mine)
        await scheduler.schedule(send, 5, session=mine)
        await scheduler.schedule(partial(send, session=mine), 5)
        await send(5, mine)
    assert LOG == ["send 5 with mine"] * 4


async def test_phases_of_requests_and_websockets() -> None:
    app = FastAPI()
    add_tasks(app)

    @app.get("/")
    async def endpoint(tasks: Tasks, session: SessionDep) -> None:
        tasks.after_response.schedule(send, 5)
        tasks.add_task(send, 5)

    @app.websocket("/ws")
    async def connection(socket: WebSocket, tasks: Tasks) -> None:
        tasks.after_response.schedule(send, 5)
        await socket.accept()
        await socket.close()

    async with running(app):
        assert (await request(app)).error is None
        await websocket(app, "/ws", log=[])
    assert LOG[:4] == ["engine", "open", "commit", "close"]  # of the request
    assert sorted(LOG[4:]) == sorted(SENT * 3)


async def test_the_exception_of_the_task_reaches_the_dependency_and_is_the_one_that_the_task_has() -> None:
    async with application() as (_, scheduler):
        task = scheduler.schedule(send, 13)
        with pytest.raises(ValueError, match="unlucky") as caught:
            await task
        assert caught.value is task.exception
        assert LOG[-2:] == ["rollback ValueError", "close"]
        frames = [frame.name for frame in caught.traceback]
        assert frames[-1] == "send"
        others = {"anyio", "fastapi", "starlette", "trio"}
        assert not [frame for frame in caught.traceback if others & set(Path(frame.path).parts)]


async def test_a_retry_gets_new_ones() -> None:
    attempts: list[Session] = []

    async def fails_once(session: SessionDep = Provided) -> None:
        attempts.append(session)
        if len(attempts) == 1:
            raise ConnectionError

    async with application() as (_, scheduler):
        await scheduler.task(on_error=retry(attempts=2, backoff=0)).schedule(fails_once)
    assert len(set(attempts)) == 2
    assert LOG == ["engine", "open", "rollback ConnectionError", "close", "engine", "open", "commit", "close"]


@pytest.mark.parametrize("how", ["cancel", "timeout", "shutdown"])
async def test_a_task_that_is_cancelled_leaves_them_too(how: str) -> None:
    async def hangs(session: SessionDep = Provided) -> None:
        LOG.append("hangs")
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with application(grace_period=0) as (_, scheduler):
            task = scheduler.task(timeout=0.5 if how == "timeout" else None).schedule(hangs)
            while "hangs" not in LOG:
                await turns()
            if how == "cancel":
                task.cancel()
            if how != "shutdown":
                await task.wait()
                assert LOG[-1] == "close"
    assert task.state is (TaskState.FAILED if how == "timeout" else TaskState.CANCELLED)
    assert LOG[-1] == "close"
    assert LOG[-2].startswith("rollback Cancelled")


async def fake() -> AsyncIterator[str]:
    LOG.append("open fake")
    yield "fake"
    LOG.append("close fake")


async def test_overrides_apply_whenever_they_are_set() -> None:
    app = FastAPI()
    add_tasks(app)
    app.dependency_overrides[get_session] = fake
    overridden = ["open fake", "send 5 with fake", "close fake"]
    async with running(app):
        scheduler = get_scheduler(app)
        await scheduler.schedule(send, 5)
        assert overridden == LOG
        app.dependency_overrides.clear()
        LOG.clear()
        await scheduler.schedule(send, 5)
        assert SENT == LOG
        app.dependency_overrides = {get_session: fake}  # another dictionary
        LOG.clear()
        await scheduler.schedule(send, 5)
        assert overridden == LOG
        app.dependency_overrides = {get_engine: lambda: "another engine"}
        LOG.clear()
        await scheduler.schedule(send, 5)
        assert LOG[1] == "send 5 with session of another engine"


async def test_sub_dependencies_are_cached_within_the_attempt() -> None:
    async def repository(session: SessionDep) -> Session:
        return session

    seen: list[Any] = []

    async def uses(
        one: SessionDep = Provided,
        two: Annotated[Session, Depends(repository)] = Provided,
        three: Annotated[Session, Depends(get_session, use_cache=False)] = Provided,
    ) -> None:
        seen.extend((one, two, three))

    async with application() as (_, scheduler):
        await scheduler.schedule(uses)
    assert seen[0] is seen[1]
    assert seen[2] is not seen[0]
    assert LOG.count("open") == LOG.count("close") == 2


async def test_kinds_of_dependencies() -> None:
    class Settings:
        def __init__(self, engine: Annotated[str, Depends(get_engine)]) -> None:
            self.engine = engine

    def plain_generator() -> Iterator[str]:
        LOG.append("enter")
        yield "generated"
        LOG.append("exit")

    async def scopes(security_scopes: SecurityScopes) -> list[str]:
        return security_scopes.scopes

    async def background(tasks: BackgroundTasks) -> str:
        tasks.add_task(LOG.append, "background")
        return "background"

    seen: list[Any] = []

    async def uses(
        settings: Annotated[Settings, Depends()] = Provided,
        value: Annotated[str, Depends(plain_generator)] = Provided,
        function: Annotated[str, Depends(fake, scope="function")] = Provided,
        wanted: Annotated[list[str], Security(scopes, scopes=["orders"])] = Provided,
        added: Annotated[str, Depends(background)] = Provided,
    ) -> None:
        LOG.append("run")
        seen.extend((settings.engine, value, function, wanted, added))

    async with application() as (_, scheduler):
        await scheduler.schedule(uses)
    assert seen == ["engine", "generated", "fake", ["orders"], "background"]
    assert LOG.index("run") < LOG.index("close fake") < LOG.index("exit")
    assert "background" in LOG


async def test_tasks_are_those_of_the_request() -> None:
    app = FastAPI()
    add_tasks(app)
    seen: list[Any] = []

    async def job(tasks: Tasks = Provided) -> None:
        seen.append(tasks)
        assert current_tasks() is tasks
        tasks.after_response.schedule(send, 5)

    async def alone(tasks: Tasks = Provided) -> None:
        await tasks.after_response.schedule(send, 5)

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        await tasks.schedule(job)
        seen.append(tasks)

    async with running(app):
        assert (await request(app)).error is None
        await get_scheduler(app).schedule(alone)
    assert seen[0] is seen[1]
    assert sorted(LOG) == sorted(SENT * 2)


async def current_user(token: Annotated[str, Header()]) -> str:
    return token


async def page(number: Annotated[int, Query(alias="page")] = 1) -> int:
    return number


async def body(data: dict[str, str]) -> dict[str, str]:
    return data


async def raw(connection: Request) -> str:
    return connection.url.path


async def nested(user: Annotated[str, Depends(current_user)]) -> str:
    return user


async def needs_header(user: Annotated[str, Depends(current_user)] = Provided) -> None: ...
async def needs_query(number: Annotated[int, Depends(page)] = Provided) -> None: ...
async def needs_body(data: Annotated[dict[str, str], Depends(body)] = Provided) -> None: ...
async def needs_request(path: Annotated[str, Depends(raw)] = Provided) -> None: ...
async def needs_nested(user: Annotated[str, Depends(nested)] = Provided) -> None: ...
async def needs_token(token: Annotated[str, Depends(OAuth2PasswordBearer("token"))] = Provided) -> None: ...


TAIL = ", and a task has no request. Pass what the task needs of the request as an argument"


@pytest.mark.parametrize(
    "job, need",
    [
        (needs_header, "current_user needs the header parameter 'token'"),
        (needs_query, "page needs the query parameter 'page'"),
        (needs_body, "body needs the body parameter 'data'"),
        (needs_request, "raw needs the request itself"),
        (needs_nested, "current_user needs the header parameter 'token'"),
        (needs_token, "OAuth2PasswordBearer needs the request itself"),
    ],
)
async def test_a_dependency_that_needs_a_request_is_an_error_at_the_call(job: Any, need: str) -> None:
    async with application() as (_, scheduler):
        message = f"{job.__name__}: its dependency {need}{TAIL}"
        with pytest.raises(InvalidTaskError, match=f"^{re.escape(message)}$"):
            scheduler.schedule(job)
        assert scheduler.statistics().scheduled == 0


async def test_an_override_may_need_less_or_more() -> None:
    async with application() as (app, scheduler):
        app.dependency_overrides[current_user] = lambda: "ann"
        await scheduler.schedule(needs_header)
        await scheduler.schedule(needs_nested)
        app.dependency_overrides[get_session] = current_user
        app.dependency_overrides.pop(current_user)
        with pytest.raises(InvalidTaskError, match="current_user needs the header"):
            scheduler.schedule(send, 5)


async def test_bad_declarations_and_calls() -> None:
    async def no_dependency(session: Session = Provided) -> None: ...

    async with application() as (_, scheduler):
        with pytest.raises(InvalidTaskError, match=r"no_dependency: parameter 'session' has the default Provided, and"):
            scheduler.schedule(no_dependency)
        with pytest.raises(InvalidTaskError, match="missing a required argument: 'order_id'"):
            scheduler.schedule(send)  # type: ignore[call-overload]  # refused, as type checkers do
        with pytest.raises(InvalidTaskError, match="too many positional arguments"):
            scheduler.schedule(send, 5, Session("mine", LOG), "more")  # type: ignore[call-overload]  # as above
    assert LOG == []


async def test_a_dependency_that_raises_fails_the_attempt() -> None:
    async def denied() -> None:
        raise HTTPException(401, "not you")

    async def uses(_user: Annotated[None, Depends(denied)] = Provided) -> None:
        LOG.append("never")

    async with application(config=TaskConfig(on_error=lambda _task, _error: True)) as (_, scheduler):
        task = scheduler.schedule(uses)
        await task.wait()
        assert task.state is TaskState.FAILED
        assert isinstance(task.exception, HTTPException)
    assert LOG == []


async def test_a_dependency_that_hides_the_exception_fails_the_task(caplog: pytest.LogCaptureFixture) -> None:
    async def hides() -> AsyncIterator[None]:
        with suppress(ValueError):
            yield

    async def fails(_value: Annotated[None, Depends(hides)] = Provided) -> None:
        raise ValueError("hidden")

    with caplog.at_level(logging.CRITICAL):
        async with application() as (_, scheduler):
            task = scheduler.schedule(fails)
            await task.wait()
    assert task.state is TaskState.FAILED


async def test_without_a_lifespan() -> None:
    app = FastAPI()
    add_tasks(app)

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(send, 5)

    await request(app)
    assert SENT == LOG


async def test_an_application_of_starlette() -> None:
    app = Starlette()
    add_tasks(app)
    async with running(app):
        await get_scheduler(app).schedule(send, 5)
    assert SENT == LOG


async def test_a_provider_of_the_users_own() -> None:
    class Own:
        def parameters(self, func: Any, /) -> list[str]:
            return ["session"]

        def check(self, func: Any, names: frozenset[str], /) -> None: ...

        async def call(self, func: Any, names: frozenset[str], run: Any, /) -> Any:
            return await run({"session": Session("own", LOG)})

    async with application(provider=Own()) as (_, scheduler):
        await scheduler.schedule(send, 5)
    assert LOG == ["send 5 with own"]


async def test_neither_applications_nor_functions_are_kept_alive() -> None:
    app = FastAPI()
    add_tasks(app)

    async def local(session: SessionDep = Provided) -> None: ...

    async with running(app):
        await get_scheduler(app).schedule(local)
    alive: list[Callable[[], object]] = [weakref.ref(app), weakref.ref(local)]
    del app, local
    await turns()
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


async def test_the_telemetry_of_the_request_keeps_its_data() -> None:
    """The request that a task serves to resolve its dependencies is none of the telemetry of FastAPI."""
    telemetry = pytest.importorskip("fastapi.telemetry", reason="FastAPI has no telemetry of its own before 0.140")
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = FastAPI(telemetry={"tracer_provider": provider, "metrics": False, "logs": False})
    add_tasks(app, telemetry={"tracer_provider": provider, "metrics": False})
    seen: list[Any] = []

    async def job(session: SessionDep = Provided) -> None:
        seen.append(baggage.get_baggage("tenant"))
        seen.append(telemetry.get_telemetry_data())

    @app.get("/real")
    async def endpoint(connection: Request, tasks: Tasks) -> None:
        attach(baggage.set_baggage("tenant", "acme"))
        await tasks.schedule(job)
        data = telemetry.get_telemetry_data()
        seen.append(data.request is connection or data.request.url.path)

    async with running(app):
        assert (await request(app, "/real")).error is None
    assert seen == ["acme", None, True]
    (span,) = (span for span in exporter.get_finished_spans() if span.name.startswith("task "))
    assert span.parent is not None


async def test_callables_that_can_neither_be_hashed_nor_referenced() -> None:
    class Slotted:
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]  # on purpose

        async def __call__(self, order_id: int, session: SessionDep = Provided) -> None:
            LOG.append(f"send {order_id} with {session}")

    async with application() as (_, scheduler):
        await scheduler.schedule(Slotted(), 5)
        assert await scheduler.schedule(max, 1, 2) == 2  # a builtin has no signature
    assert SENT == LOG


class Payload:
    """An argument of a task."""


async def fail_with(payload: Payload, session: SessionDep = Provided) -> None:
    raise ValueError("boom")


async def succeed_with(payload: Payload, session: SessionDep = Provided) -> None: ...


@pytest.mark.parametrize("job", [succeed_with, fail_with])
async def test_no_cycle_keeps_the_arguments(job: Any) -> None:
    """When the task has ended, they are released without the garbage collector."""

    async def handled(_task: object, _error: Exception) -> bool:
        return True

    async with application(config=TaskConfig(on_error=handled)) as (_, scheduler):
        await scheduler.schedule(send, 5)  # the route exists
        gc.collect()
        gc.disable()
        try:
            payload = Payload()
            alive = weakref.ref(payload)
            task = scheduler.schedule(job, payload)
            del payload
            await task.wait()
            assert alive() is not None  # the handle has it
            del task
            await turns()
            assert alive() is None
        finally:
            gc.enable()

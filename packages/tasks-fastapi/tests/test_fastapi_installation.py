"""`add_tasks()`, `get_tasks()` and `get_scheduler()`: what they refuse, and the line to write that they name."""

import re
from typing import Any

import anyio
import pytest
from asgi_spy import request, running
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.applications import Starlette
from starlette.routing import Route
from tasks_core import SchedulerClosedError, TaskConfig, TaskScheduler, TasksError
from tasks_core.exceptions import InvalidConfigError, InvalidTaskError, SchedulerNotStartedError
from tasks_fastapi import (
    Tasks,
    TasksInstallationError,
    TasksNotInstalledError,
    add_tasks,
    get_scheduler,
    get_tasks,
    request_tasks,
)

pytestmark = pytest.mark.anyio

NOT_INSTALLED = (
    "This application has no tasks. Add them where it is created: "
    "from tasks_fastapi import add_tasks; app = FastAPI(...); add_tasks(app)"
)


async def nothing() -> None: ...


def test_add_tasks_of_a_router() -> None:
    with pytest.raises(TasksInstallationError) as caught:
        add_tasks(APIRouter())  # type: ignore[arg-type]
    assert str(caught.value) == (
        "add_tasks() was given 'APIRouter'. It takes a FastAPI or Starlette application, which has the lifespan: "
        "app = FastAPI(); app.include_router(router); add_tasks(app)"
    )


def test_add_tasks_twice() -> None:
    app = FastAPI()
    add_tasks(app)
    with pytest.raises(TasksInstallationError) as caught:
        add_tasks(app)
    assert str(caught.value) == (
        "add_tasks(app) was called a second time on this application. Keep one call, with all options"
    )


@pytest.mark.parametrize("kind", [FastAPI, Starlette])
async def test_add_tasks_after_the_application_has_started(kind: type[Starlette]) -> None:
    app = kind()
    async with running(app):
        with pytest.raises(TasksInstallationError) as caught:
            add_tasks(app)
    assert str(caught.value) == (
        "add_tasks(app) was called after the application had started. Call it where the application is created: "
        "app = FastAPI(...); add_tasks(app)"
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"config": {"shield": True}},
            "config=<dict>: config must be a TaskConfig without a key, which is for one call, "
            "as in config=TaskConfig(on_error=report)",
        ),
        ({"grace_period": -1}, "grace_period=-1: grace_period must be a number of seconds, 0 or more"),
        ({"grace_period": None}, "grace_period=None: grace_period must be a number of seconds, 0 or more"),
        ({"shield_timeout": "5"}, "shield_timeout='5': shield_timeout must be a number of seconds, 0 or more"),
        ({"max_concurrency": 0}, "max_concurrency=0: max_concurrency must be a whole number, 1 or more"),
        ({"max_pending": 1.5}, "max_pending=1.5: max_pending must be a whole number, 1 or more"),
        ({"max_threads": True}, "max_threads=True: max_threads must be a whole number, 1 or more"),
        (
            {"clock": 1},
            "clock=1: clock must be an object with the methods now() and sleep_until(); see tasks_core.Clock",
        ),
        ({"retry_after": -1}, "retry_after=-1: retry_after must be a number of seconds, 0 or more"),
        ({"retry_after": float("nan")}, "retry_after=nan: retry_after must be a number of seconds, 0 or more"),
        ({"retry_after": "soon"}, "retry_after='soon': retry_after must be a number of seconds, 0 or more"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options_are_refused_at_the_call(options: dict[str, Any], message: str) -> None:
    app = FastAPI()
    with pytest.raises(InvalidConfigError) as caught:
        add_tasks(app, **options)
    assert str(caught.value) == message
    add_tasks(app)  # nothing of the failed call is left


async def test_tasks_without_add_tasks() -> None:
    app = FastAPI()

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None: ...

    async with running(app):
        error = (await request(app)).error
    assert isinstance(error, TasksNotInstalledError)
    assert str(error) == NOT_INSTALLED


async def test_get_tasks_without_add_tasks() -> None:
    async def endpoint(connection: Request) -> Response:
        with pytest.raises(TasksNotInstalledError) as caught:
            get_tasks(connection)
        return PlainTextResponse(str(caught.value))

    app = Starlette(routes=[Route("/", endpoint)])
    assert (await request(app)).body.decode() == NOT_INSTALLED


def test_get_scheduler_without_add_tasks() -> None:
    with pytest.raises(TasksNotInstalledError, match=re.escape(NOT_INSTALLED)):
        get_scheduler(FastAPI())


async def test_get_scheduler_lives_as_long_as_the_lifespan() -> None:
    app = FastAPI()
    add_tasks(app, config=TaskConfig(name="named"))
    message = (
        "get_scheduler(app) needs a running application, because the scheduler exists from the start of the "
        "lifespan to its end. In a test write: with TestClient(app): ..."
    )
    for _ in range(2):
        with pytest.raises(SchedulerNotStartedError, match=re.escape(message)):
            get_scheduler(app)
        async with running(app):
            scheduler = get_scheduler(app)
            assert isinstance(scheduler, TaskScheduler)
            assert scheduler is get_scheduler(app)
            task = scheduler.schedule(nothing)
            await task
            assert task.name == "named"
            assert task.phase is None
        assert scheduler.closed
        with pytest.raises(SchedulerClosedError):
            scheduler.schedule(nothing)


async def test_get_scheduler_in_an_endpoint_and_from_a_thread() -> None:
    app = FastAPI()
    add_tasks(app)
    done: list[str] = []

    @app.get("/")
    async def endpoint(connection: Request) -> None:
        get_scheduler(connection.app).schedule(done.append, "endpoint")

    async with running(app):
        await request(app)
        await anyio.to_thread.run_sync(lambda: get_scheduler(app).schedule(done.append, "thread"))
    assert sorted(done) == ["endpoint", "thread"]


async def test_errors_are_what_they_say() -> None:
    assert issubclass(TasksInstallationError, TasksError)
    assert issubclass(TasksInstallationError, RuntimeError)
    assert issubclass(TasksNotInstalledError, TasksError)
    assert issubclass(TasksNotInstalledError, RuntimeError)


class Secret:
    def __repr__(self) -> str:
        return "the secret"


BAD_CALLS: list[Any] = [
    (
        lambda tasks: tasks.schedule(3),
        InvalidTaskError,
        "is not callable. Pass a function and its arguments",
    ),
    (lambda tasks: tasks.after_route.schedule(nothing()), InvalidTaskError, "Pass the function and its arguments: "),
    (lambda tasks: tasks.after_response.schedule(nothing, Secret()), InvalidTaskError, "cannot be called with these"),
    (lambda tasks: tasks.after_response.task(when="sometimes"), InvalidConfigError, "as in when='error'"),
    (lambda tasks: tasks.task(when="error"), InvalidConfigError, "tasks.after_response.task(when="),
    (lambda tasks: tasks.task(timeout=-1), InvalidConfigError, "as in timeout=30"),
]


@pytest.mark.parametrize("call, error_type, text", BAD_CALLS)
async def test_bad_input_is_an_error_at_the_call(call: Any, error_type: type[Exception], text: str) -> None:
    app = FastAPI()
    add_tasks(app)
    caught: list[Exception] = []

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        try:
            call(tasks)
        except Exception as error:
            caught.append(error)

    async with running(app):
        assert (await request(app)).status == 200
    (error,) = caught
    assert isinstance(error, error_type)
    assert text in str(error)
    assert "the secret" not in str(error)


async def test_a_request_that_outlives_the_beginning_of_shutdown_is_told() -> None:
    """`schedule()` after the drain has begun: the request began when tasks were still accepted."""
    app = FastAPI()
    add_tasks(app)
    go_on = anyio.Event()

    @app.get("/")
    async def endpoint(tasks: Tasks) -> str:
        await go_on.wait()
        with pytest.raises(SchedulerClosedError) as caught:
            tasks.after_response.schedule(nothing)
        return str(caught.value)

    answers: list[bytes] = []
    async with anyio.create_task_group() as group:

        async def ask() -> None:
            answers.append((await request(app)).body)

        async with running(app):
            group.start_soon(ask)
            scheduler = get_scheduler(app)
            await anyio.wait_all_tasks_blocked()
        assert scheduler.closed
        go_on.set()
    assert b"was scheduled after shutdown began" in answers[0]


async def test_another_dependency_can_take_the_place_of_the_tasks() -> None:
    app = FastAPI()
    others: list[object] = []

    async def instead() -> str:
        return "instead"

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        others.append(tasks)

    app.dependency_overrides[request_tasks] = instead
    await request(app)
    assert others == ["instead"]

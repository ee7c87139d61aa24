"""The scheduler inside the lifespans of the application: tasks start when all are open, and end before any closes."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest
from asgi_spy import note, receiving, request, running, turns
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.types import Message
from tasks_core import SchedulerClosedError, Task, TaskScheduler, TaskState
from tasks_fastapi import TaskConfig, Tasks, add_tasks, current_tasks, get_scheduler

pytestmark = pytest.mark.anyio


def lifespan_of(name: str, log: list[str]) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """A resource: opening and closing it takes time."""

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        await turns()
        log.append(f"{name} opened")
        try:
            yield
        finally:
            log.append(f"closing {name}")
            with anyio.CancelScope(shield=True):
                await turns()
            log.append(f"{name} closed")

    return lifespan


class Work:
    """A task that runs until `stop` is set, and notes its beginning and its end."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.stop = anyio.Event()

    async def __call__(self) -> None:
        self.log.append("task began")
        try:
            await self.stop.wait()
            await turns()
        finally:
            self.log.append("task ended")


async def test_resources_are_open_while_tasks_run() -> None:
    log: list[str] = []
    app = FastAPI(lifespan=lifespan_of("app", log))
    before, after = APIRouter(lifespan=lifespan_of("before", log)), APIRouter(lifespan=lifespan_of("after", log))
    app.include_router(before)
    add_tasks(app)
    work = Work(log)

    @after.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(work)
        tasks.schedule(stop_when_draining)

    app.include_router(after)

    async def stop_when_draining() -> None:
        await get_scheduler(app).stopping.wait()
        await turns()
        work.stop.set()

    async with running(app, log):
        assert (await request(app)).status == 200
        await turns()
        assert log[-1] == "task began"

    opened, used, closed = log[:3], log[3:6], log[6:]
    assert sorted(opened) == ["after opened", "app opened", "before opened"]
    assert used == ["startup.complete", "task began", "shutdown"]
    assert closed[0] == "task ended"
    assert len(closed) == 8
    assert closed[-1] == "shutdown.complete"


async def test_what_is_scheduled_during_startup_starts_when_that_is_complete() -> None:
    log: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = get_scheduler(app).schedule(note, log, "task")
        await turns()
        assert task.state is TaskState.PENDING
        log.append("opened")
        yield
        log.append("closed")

    app = Starlette(lifespan=lifespan)
    add_tasks(app)
    async with running(app, log):
        pass
    assert log == ["opened", "startup.complete", "task", "shutdown", "closed", "shutdown.complete"]


@pytest.mark.parametrize("shield", [True, False])
async def test_startup_that_fails(caplog: pytest.LogCaptureFixture, shield: bool) -> None:
    """Nothing has begun, so nothing is waited for, and each task is named as lost."""
    log: list[str] = []
    lost: list[Task[Any]] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        scheduler = get_scheduler(app).task(shield=shield)
        lost.append(scheduler.schedule(note, log, "never"))
        lost.append(scheduler.task(delay=3600).schedule(note, log, "never"))
        raise OSError("no database")
        yield

    app = FastAPI(lifespan=lifespan)
    add_tasks(app, grace_period=3600)
    said: list[str] = []

    async def send(message: Message) -> None:
        said.append(message["type"])

    with anyio.fail_after(5), pytest.raises(OSError, match="no database"):
        await app({"type": "lifespan", "state": {}}, receiving({"type": "lifespan.startup"}), send)
    assert said == ["lifespan.startup.failed"]
    assert log == []
    assert [task.state for task in lost] == [TaskState.DISCARDED] * 2
    assert {task.reason for task in lost} == {"the scheduler was closed before it was resumed"}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in warnings if "was discarded" in text]) == 2


async def test_startup_that_fails_is_over_when_it_has_been_reported() -> None:
    """At the next turn of the event loop hypercorn looks whether the application has ended, and serves if not."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        get_scheduler(app).schedule(turns)
        raise OSError("no database")
        yield

    app = FastAPI(lifespan=lifespan)
    add_tasks(app)
    log: list[str] = []
    async with anyio.create_task_group() as server:

        async def send(message: Message) -> None:
            server.start_soon(note, log, "next turn")
            raise RuntimeError(message["type"])  # as hypercorn does

        with pytest.raises(RuntimeError, match=r"lifespan\.startup\.failed"):
            await app({"type": "lifespan", "state": {}}, receiving({"type": "lifespan.startup"}), send)
        log.append("application ended")
    assert log == ["application ended", "next turn"]


async def test_server_that_is_cancelled() -> None:
    """No shutdown message comes. The grace period is over at once; shielded tasks finish, before anything closes."""
    log: list[str] = []
    app = FastAPI(lifespan=lifespan_of("app", log))
    add_tasks(app, grace_period=3600)
    started = anyio.Event()

    async def shielded() -> None:
        started.set()
        try:
            await get_scheduler(app).stopping.wait()
            await turns()
            log.append("shielded task ended")
        except BaseException:
            log.append("shielded task was cancelled")
            raise

    async def send(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            get_scheduler(app).schedule(Work(log))
            get_scheduler(app).task(shield=True).schedule(shielded)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            receive = receiving({"type": "lifespan.startup"})
            group.start_soon(app, {"type": "lifespan", "state": {}}, receive, send)
            await started.wait()
            await turns()
            group.cancel_scope.cancel()
    assert log[:2] == ["app opened", "task began"]
    assert sorted(log[2:4]) == ["shielded task ended", "task ended"]
    assert log[4] == "closing app"


async def test_lifespan_that_ends_by_itself() -> None:
    """A resource that breaks takes the application down: its tasks go first."""
    log: list[str] = []
    broken = anyio.Event()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async def breaks() -> None:
            await broken.wait()
            raise ConnectionError("broker gone")

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(breaks)
                yield
        finally:
            log.append("closed")

    app = FastAPI(lifespan=lifespan)
    add_tasks(app)

    async def send(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            task = get_scheduler(app).schedule(Work(log))
            await task.started.wait()
            broken.set()

    with anyio.fail_after(5), pytest.raises(ExceptionGroup):
        await app({"type": "lifespan", "state": {}}, receiving({"type": "lifespan.startup"}), send)
    assert log == ["task began", "task ended", "closed"]


async def test_shutdown_of_a_lifespan_that_fails_comes_after_the_tasks() -> None:
    log: list[str] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        log.append("closing")
        raise OSError("cannot close")

    app = FastAPI(lifespan=lifespan)
    add_tasks(app)

    async def work() -> None:
        await get_scheduler(app).stopping.wait()
        log.append("task ended")

    with pytest.raises(ExceptionGroup):
        async with running(app, log):
            get_scheduler(app).schedule(work)
    assert log == ["startup.complete", "shutdown", "task ended", "closing", "shutdown.failed"]


async def test_several_lifespans_of_one_application() -> None:
    log: list[str] = []
    app = FastAPI(lifespan=lifespan_of("app", log))
    add_tasks(app)

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(note, log, "task")

    for _ in range(3):
        log.clear()
        async with running(app):
            await request(app)
        assert log == ["app opened", "task", "closing app", "app closed"]


async def test_options_reach_the_scheduler() -> None:
    """The grace period ends a task; the report is there; the configuration is inherited by every task."""
    failures: list[str] = []

    async def boom() -> None:
        raise ValueError("boom")

    async def report(task: Task[Any], error: Exception) -> bool:
        failures.append(f"{task.name}: {error}")
        return True

    app = FastAPI()
    add_tasks(app, config=TaskConfig(on_error=report), grace_period=0.0, shield_timeout=0.0)

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        for phase in (tasks, tasks.after_route, tasks.after_response):
            phase.task(name=phase.name).schedule(boom)

    async with running(app):
        scheduler = get_scheduler(app)
        await request(app)
        await turns()
        stuck = scheduler.schedule(anyio.sleep_forever)
        shielded = scheduler.task(shield=True).schedule(anyio.sleep_forever)
        await shielded.started.wait()
    assert sorted(failures) == ["after_response: boom", "after_route: boom", "immediate: boom"]
    assert stuck.reason == "the grace period of the shutdown was over"
    assert shielded.reason == "the time for shielded tasks (shield_timeout) was over"
    assert scheduler.report is not None
    assert len(scheduler.report.lost) == 2


async def test_requests_while_shutdown_drains(caplog: pytest.LogCaptureFixture) -> None:
    """A request that the server still accepts is part of the drain: the resources close after its tasks."""
    log: list[str] = []
    app = FastAPI(lifespan=lifespan_of("app", log))
    add_tasks(app, grace_period=3600)
    work = Work(log)

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        for phase in (tasks, tasks.after_route, tasks.after_response):
            phase.schedule(note, log, "task of a late request")

    async def late_request() -> None:
        await get_scheduler(app).stopping.wait()
        with caplog.at_level(logging.INFO):
            assert (await request(app)).status == 200
        log.append("late request served")
        work.stop.set()

    async with anyio.create_task_group() as group, running(app, log):
        group.start_soon(late_request)
        get_scheduler(app).schedule(work)
        await turns()
    assert log[:4] == ["app opened", "startup.complete", "task began", "shutdown"]
    assert sorted(log[4:9]) == ["late request served", "task ended", *["task of a late request"] * 3]
    assert log[9:] == ["closing app", "app closed", "shutdown.complete"]
    assert "bound to their requests" not in caplog.text


async def test_lifespan_that_returns_before_it_is_asked_to() -> None:
    """Tasks are ended, and the lifespan is over: there is no shutdown to wait for."""
    log: list[str] = []
    app = Starlette()
    add_tasks(app)

    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await get_scheduler(app).schedule(Work(log)).started.wait()

    app.router.lifespan = lifespan  # type: ignore[method-assign]  # a router of the user's own

    async def send(message: Message) -> None:
        work_began.set()

    work_began = anyio.Event()
    scope = {"type": "lifespan", "state": {}}
    async with anyio.create_task_group() as group:
        group.start_soon(app, scope, receiving({"type": "lifespan.startup"}), send)
        await work_began.wait()
        scheduler = get_scheduler(app)
        await scheduler.stopping.wait()
        assert log == ["task began"]
        group.cancel_scope.cancel()
    assert log == ["task began", "task ended"]
    assert scheduler.closed


async def test_the_application_is_told_of_everything_else_it_receives() -> None:
    """Messages that are not shutdown pass through, and end nothing."""
    log: list[str] = []
    app = Starlette()
    add_tasks(app)

    original: Callable[..., Awaitable[None]] = app.router.lifespan

    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        log.append((await receive())["type"])
        await original(scope, receive, send)

    app.router.lifespan = lifespan  # type: ignore[method-assign]  # a router of the user's own
    said: list[str] = []

    async def send(message: Message) -> None:
        said.append(message["type"])

    messages = [{"type": "lifespan.unheard-of"}, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    await app({"type": "lifespan", "state": {}}, receiving(*messages), send)
    assert log == ["lifespan.unheard-of"]
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_waiting_for_a_task_during_startup_is_refused() -> None:
    """It would start when startup is complete, which would wait for it, and no signal would end that."""
    errors: list[str] = []

    async def load() -> None: ...

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = get_scheduler(app).schedule(load)
        with pytest.raises(RuntimeError) as caught:
            await task
        errors.append(str(caught.value))
        yield

    app = FastAPI(lifespan=lifespan)
    add_tasks(app)
    with anyio.fail_after(5):
        async with running(app):
            pass
    (error,) = errors
    assert "does not start before the scheduler is resumed" in error
    assert "load(...)" in error


async def test_the_end_is_said_by_a_service_while_everything_is_open() -> None:
    log: list[str] = []

    async def say_goodbye(app: FastAPI) -> None:
        scheduler = get_scheduler(app)
        await scheduler.stopping.wait()
        await scheduler.schedule(note, log, "we are going down")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        get_scheduler(app).service(say_goodbye, app, grace=2)
        yield
        log.append("closed")

    app = FastAPI(lifespan=lifespan)
    add_tasks(app)
    async with running(app, log):
        await turns()
    assert log == ["startup.complete", "shutdown", "we are going down", "closed", "shutdown.complete"]


@pytest.mark.parametrize("how", ["get_scheduler", "handle", "current_tasks"])
async def test_what_the_exit_of_a_lifespan_schedules_is_discarded_with_a_line_and_the_exit_goes_on(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception there would fail the shutdown, and what is closed behind the call would stay open."""
    log: list[str] = []
    tasks: list[Task[Any]] = []
    schedulers: list[TaskScheduler] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        schedulers.append(get_scheduler(app))
        yield
        match how:
            case "get_scheduler":
                tasks.append(get_scheduler(app).schedule(note, log, "never"))
            case "handle":
                tasks.append(schedulers[0].schedule(note, log, "never"))
            case _:
                tasks.append(current_tasks().after_response.schedule(note, log, "never"))
        log.append("pool closed")

    app = FastAPI(lifespan=lifespan)
    add_tasks(app)
    async with running(app, log):
        await turns()
    assert log == ["startup.complete", "shutdown", "pool closed", "shutdown.complete"]
    (task,) = tasks
    assert (task.state, task.lost) == (TaskState.DISCARDED, True)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "Task 'note' #" in line
    assert "get_scheduler(app).service(say_goodbye, grace=2)" in line
    statistics = schedulers[0].statistics()
    assert (statistics.scheduled, statistics.discarded) == (1, 1)


async def test_what_is_scheduled_elsewhere_after_the_end_is_an_error_that_names_the_line_to_write() -> None:
    app = FastAPI()
    add_tasks(app)
    async with running(app):
        scheduler = get_scheduler(app)
    with pytest.raises(
        SchedulerClosedError, match=r"before `yield`: get_scheduler\(app\)\.service\(say_goodbye, grace=2\)"
    ):
        scheduler.schedule(turns)


async def test_a_lifespan_that_ends_while_the_server_goes_on_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """A task group around `yield` whose child fails cancels the lifespan, and with it all tasks."""
    serving = anyio.Event()
    tasks: list[Task[Any]] = []

    async def consume() -> None:
        await serving.wait()
        raise OSError("the queue is gone")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks.append(get_scheduler(app).schedule(anyio.sleep_forever))
        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            yield

    app = FastAPI(lifespan=lifespan)
    add_tasks(app)

    async def send(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            await tasks[0].started.wait()
            serving.set()

    with anyio.fail_after(10), pytest.raises(BaseExceptionGroup):
        await app({"type": "lifespan", "state": {}}, receiving({"type": "lifespan.startup"}), send)
    assert tasks[0].state is TaskState.CANCELLED
    (line,) = [record.getMessage() for record in caplog.records if record.name == "tasks_fastapi"]
    assert line.startswith("The lifespan of the application ends although the server has not shut it down (Cancelled")

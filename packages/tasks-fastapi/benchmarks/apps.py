"""The same endpoint written with each library, so that only the background tasks differ."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import aiojobs
import fastapi_tasks
import tasks_fastapi
from fastapi import BackgroundTasks, Depends, FastAPI, Request


async def noop() -> None:
    pass


def plain(number: int, phase: str) -> FastAPI:
    """No tasks at all: what everything else is compared with."""
    app = FastAPI()

    @app.get("/")
    async def endpoint() -> dict[str, str]:
        return {}

    return app


def unused(number: int, phase: str) -> FastAPI:
    """An application with tasks, and an endpoint that has none."""
    app = plain(number, phase)
    tasks_fastapi.add_tasks(app)
    return app


def create_task(number: int, phase: str) -> FastAPI:
    """The floor: a dependency that does nothing, and bare `asyncio.create_task` with a strong reference."""
    app = FastAPI()
    running: set[asyncio.Task[None]] = set()

    async def nothing() -> None:
        pass

    @app.get("/")
    async def endpoint(_: Annotated[None, Depends(nothing)]) -> dict[str, str]:
        for _number in range(number):
            task = asyncio.create_task(noop())
            running.add(task)
            task.add_done_callback(running.discard)
        return {}

    return app


def background_tasks(number: int, phase: str) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> dict[str, str]:
        for _ in range(number):
            tasks.add_task(noop)
        return {}

    return app


def tasks(number: int, phase: str) -> FastAPI:
    app = FastAPI()
    tasks_fastapi.add_tasks(app)

    @app.get("/")
    async def endpoint(tasks: tasks_fastapi.Tasks) -> dict[str, str]:
        into = tasks if phase == "now" else getattr(tasks, phase)
        for _ in range(number):
            into.schedule(noop)
        return {}

    return app


def tasks_by_request(number: int, phase: str) -> FastAPI:
    """Without dependency injection, which costs as much as all else around a task."""
    app = FastAPI()
    tasks_fastapi.add_tasks(app)

    @app.get("/")
    async def endpoint(request: Request) -> dict[str, str]:
        tasks = tasks_fastapi.get_tasks(request)
        into = tasks if phase == "now" else getattr(tasks, phase)
        for _ in range(number):
            into.schedule(noop)
        return {}

    return app


def tasks_by_context(number: int, phase: str) -> FastAPI:
    """As in a service that no request is passed to."""
    app = FastAPI()
    tasks_fastapi.add_tasks(app)

    @app.get("/")
    async def endpoint() -> dict[str, str]:
        tasks = tasks_fastapi.current_tasks()
        into = tasks if phase == "now" else getattr(tasks, phase)
        for _ in range(number):
            into.schedule(noop)
        return {}

    return app


def tasks_with_dependencies(number: int, phase: str) -> FastAPI:
    """Each task has a dependency with `yield` of its own, which FastAPI resolves."""
    app = FastAPI()
    tasks_fastapi.add_tasks(app)

    async def session() -> AsyncIterator[str]:
        yield "session"

    async def uses(session: Annotated[str, Depends(session)] = tasks_fastapi.Provided) -> None:
        pass

    @app.get("/")
    async def endpoint() -> dict[str, str]:
        tasks = tasks_fastapi.current_tasks()
        for _ in range(number):
            getattr(tasks, phase).schedule(uses)
        return {}

    return app


def fastapi_tasks_(number: int, phase: str) -> FastAPI:
    app = FastAPI()
    fastapi_tasks.add_tasks(app)

    @app.get("/")
    async def endpoint(tasks: fastapi_tasks.Tasks) -> dict[str, str]:
        into: Any = tasks if phase == "now" else getattr(tasks, phase)
        for _ in range(number):
            into.schedule(noop)
        return {}

    return app


def aiojobs_(number: int, phase: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, aiojobs.Scheduler]]:
        async with aiojobs.Scheduler(limit=None, pending_limit=0) as scheduler:
            yield {"scheduler": scheduler}

    app = FastAPI(lifespan=lifespan)

    def scheduler(request: Request) -> aiojobs.Scheduler:
        return request.state.scheduler  # type: ignore[no-any-return]

    async def get_scheduler(request: Request) -> aiojobs.Scheduler:
        return scheduler(request)

    @app.get("/")
    async def endpoint(jobs: Annotated[aiojobs.Scheduler, Depends(get_scheduler)]) -> dict[str, str]:
        for _ in range(number):
            await jobs.spawn(noop())
        return {}

    return app


LIBRARIES: dict[str, Callable[[int, str], FastAPI]] = {
    "plain endpoint": plain,
    "tasks, not used": unused,
    "create_task": create_task,
    "BackgroundTasks": background_tasks,
    "aiojobs": aiojobs_,
    "fastapi-tasks": fastapi_tasks_,
    "tasks": tasks,
    "get_tasks()": tasks_by_request,
    "current_tasks()": tasks_by_context,
    "dependencies": tasks_with_dependencies,
}

PHASES: dict[str, tuple[str, ...]] = {
    "plain endpoint": ("-",),
    "tasks, not used": ("-",),
    "create_task": ("now",),
    "BackgroundTasks": ("after_response",),
    "aiojobs": ("now",),
    "fastapi-tasks": ("now", "after_route", "after_response"),
    "tasks": ("now", "after_route", "after_response"),
    "get_tasks()": ("now", "after_route", "after_response"),
    "current_tasks()": ("now", "after_route", "after_response"),
    "dependencies": ("after_response",),
}
"""Which phases a library has."""


def block(seconds: float) -> None:
    """A task that occupies its thread."""
    time.sleep(seconds)


def with_blocking_tasks(library: str, blocking: int, seconds: float) -> FastAPI:
    """An application with a `def` endpoint, and a route that starts so many blocking tasks."""
    app = FastAPI()

    @app.get("/quick")
    def quick() -> dict[str, str]:
        return {}

    if library == "tasks":
        tasks_fastapi.add_tasks(app, grace_period=0)

        @app.post("/block")
        async def block_tasks(tasks: tasks_fastapi.Tasks) -> None:
            for _ in range(blocking):
                tasks.schedule(block, seconds)
    else:
        fastapi_tasks.add_tasks(app)

        @app.post("/block")
        async def block_fastapi_tasks(tasks: fastapi_tasks.Tasks) -> None:
            for _ in range(blocking):
                tasks.schedule(block, seconds)

    return app

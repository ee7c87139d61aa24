"""Periodic tasks and services that modules register at import, long before they know of an application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import anyio
import pytest
from asgi_spy import receiving, request, running, turns
from fastapi import Depends, FastAPI
from starlette.types import Message
from tasks_core import Provided, TaskRegistry, every
from tasks_core.exceptions import InvalidConfigError, InvalidTaskError
from tasks_fastapi import Tasks, add_tasks, current_tasks, get_scheduler
from tasks_testing import VirtualClock

pytestmark = pytest.mark.anyio

ran: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    ran.clear()


async def session() -> AsyncIterator[str]:
    ran.append("session opened")
    yield "session"
    ran.append("session closed")


# A project has such a registry in each of its modules, and puts them together where it creates the application.
mails = TaskRegistry()
reports = TaskRegistry()


@mails.periodic(every(minutes=1), timeout=30)
async def send_waiting() -> None:
    ran.append("mails")


@reports.periodic(every(hours=1), name="hourly")
async def report(session: Annotated[str, Depends(session)] = Provided) -> None:
    ran.append(f"report with {session}")
    current_tasks().after_response.schedule(archive)


@reports.periodic(every(hours=1))
def export() -> None:
    ran.append("export")


@reports.service()
async def listen() -> None:
    ran.append("listening")
    await anyio.sleep_forever()


async def archive() -> None:
    ran.append("archived")


def make_app(clock: VirtualClock) -> FastAPI:
    registry = TaskRegistry()
    registry.include(mails)
    registry.include(reports)
    app = FastAPI()
    add_tasks(app, registry=registry, clock=clock)

    @app.post("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(archive)

    return app


async def test_they_run_in_each_lifespan_of_the_application() -> None:
    clock = VirtualClock(auto=False)
    app = make_app(clock)
    for _ in range(2):
        ran.clear()
        async with running(app):
            scheduler = get_scheduler(app)
            await turns()
            assert sorted(scheduler.periodic_tasks) == ["export", "hourly", "send_waiting"]
            assert [service.name for service in scheduler.services] == ["listen"]
            await clock.aadvance(60)
            assert ran == ["listening", "mails"]
            assert scheduler.statistics().as_dict()["periodic"]["send_waiting"] == {
                "runs": 1,
                "failed": 0,
                "skipped": 0,
            }


async def test_a_run_has_dependencies_and_the_tasks_of_the_application() -> None:
    clock = VirtualClock(auto=False)
    app = make_app(clock)
    async with running(app):
        scheduler = get_scheduler(app)
        await turns()
        scheduler.periodic_tasks["send_waiting"].cancel()
        await clock.aadvance(3600)
        await scheduler.idle()
    assert sorted(ran) == ["archived", "export", "listening", "report with session", "session closed", "session opened"]
    assert ran.index("session opened") < ran.index("report with session") < ran.index("session closed")


async def test_a_request_without_a_lifespan_does_not_start_them() -> None:
    """A request that is bound to its own tasks would wait for none of them, and start all."""
    app = make_app(VirtualClock(auto=False))
    assert (await request(app, "/", "POST")).status == 200
    assert ran == ["archived"]


@pytest.mark.parametrize("registry", [[report], report, "app.jobs"])
def test_what_is_no_registry_is_refused(registry: object) -> None:
    with pytest.raises(InvalidConfigError, match="registry must be a TaskRegistry, as in registry=registry"):
        add_tasks(FastAPI(), registry=registry)  # type: ignore[arg-type]


async def test_a_function_that_cannot_be_called_fails_the_startup() -> None:
    """Whether an argument is supplied, only the application knows."""
    registry = TaskRegistry()

    @registry.periodic(every(hours=1))
    async def export_to(path: str) -> None: ...

    app = FastAPI()
    add_tasks(app, registry=registry)
    with pytest.raises(InvalidTaskError, match=r"export_to cannot be called .* missing a required argument: 'path'"):
        await app({"type": "lifespan", "state": {}}, receiving({"type": "lifespan.startup"}), _ignore)


async def _ignore(_message: Message) -> None: ...

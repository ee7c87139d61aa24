"""Sentry blames the request that scheduled a task: with sentry-sdk itself, and a transport that stores the events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
from asgi_spy import request, running
from fastapi import FastAPI
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.asyncio import AsyncioIntegration
from sentry_sdk.transport import Transport
from tasks_core import Task, TaskObserver, observe, retry
from tasks_core.types import RunAttempt
from tasks_fastapi import Tasks, add_tasks, get_scheduler

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # sentry-sdk knows no other event loop


class Store(Transport):
    """Keeps events in place of sending them."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        event: Any = envelope.get_event()
        if event is not None:
            self.events.append(event)

    def told(self) -> list[tuple[str | None, str | None, str]]:
        """The user, the tag of the task and the exception of each event."""
        return sorted(
            (
                event.get("user", {}).get("id"),
                event.get("tags", {}).get("task"),
                event["exception"]["values"][-1]["value"],
            )
            for event in self.events
        )


@pytest.fixture(params=[True, False], ids=["AsyncioIntegration", "no integration"])
async def store(request: pytest.FixtureRequest) -> Any:
    store = Store()
    with sentry_sdk.isolation_scope():
        sentry_sdk.init(
            "https://key@sentry.invalid/1",
            transport=store,
            integrations=[AsyncioIntegration()] if request.param else [],
            auto_enabling_integrations=False,
            shutdown_timeout=0,
        )
        yield store
        sentry_sdk.get_client().close(timeout=0)
        sentry_sdk.get_global_scope().set_client(None)


class Scopes(TaskObserver):
    """What the page about telemetry recommends: a scope for each attempt."""

    async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
        with sentry_sdk.isolation_scope() as scope:
            scope.set_tag("task", task.name)
            return await run()


@pytest.fixture
def scopes() -> Iterator[None]:
    with observe(Scopes()):
        yield


def make_app() -> FastAPI:
    app = FastAPI()
    add_tasks(app)

    async def fail(user: str) -> None:
        await asyncio.sleep(0)
        raise ValueError(f"failed for {user}")

    def fail_plainly(user: str) -> None:
        raise ValueError(f"failed in a thread for {user}")

    async def fail_twice(user: str) -> None:
        raise ConnectionError(f"retried for {user}")

    @app.get("/{user}")
    async def endpoint(user: str, tasks: Tasks) -> None:
        sentry_sdk.set_user({"id": user})
        tasks.task(name="a").schedule(fail, user)
        tasks.after_response.task(name="b").schedule(fail_plainly, user)
        tasks.after_response.task(name="c", on_error=retry(attempts=2, backoff=0)).schedule(fail_twice, user)

    return app


@pytest.mark.usefixtures("scopes")
async def test_each_failure_has_its_user_and_its_task_and_is_one_event(store: Store) -> None:
    app = make_app()

    async def ask(user: str) -> None:
        with sentry_sdk.isolation_scope():  # as the integration for ASGI does
            await request(app, f"/{user}")

    async with running(app):
        await asyncio.gather(ask("ann"), ask("bob"))
        await get_scheduler(app).idle()
    assert store.told() == [
        (user, name, text.format(user))
        for user in ("ann", "bob")
        for name, text in (("a", "failed for {}"), ("b", "failed in a thread for {}"), ("c", "retried for {}"))
    ]


@pytest.mark.usefixtures("scopes")
async def test_tasks_of_a_consumer_do_not_share_their_users(store: Store) -> None:
    """All of them are scheduled by one coroutine, whose scope they would otherwise share."""
    app = FastAPI()
    add_tasks(app)

    async def handle(user: str) -> None:
        sentry_sdk.set_user({"id": user})
        await asyncio.sleep(0.01)
        raise ValueError(f"failed for {user}")

    async with running(app):
        scheduler = get_scheduler(app)
        for user in ("ann", "bob", "cid"):
            scheduler.task(name=f"for {user}").schedule(handle, user)
        await scheduler.idle()
    assert store.told() == [(user, f"for {user}", f"failed for {user}") for user in ("ann", "bob", "cid")]

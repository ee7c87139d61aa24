"""The example for Sentry, with sentry-sdk itself, and a transport that stores what would be sent."""

from __future__ import annotations

import runpy
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import sentry_sdk
from docs_worker import working
from opentelemetry import propagate
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport
from tasks_core import RetryPolicy, TaskScheduler, durable
from tasks_core._observer import _observers
from tasks_testing import InMemoryEngine

EXAMPLE = Path(__file__).parents[1] / "examples" / "sentry_tasks.py"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # sentry-sdk knows no other event loop


class Store(Transport):
    """Keeps what would be sent, by its type."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            payload: Any = item.payload.json
            if payload is not None and item.type is not None:
                self.sent.append((item.type, payload))

    def of_type(self, type_: str) -> list[dict[str, Any]]:
        return [payload for sent, payload in self.sent if sent == type_]


@pytest.fixture
async def store() -> Any:
    store = Store()
    textmap, observers = propagate.get_global_textmap(), _observers._entries
    with sentry_sdk.isolation_scope():
        sentry_sdk.init(
            "https://key@sentry.invalid/1",
            transport=store,
            auto_enabling_integrations=False,
            traces_sample_rate=1.0,
            shutdown_timeout=0,
        )
        runpy.run_path(str(EXAMPLE))["configure_sentry"]()
        yield store
        propagate.set_global_textmap(textmap)
        _observers._replace(observers)
        sentry_sdk.get_client().close(timeout=0)
        sentry_sdk.get_global_scope().set_client(None)


async def count(step: str) -> None:
    """An ordinary task."""


@durable(name="docs sentry charge", queue="payments", retry=RetryPolicy(attempts=2, backoff=0.0))
async def charge(order_id: int) -> None:
    raise ConnectionError("gateway is down")


@durable(name="docs sentry greet")
async def greet(name: str) -> None: ...


async def test_error_has_the_tags_of_its_task_and_is_one_event(store: Store) -> None:
    async with working(InMemoryEngine()) as scheduler:
        await scheduler.schedule(charge.configure(idempotency_key="charge-17"), 17)
    [event] = [event for event in store.of_type("event") if "exception" in event]
    assert event["exception"]["values"][-1]["value"] == "gateway is down"
    assert event["tags"]["task"] == "docs sentry charge"
    assert event["tags"]["task.key"] == "charge-17"


async def test_submit_and_run_are_on_the_page_queues_and_in_one_trace(store: Store) -> None:
    async with working(InMemoryEngine()) as scheduler:
        with sentry_sdk.start_transaction(op="http.server", name="place_order"):
            receipt = await scheduler.schedule(greet, "ann")
    request, run = store.of_type("transaction")
    assert (request["transaction"], run["transaction"]) == ("place_order", "docs sentry greet")
    [publish] = request["spans"]
    assert publish["op"] == "queue.publish"
    assert publish["data"]["messaging.message.id"] == receipt.id
    assert publish["data"]["messaging.destination.name"] == "default"
    assert publish["data"]["messaging.system"] == receipt.engine
    [process] = run["spans"]
    assert process["op"] == run["contexts"]["trace"]["op"] == "queue.process"
    assert process["data"]["messaging.message.id"] == receipt.id
    assert process["data"]["messaging.destination.name"] == "default"
    assert process["data"]["messaging.message.retry.count"] == 0
    assert run["contexts"]["trace"]["trace_id"] == request["contexts"]["trace"]["trace_id"]


async def test_each_attempt_is_processed(store: Store) -> None:
    async with working(InMemoryEngine()) as scheduler:
        await scheduler.schedule(charge, 17)
    runs = store.of_type("transaction")
    assert [run["spans"][0]["data"]["messaging.message.retry.count"] for run in runs] == [0, 1]
    assert {run["contexts"]["trace"]["status"] for run in runs} == {"internal_error"}


async def nightly_report(*, fails: bool) -> None:
    if fails:
        raise ValueError


@pytest.mark.parametrize("fails, status", [(False, "ok"), (True, "error")])
async def test_runs_of_a_periodic_task_are_on_the_page_crons(store: Store, fails: bool, status: str) -> None:
    async with TaskScheduler() as scheduler:
        with suppress(ValueError):
            await scheduler.schedule(nightly_report, fails=fails)
        await scheduler.schedule(count, "other")
    first, last = store.of_type("check_in")
    assert (first["monitor_slug"], first["status"]) == ("nightly_report", "in_progress")
    assert first["monitor_config"]["schedule"] == {"type": "crontab", "value": "0 3 * * *"}
    assert (last["check_in_id"], last["status"]) == (first["check_in_id"], status)


async def test_what_a_deploy_cancels_is_no_failed_run(store: Store) -> None:
    async with TaskScheduler(grace_period=0.0) as scheduler:
        task = scheduler.task(name="nightly_report").schedule(anyio.sleep_forever)
        await task.started.wait()
    assert [one["status"] for one in store.of_type("check_in")] == ["in_progress"]


def test_example_observes_nothing_before_it_is_configured() -> None:
    before = _observers._entries
    runpy.run_path(str(EXAMPLE))
    assert _observers._entries == before

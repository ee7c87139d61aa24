"""Spans and metrics of durable tasks: the submit in one process, the run in another."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import core_durable_functions as functions
import pytest
from core_durable_functions import flaky, forget, hands_on, note, unshielded
from core_engine import ListEngine, until, working
from core_telemetry import Exported, attributes, exceptions, ids, links, parent
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from tasks_core import Cancel, Snooze, TaskPhase, TaskScheduler, Worker, durable, durable_context
from tasks_core.engines import DurableCall, EngineUnavailableError, RunDelivery, Slots
from tasks_core.exceptions import InvalidConfigError
from tasks_core.frameworks import Telemetry
from tasks_core.types import TelemetryConfig
from tasks_testing import InMemoryEngine

__all__ = ("forget",)

pytestmark = pytest.mark.anyio


@pytest.fixture
def exported() -> Exported:
    return Exported()


@asynccontextmanager
async def submitting(engine: ListEngine, config: TelemetryConfig) -> AsyncIterator[TaskScheduler]:
    """A scheduler whose tasks are observed."""
    async with TaskScheduler(engine=engine, grace_period=0.0) as scheduler:
        with Telemetry(config).observe(scheduler):
            yield scheduler


async def ended(engine: ListEngine, *lines: str) -> None:
    await until(lambda: set(lines) <= set(engine.log))


async def test_submit_and_run_are_a_pair(exported: Exported) -> None:
    engine = ListEngine()
    request = exported.tracer_provider.get_tracer("test").start_as_current_span("request")
    async with submitting(engine, exported.config) as scheduler:
        with request:
            await scheduler.schedule(note.configure(idempotency_key="k", queue="mail"), "secret")
    async with working(engine, telemetry=exported.config, concurrency={"mail": 1}):
        await ended(engine, f"done {note.name}")
    names = sorted(span.name for span in exported.spans)
    assert names == ["request", f"run {note.name}", f"submit {note.name}"]
    submit, run = exported.one(f"submit {note.name}"), exported.one(f"run {note.name}")
    assert (submit.kind, run.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert parent(submit) == ids(exported.one("request"))
    assert parent(run) == ids(submit)
    assert links(run) == [ids(submit)]
    said = attributes(submit)
    assert said.pop("task.id") > 0
    assert said.pop("code.file.path") == __file__
    assert said.pop("code.line.number") > 0
    assert said == {
        "task.name": note.name,
        "task.key": "k",
        "task.attempt": 1,
        "task.outcome": "succeeded",
        "code.function.name": "core_durable_functions.note",
        "messaging.system": "list",
        "messaging.operation.name": "submit",
        "messaging.operation.type": "send",
        "messaging.destination.name": "mail",
        "messaging.message.id": "1",
    }
    said = attributes(run)
    assert said.pop("task.id") > 0
    assert said == {
        "task.name": note.name,
        "task.key": "k",
        "task.attempt": 1,
        "task.outcome": "succeeded",
        "code.function.name": "core_durable_functions.note",
        "messaging.system": "list",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": "mail",
        "messaging.message.id": "",
    }
    assert {span.status.status_code for span in exported.spans} == {StatusCode.UNSET}
    labels = {"task.name": note.name, "task.queue": "mail"}
    assert exported.metrics() == {
        "tasks.submit.duration": [({**labels, "task.outcome": "succeeded"}, 1)],
        "tasks.running": [(labels, 0)],
        "tasks.duration": [({**labels, "task.outcome": "succeeded"}, 1)],
    }


async def test_run_of_a_call_without_a_trace_has_no_link(exported: Exported) -> None:
    engine = ListEngine()
    engine.calls.append(DurableCall(note.name, {"text": "x"}, "k"))
    async with working(engine, telemetry=exported.config):
        await ended(engine, f"done {note.name}")
    run = exported.one(f"run {note.name}")
    assert (parent(run), links(run)) == (None, [])


async def test_run_is_in_the_trace_of_a_request_whose_submits_are_not_traced(exported: Exported) -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        with exported.tracer_provider.get_tracer("test").start_as_current_span("request"):
            await scheduler.schedule(note, "x")
    async with working(engine, telemetry=exported.config):
        await ended(engine, f"done {note.name}")
    assert parent(exported.one(f"run {note.name}")) == ids(exported.one("request"))


async def test_attempt_with_another_to_come_has_its_own_exception(exported: Exported) -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        await scheduler.schedule(flaky, 1)
    async with working(engine, telemetry=exported.config):
        await ended(engine, f"done {flaky.name}")
    first, second = exported.named(f"run {flaky.name}")
    assert [attributes(span)["task.outcome"] for span in (first, second)] == ["retrying", "succeeded"]
    assert [attributes(span)["task.attempt"] for span in (first, second)] == [1, 2]
    assert exceptions(first) == [attributes(first)["error.type"]] == ["ConnectionResetError"]
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    metrics = exported.metrics()
    labels = {"task.name": flaky.name, "task.queue": "default"}
    assert metrics["tasks.duration"] == [
        ({**labels, "task.outcome": "retrying", "error.type": "ConnectionResetError"}, 1),
        ({**labels, "task.outcome": "succeeded"}, 1),
    ]
    assert metrics["tasks.running"] == [(labels, 0)]
    assert "tasks.failures" not in metrics


async def test_last_failure_is_counted(exported: Exported) -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        await scheduler.schedule(flaky, 9, "KeyError")
    async with working(engine, telemetry=exported.config):
        await ended(engine, f"failed {flaky.name} KeyError")
    run = exported.one(f"run {flaky.name}")
    assert (attributes(run)["task.outcome"], exceptions(run)) == ("failed", ["KeyError"])
    assert run.status.status_code is StatusCode.ERROR
    labels = {"task.name": flaky.name, "task.queue": "default", "error.type": "KeyError"}
    assert exported.metrics()["tasks.failures"] == [(labels, 1)]


@durable(name="telemetry: decides")
async def decides(*, cancels: bool) -> None:
    functions.ran.append("decided")
    if cancels:
        raise Cancel("it was withdrawn")
    if len(functions.ran) == 1:
        raise Snooze(0.0)


@pytest.mark.parametrize("cancels, outcomes", [(False, ["snoozed", "succeeded"]), (True, ["cancelled"])])
async def test_what_a_task_decides_itself_is_no_error(exported: Exported, cancels: bool, outcomes: list[str]) -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(decides, cancels=cancels)
    async with working(engine, telemetry=exported.config):
        await receipt.source.ended(receipt.id)  # type: ignore[union-attr]  # the engine
    runs = exported.named(f"run {decides.name}")
    assert [attributes(run)["task.outcome"] for run in runs] == outcomes
    assert {run.status.status_code for run in runs} == {StatusCode.UNSET}
    assert [exceptions(run) for run in runs] == [[]] * len(outcomes)
    metrics = exported.metrics()
    assert [labels["task.outcome"] for labels, _ in metrics["tasks.duration"]] == outcomes
    assert not {"tasks.failures", "tasks.losses"} & metrics.keys()


@durable(name="telemetry.completes", retry=None)
def completes() -> None:
    database = create_engine("sqlite://")
    with Session(database) as session:
        session.execute(text("select 1"))
        durable_context().complete(session)
        session.commit()
    database.dispose()
    raise ConnectionError


async def test_run_that_fails_after_its_task_has_ended_with_a_transaction_has_succeeded(exported: Exported) -> None:
    engine, stop = InMemoryEngine(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler, anyio.create_task_group() as group:
        receipt = await scheduler.schedule(completes)
        group.start_soon(Worker(engine, telemetry=exported.config).run, stop)
        await receipt.result()
        stop.set()
    assert attributes(exported.one(f"run {completes.name}"))["task.outcome"] == "succeeded"


async def test_what_a_deploy_puts_back_is_no_error(exported: Exported) -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        await scheduler.schedule(unshielded, "x")
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with working(engine, grace_period=0.0, telemetry=exported.config) as stop:
        await functions.waiting["x"].wait()
        stop.set()
        await ended(engine, f"again {unshielded.name} in 0")
    run = exported.one(f"run {unshielded.name}")
    assert attributes(run)["task.outcome"] == "redelivered"
    assert (run.status.status_code, exceptions(run)) == (StatusCode.UNSET, [])
    labels = {"task.name": unshielded.name, "task.queue": "default"}
    assert exported.metrics() == {
        "tasks.running": [(labels, 0)],
        "tasks.duration": [({**labels, "task.outcome": "redelivered"}, 1)],
    }


@pytest.mark.parametrize("stopped", [False, True])
async def test_cancellation_by_the_engine_is_no_error(exported: Exported, stopped: bool) -> None:
    class Stoppable(ListEngine):
        async def work(self, run: RunDelivery, /, *, concurrency: Slots, stopping: anyio.Event) -> None:
            self.stopping = stopping
            await super().work(run, concurrency=concurrency, stopping=stopping)

    engine = Stoppable()
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(unshielded, "x")
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with working(engine, grace_period=60.0, telemetry=exported.config) as stop:
        await functions.waiting["x"].wait()
        if stopped:
            stop.set()
            await engine.stopping.wait()
        assert await receipt.cancel()
        await ended(engine, f"cancelled {unshielded.name}")
    run = exported.one(f"run {unshielded.name}")
    assert (attributes(run)["task.outcome"], run.status.status_code) == ("cancelled", StatusCode.UNSET)


async def test_call_that_is_not_understood_is_no_run(exported: Exported) -> None:
    engine = ListEngine()
    engine.calls += [DurableCall("os:system", {}, "1"), DurableCall("plain", {"number": "secret"}, "2")]
    async with working(engine, telemetry=exported.config):
        await ended(engine, "again os:system in 5", "again plain in 5")
    assert exported.spans == ()
    assert exported.metrics() == {}


async def test_what_a_task_schedules_is_below_its_run(exported: Exported) -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        await scheduler.schedule(hands_on, "x")
    async with working(engine, telemetry=exported.config):
        await ended(engine, f"done {hands_on.name}", f"done {note.name}")
    run = exported.one(f"run {hands_on.name}")
    assert parent(exported.one(f"submit {note.name}")) == ids(run)
    assert parent(exported.one("task str.upper")) == ids(run)
    assert parent(exported.one(f"run {note.name}")) == ids(exported.one(f"submit {note.name}"))
    durations = {labels["task.name"]: labels for labels, _ in exported.metrics()["tasks.duration"]}
    assert "task.queue" not in durations["str.upper"], "a task in memory has none"


async def test_submit_that_fails(exported: Exported) -> None:
    engine = ListEngine(down=True)
    async with submitting(engine, exported.config) as scheduler:
        with pytest.raises(EngineUnavailableError):
            await scheduler.schedule(note, "x")
    submit = exported.one(f"submit {note.name}")
    assert (attributes(submit)["task.outcome"], submit.status.status_code) == ("failed", StatusCode.ERROR)
    error = "tasks_core.exceptions.EngineUnavailableError"
    assert attributes(submit)["error.type"] == error
    labels = {"task.name": note.name, "task.queue": "default", "task.outcome": "failed", "error.type": error}
    assert exported.metrics() == {"tasks.submit.duration": [(labels, 1)]}


async def test_submit_that_is_discarded_or_lost(exported: Exported) -> None:
    """The span ends although there was no attempt."""
    engine = ListEngine()
    async with submitting(engine, exported.config) as scheduler:
        phase = TaskPhase(scheduler, "moment")
        phase.schedule(note, "x")
        phase.discard("it was not needed")
        left = TaskPhase(scheduler, "never").schedule(note, "y")
        await scheduler.aclose()
    assert left.lost
    discarded, lost = exported.named(f"submit {note.name}")
    assert (attributes(discarded)["task.outcome"], discarded.status.status_code) == ("discarded", StatusCode.UNSET)
    assert (attributes(lost)["task.outcome"], lost.status.status_code) == ("discarded", StatusCode.ERROR)
    labels = {"task.name": note.name, "task.phase": "never", "task.queue": "default", "task.outcome": "discarded"}
    assert exported.metrics() == {"tasks.losses": [(labels, 1)]}


async def test_call_in_a_transaction_names_its_submit(exported: Exported) -> None:
    """What the engine joins to the transaction is stored by a commit that may come before the attempt."""
    joined: list[DurableCall] = []

    class Joining(ListEngine):
        def join(self, transaction: Any, call: DurableCall, wanted: Callable[[], bool], /) -> Any:
            joined.append(call)
            return super().join(transaction, call, wanted)

    async with submitting(Joining(), exported.config) as scheduler:
        await scheduler.schedule(note.configure(transaction="session"), "x")
    trace_id, span_id = ids(exported.one(f"submit {note.name}"))
    assert joined[0].headers["traceparent"].startswith(f"00-{trace_id:032x}-{span_id:016x}-")


class Broken(Sampler):
    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        raise OSError("no sampling")

    def get_description(self) -> str:
        return "broken"


async def test_broken_sampler_breaks_neither_submit_nor_run(caplog: pytest.LogCaptureFixture) -> None:
    exported, engine = Exported(sampler=Broken()), ListEngine()
    async with submitting(engine, exported.config) as scheduler:
        await scheduler.schedule(note, "x")
    async with working(engine, telemetry=exported.config):
        await ended(engine, f"done {note.name}")
    assert exported.spans == ()
    assert caplog.text.count("OpenTelemetry could not start a span; the task is not affected") == 2


async def test_two_schedulers_are_measured_by_one_meter(exported: Exported) -> None:
    engine = ListEngine()
    async with submitting(engine, exported.config) as one, submitting(engine, exported.config) as other:
        await one.schedule(note, "x")
        await other.schedule(note, "y")
    [(_, count)] = exported.metrics()["tasks.submit.duration"]
    assert count == 2


async def test_worker_without_a_provider_observes_nothing() -> None:
    engine = ListEngine()
    engine.calls.append(DurableCall(note.name, {"text": "x"}, "k"))
    async with working(engine):
        await ended(engine, f"done {note.name}")
        gc.collect()
        assert not [thing for thing in gc.get_objects() if type(thing).__name__ in ("DurableSpans", "DurableMetrics")]


@pytest.mark.parametrize("config", [{"trace": True}, {"queue_interval": 0}, {"queue_interval": float("inf")}])
def test_wrong_settings_are_refused(config: Any) -> None:
    with pytest.raises(InvalidConfigError):
        Worker(ListEngine(), telemetry=config)


_ENGINE = """
import os, signal
from core_durable_functions import note
from core_engine import ListEngine, until, working
from tasks_core.engines import DurableCall

class Once(ListEngine):
    async def _deliver(self, *args):
        await super()._deliver(*args)
        os.kill(os.getpid(), signal.SIGTERM)

engine = Once()
engine.calls.append(DurableCall(note.name, {"text": "x"}, "k"))
"""

_PROVIDERS = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

tracer_provider = TracerProvider()
tracer_provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(tracer_provider)
metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter())]))
"""


def test_command_uses_the_providers_of_a_module_that_it_imports(tmp_path: Path) -> None:
    """In a process of its own, because global providers can be set once."""
    (tmp_path / "engine_of_test.py").write_text(_ENGINE, encoding="utf-8")
    (tmp_path / "providers_of_test.py").write_text(_PROVIDERS, encoding="utf-8")
    command = ["-m", "tasks_core", "worker", "engine_of_test:engine", "--import", "providers_of_test"]
    path = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert f'"name": "run {note.name}"' in ended.stdout
    assert '"name": "tasks.duration"' in ended.stdout

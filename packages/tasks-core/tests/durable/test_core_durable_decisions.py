"""`Snooze` and `Cancel` of durable tasks: what the log, traces, stored results and operators have of them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Union

import anyio
import core_durable_functions as functions
import pytest
from core_durable_functions import forget
from core_postgres import ends, execute, postgres, queue, working
from core_support import messages
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from tasks_core import Cancel, RetryPolicy, Snooze, TaskScheduler, durable, durable_context
from tasks_core._durable import console
from tasks_core.engines import DurableState, StoredResult
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_testing import TasksRecorder, VirtualClock, call

__all__ = ("forget", "postgres", "queue")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine(postgres: str, queue: str) -> ProcrastinateEngine:
    return ProcrastinateEngine(postgres, queue=queue, pool_size=2)


@durable(name="decisions_poll")
async def poll(delay: float) -> str | Snooze | Cancel:
    functions.ran.append(durable_context().attempt)
    match len(functions.ran):
        case 1:
            return Snooze(delay)
        case 2:
            return Cancel("it was withdrawn")
    return "done"


@durable(name="decisions_give_up", retry=None, on_error=lambda _task, _error: Cancel("it is hopeless"))
def give_up() -> None:
    raise ConnectionError("SECRET of the exception")


@durable(name="decisions_at_the_stop")
async def cancel_at_the_stop() -> None:
    functions.waiting["stop"].set()
    await durable_context().scheduler.stopping.wait()
    raise Cancel("it is not needed after the deploy")


async def test_each_decision_has_one_line(engine: ProcrastinateEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(poll, 0.01)
        await ends(receipt, DurableState.CANCELLED)
    where = f"Task 'decisions_poll', key {receipt.idempotency_key}, job {receipt.id}, queue default,"
    assert [line for line in messages(caplog) if line.startswith("Task ")] == [
        f"{where} is snoozed in attempt 1: it runs again in 0.01 s",
        f"{where} has cancelled itself in attempt 1: it was withdrawn",
    ]


async def test_a_snoozed_task_is_delayed_in_the_database(engine: ProcrastinateEngine, postgres: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(poll, 3600)
        row: list[tuple[bool]] = []
        with anyio.fail_after(30):
            while not row:
                row = await execute(
                    postgres,
                    "SELECT scheduled_at BETWEEN now() + interval '59 minutes' AND now() + interval '1 hour' "
                    "FROM procrastinate_jobs WHERE id = %s AND status = 'todo' AND attempts = 1",
                    int(receipt.id),
                )
        assert row == [(True,)]
        assert await engine.retry(receipt.id) == 1
        await ends(receipt, DurableState.CANCELLED)
    assert functions.ran == [1, 1]


async def test_a_reason_belongs_to_one_end(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        async with working(engine):
            receipt = await scheduler.schedule(poll, 0.0)
            await ends(receipt, DurableState.CANCELLED)
        shown = await engine.show(receipt.id)
        assert shown is not None
        assert "  reason    it was withdrawn" in console.details(shown).splitlines()
        assert await engine.retry(receipt.id) == 1
        assert await receipt.cancel()
        assert (await receipt.status()).reason is None, "it is cancelled for another reason"
        assert await engine.retry(receipt.id) == 1
        async with working(engine):
            assert await receipt.result(timeout=30) == "done"


async def test_a_task_that_is_given_up_has_its_reason(engine: ProcrastinateEngine, postgres: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(give_up)
        number = int(receipt.id)
        gone = """UPDATE procrastinate_jobs SET args = args || '{"given_up": "3 workers died"}' WHERE id = %s"""
        await execute(postgres, gone, number)
        async with working(engine):
            await ends(receipt, DurableState.CANCELLED)
        status = await receipt.status()
        assert (status.reason, [error.error for error in status.errors]) == (
            "it is hopeless",
            ["tasks_core.exceptions.DurableTaskGivenUpError"],
        )
        await execute(postgres, "UPDATE procrastinate_jobs SET status = 'failed' WHERE id = %s", number)
        shown = await engine.show(receipt.id)
        assert shown is not None
        assert shown.reason == "3 workers died"
        # As an operator may have written it.
        odd = """UPDATE procrastinate_jobs SET args = args || '{"given_up": 3}' WHERE id = %s"""
        await execute(postgres, odd, number)
        shown = await engine.show(receipt.id)
        assert shown is not None
        assert shown.reason is None
        assert "  reason    \\x07" in console.details(replace(shown, reason="\x07")).splitlines()


async def test_a_trace_has_no_error_of_a_task_that_decides(engine: ProcrastinateEngine) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    functions.waiting["stop"] = anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler:
        async with working(engine, telemetry={"tracer_provider": provider}, grace_period=60) as stop:
            await ends(await scheduler.schedule(poll, 0.0), DurableState.CANCELLED)
            receipt = await scheduler.schedule(cancel_at_the_stop)
            await functions.waiting["stop"].wait()
            stop.set()
        assert (await receipt.status()).state is DurableState.CANCELLED
    spans = [span for span in exporter.get_finished_spans() if span.name.startswith("run ")]
    assert {(span.status.status_code, span.events) for span in spans} == {(StatusCode.UNSET, ())}
    assert [dict(span.attributes or {})["task.outcome"] for span in spans] == ["snoozed", "cancelled", "cancelled"]


# ---- results ----


@durable(name="decisions_union")
def with_union() -> Union[int, Snooze, None]:  # noqa: UP007  as older code writes it
    return 7


@durable(name="decisions_only")
def only() -> Snooze | Cancel:
    return Snooze(1)


def test_a_result_is_stored_by_what_is_left_of_the_annotation() -> None:
    assert poll.result_codec.encode("done") == StoredResult("done")
    assert with_union.result_codec.encode(7) == StoredResult(7)
    assert with_union.result_codec.encode("seven") != StoredResult("seven")
    assert only.result_codec.encode(None) is None


# ---- in a test ----


@durable(name="decisions_wait", retry=RetryPolicy(attempts=3, backoff=0.0))
async def wait_for_it() -> None:
    functions.ran.append(durable_context().attempt)
    if len(functions.ran) == 1:
        raise ConnectionError
    if len(functions.ran) < 4:
        raise Snooze(3600)


async def test_a_test_runs_a_snoozed_task_again_when_it_says_so(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        receipt = await scheduler.schedule(wait_for_it)
        await tasks_recorder.arun_durable()
        assert functions.ran == [1, 2]
        [run] = tasks_recorder.durable_runs
        assert run.state == "retrying"
        assert (await receipt.status()).state is DurableState.PENDING
        with pytest.raises(AssertionError, match=r"it is snoozed: the next tasks_recorder\.run_durable\(\) runs it"):
            tasks_recorder.durable_runs.assert_ran(call(wait_for_it))
        await tasks_recorder.arun_durable(times=2)
        assert functions.ran == [1, 2, 2], "times= repeats what has ended"
        await tasks_recorder.arun_durable()
        tasks_recorder.durable_runs.assert_ran(call(wait_for_it), times=1)
        assert (await receipt.status()).attempts == 2
    assert functions.ran == [1, 2, 2, 2]
    assert "by the next run_durable(), 3600 s skipped" in tasks_recorder.timeline()


def test_a_task_that_is_snoozed_at_the_end_of_a_test_is_no_leak(tasks_recorder: TasksRecorder) -> None:
    async def submit() -> None:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(poll, 60)

    anyio.run(submit)
    tasks_recorder.run_durable()
    assert [run.state for run in tasks_recorder.durable_runs] == ["retrying"]


@durable(name="decisions_send", retry=RetryPolicy(attempts=9, backoff=0.0))
async def send() -> None:
    await anyio.lowlevel.checkpoint()
    if "failed" not in functions.ran:
        functions.ran.append("failed")
        raise ConnectionError
    if "ready" not in functions.ran:
        raise Snooze(60)
    if "sent" not in functions.ran:
        functions.ran.append(f"attempt {durable_context().attempt}")
        functions.ran.append("sent")


def test_a_snoozed_task_is_cut_everywhere(tasks_recorder: TasksRecorder) -> None:
    async def submit() -> None:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(send)

    anyio.run(submit)
    tasks_recorder.run_durable(cut="everywhere", restore=functions.ran.clear, check=lambda: list(functions.ran))
    assert functions.ran == ["failed"]
    tasks_recorder.run_durable(
        cut="everywhere",
        restore=lambda: functions.ran.__setitem__(slice(None), ["failed", "ready"]),
        check=lambda: "sent" in functions.ran,
    )
    assert functions.ran[:2] == ["failed", "ready"]
    assert [run.state for run in tasks_recorder.durable_runs] == ["retrying", "succeeded"]


async def test_a_test_sees_why_a_task_has_cancelled_itself(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        receipt = await scheduler.schedule(give_up)
        await tasks_recorder.arun_durable()
        status = await receipt.status()
    [run] = tasks_recorder.durable_runs
    assert (run.state, run.reason) == ("cancelled", "it is hopeless")
    assert (status.reason, [error.error for error in status.errors]) == ("it is hopeless", ["ConnectionError"])


async def test_a_test_records_a_task_in_memory_that_snoozes(tasks_recorder: TasksRecorder) -> None:
    async def snooze() -> str | Snooze:
        functions.ran.append("snooze")
        return Snooze(60) if len(functions.ran) == 1 else "done"

    clock = VirtualClock()
    async with TaskScheduler(clock=clock) as scheduler:
        task = scheduler.schedule(snooze)
        assert await task == "done"
    [recorded] = tasks_recorder.in_state("succeeded")
    assert (recorded.state, recorded.error, recorded.attempts) == ("succeeded", None, 1)
    assert "in 60 s" in tasks_recorder.timeline()

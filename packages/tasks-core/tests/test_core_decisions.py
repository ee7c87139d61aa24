"""What a task decides in place of a result or a failure: `Snooze`, to run later, and `Cancel`, never again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from core_support import EventLog, messages
from tasks_core import (
    Cancel,
    RetryPolicy,
    Snooze,
    Task,
    TaskErrorHandler,
    TaskScheduler,
    TaskState,
    by_exception,
    chain,
    durable,
    durable_context,
    observe,
    retry,
)
from tasks_core.engines import DurableState
from tasks_core.exceptions import InvalidConfigError, TaskCancelledError
from tasks_testing import VirtualClock

pytestmark = pytest.mark.anyio

left: list[object] = []
"""What the next attempts do: raise an exception, or return a value."""


@pytest.fixture(autouse=True)
def forget() -> None:
    left.clear()


def step(kind: str) -> object:
    what = left.pop(0)
    if isinstance(what, Exception) and (kind == "raised" or not isinstance(what, Snooze | Cancel)):
        raise what
    return what


async def coroutine(kind: str) -> object:
    await anyio.lowlevel.checkpoint()
    return step(kind)


def plain(kind: str) -> object:
    return step(kind)


functions = pytest.mark.parametrize("function", [coroutine, plain])
kinds = pytest.mark.parametrize("kind", ["raised", "returned"])


# ---- Snooze ----


@functions
@kinds
async def test_a_task_that_snoozes_runs_later_and_nothing_has_failed(
    function: Callable[[str], Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked: list[object] = []
    left[:] = [Snooze(60), Snooze(30), "done"]
    clock, log = VirtualClock(), EventLog()
    with observe(log):
        async with TaskScheduler(clock=clock) as scheduler:
            task = scheduler.task(on_error=lambda task, error: asked.append(error)).schedule(function, kind)
            assert await task == "done"
            counts = scheduler.statistics()
    assert clock.now() == 90
    assert (task.attempts, task.exception, task.reason, asked) == (1, None, None, [])
    assert (counts.succeeded, counts.failed, counts.cancelled) == (1, 0, 0)
    assert [event for event, _ in log.events] == [
        "scheduled",
        "started 1",
        "retrying after Snooze in 60",
        "started 1",
        "retrying after Snooze in 30",
        "started 1",
        "succeeded",
    ]
    assert [line for line in messages(caplog) if "snoozed" in line] == [
        f"Task {task.name!r} #{task.id} (scheduled at {task.where}) is snoozed in attempt 1: it runs again in {n} s"
        for n in (60, 30)
    ]
    assert messages(caplog, logging.WARNING) == []


async def test_a_retry_policy_counts_failures_only() -> None:
    left[:] = [Snooze(0), ValueError(), Snooze(0), Snooze(0), ValueError(), Snooze(0), ValueError()]
    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_error=retry(attempts=3, backoff=0)).schedule(coroutine, "raised")
        await task.wait()
    assert (task.state, task.attempts, left) == (TaskState.FAILED, 3, [])


async def test_a_snoozed_task_is_between_two_attempts_and_can_be_cancelled() -> None:
    left[:] = [Snooze(60)]
    async with TaskScheduler(clock=VirtualClock(auto=False)) as scheduler:
        task = scheduler.schedule(coroutine, "raised")
        await anyio.wait_all_tasks_blocked()
        assert (task.state, task.attempts) == (TaskState.RETRYING, 0)
        task.cancel()
    assert (task.state, task.lost) == (TaskState.CANCELLED, False)


async def test_a_snoozed_task_keeps_its_key() -> None:
    left[:] = [Snooze(60), "first", "second"]
    clock = VirtualClock(auto=False)
    async with TaskScheduler(clock=clock) as scheduler:
        target = scheduler.task(key="k", on_conflict="queue")
        first, second = target.schedule(coroutine, "raised"), target.schedule(coroutine, "raised")
        await anyio.wait_all_tasks_blocked()
        assert [first.state, second.state] == [TaskState.RETRYING, TaskState.PENDING]
        clock.advance(60)
        assert [await second, await first] == ["second", "first"]


async def test_shutdown_does_not_wait_for_a_snooze_that_is_too_long(caplog: pytest.LogCaptureFixture) -> None:
    left[:] = [Snooze(60)]
    async with TaskScheduler(clock=VirtualClock(auto=False), grace_period=5) as scheduler:
        task = scheduler.schedule(coroutine, "raised")
    assert (task.state, task.lost) == (TaskState.CANCELLED, True), "it had begun"
    assert task.reason == "its delay would have ended after the time that shutdown leaves it"
    assert any("would have ended" in line for line in messages(caplog, logging.WARNING))


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_task_that_is_being_cancelled_cannot_snooze(cancelled: bool) -> None:
    async def clean_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise Snooze(0)

    async with TaskScheduler(grace_period=0) as scheduler:
        task = scheduler.schedule(clean_up)
        await task.started.wait()
        if cancelled:
            task.cancel()
            await task.wait()
    assert (task.state, task.lost) == (TaskState.CANCELLED, not cancelled)
    assert task.reason == ("task.cancel() was called" if cancelled else "the grace period of the shutdown was over")


async def test_a_shielded_task_cannot_snooze_beyond_the_end_of_its_time() -> None:
    begun, gate = anyio.Event(), anyio.Event()

    async def stubborn() -> None:
        begun.set()
        while not gate.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await gate.wait()
            except anyio.get_cancelled_exc_class():
                pass
        raise Snooze(0)

    async with TaskScheduler(grace_period=0, shield_timeout=0) as scheduler:
        task = scheduler.schedule(stubborn)
        await begun.wait()
    gate.set()
    await anyio.wait_all_tasks_blocked()
    assert (task.state, task.reason) == (TaskState.CANCELLED, "it ignored its cancellation and was abandoned")


async def test_an_observer_may_cancel_a_task_that_is_snoozed() -> None:
    class Impatient(EventLog):
        def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
            task.cancel()

    left[:] = [Snooze(0)]
    with observe(Impatient()):
        async with TaskScheduler() as scheduler:
            task = scheduler.schedule(coroutine, "raised")
    assert task.state is TaskState.CANCELLED


# ---- Cancel ----


@functions
@kinds
async def test_a_task_that_cancels_itself_ends_with_its_reason(
    function: Callable[[str], Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ended: list[tuple[TaskState, str | None]] = []
    left[:] = [Cancel("the order was withdrawn")]
    async with TaskScheduler() as scheduler:
        target = scheduler.task(on_error=retry(attempts=3), on_end=lambda task: ended.append((task.state, task.reason)))
        task = target.schedule(function, kind)
        with pytest.raises(TaskCancelledError, match="the order was withdrawn"):
            await task
        await scheduler.idle()
        counts = scheduler.statistics()
    assert (task.state, task.reason, task.attempts) == (TaskState.CANCELLED, "the order was withdrawn", 1)
    assert (task.exception, task.lost, counts.cancelled) == (None, False, 1)
    assert ended == [(TaskState.CANCELLED, "the order was withdrawn")]
    assert scheduler.report is not None
    assert scheduler.report.clean
    line = f"Task {task.name!r} #{task.id} (scheduled at {task.where}) has cancelled itself in attempt 1"
    assert f"{line}: the order was withdrawn" in messages(caplog)
    assert messages(caplog, logging.WARNING) == []


async def test_a_task_that_is_abandoned_has_nothing_left_to_decide() -> None:
    begun, gate = anyio.Event(), anyio.Event()

    async def stubborn() -> Cancel:
        begun.set()
        while not gate.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await gate.wait()
            except anyio.get_cancelled_exc_class():
                pass
        return Cancel("too late")

    async with TaskScheduler(grace_period=0, shield_timeout=0) as scheduler:
        task = scheduler.schedule(stubborn)
        await begun.wait()
    gate.set()
    await anyio.wait_all_tasks_blocked()
    assert task.reason == "it ignored its cancellation and was abandoned"


# ---- groups ----


async def test_a_group_counts_if_it_has_nothing_else() -> None:
    async def in_groups(*errors: Exception) -> None:
        async with anyio.create_task_group(), anyio.create_task_group() as group:
            for error in errors:
                group.start_soon(raise_it, error)

    async def raise_it(error: Exception) -> None:
        raise error

    async with TaskScheduler() as scheduler:
        alone = scheduler.schedule(in_groups, Cancel("alone"))
        mixed = scheduler.schedule(in_groups, Cancel("with a failure"), ValueError())
        await mixed.wait()
    assert (alone.state, alone.reason) == (TaskState.CANCELLED, "alone")
    assert mixed.state is TaskState.FAILED


# ---- error handlers ----


def returns(decision: Exception) -> TaskErrorHandler:
    return lambda task, error: decision


def raises(decision: Exception) -> TaskErrorHandler:
    async def handle(task: Task[Any], error: Exception) -> None:
        raise decision

    return handle


def never_asked(task: Task[Any], error: Exception) -> None:
    raise AssertionError


@pytest.mark.parametrize("answers", [returns, raises])
@pytest.mark.parametrize(
    "combine",
    [
        lambda handler: handler,
        lambda handler: chain(retry(attempts=1), handler, never_asked),
        lambda handler: by_exception({ValueError: handler}),
    ],
)
async def test_an_error_handler_may_decide(
    answers: Callable[[Exception], TaskErrorHandler],
    combine: Callable[[TaskErrorHandler], TaskErrorHandler],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with TaskScheduler(clock=VirtualClock()) as scheduler:
        left[:] = [ValueError("busy"), "done"]
        snoozed = scheduler.task(on_error=combine(answers(Snooze(60)))).schedule(coroutine, "raised")
        assert await snoozed == "done"
        left[:] = [ValueError("gone")]
        cancelled = scheduler.task(on_error=combine(answers(Cancel("no use")))).schedule(coroutine, "raised")
        await cancelled.wait()
    assert snoozed.attempts == 1, "the failure does not count"
    assert isinstance(snoozed.exception, ValueError)
    assert (cancelled.state, cancelled.reason, cancelled.attempts) == (TaskState.CANCELLED, "no use", 1)
    assert isinstance(cancelled.exception, ValueError)
    assert messages(caplog, logging.WARNING) == []
    assert "is snoozed in attempt 1 (after ValueError: busy): it runs again in 60 s" in caplog.text
    assert "has cancelled itself in attempt 1 (after ValueError: gone): no use" in caplog.text


async def test_a_handler_of_ends_has_nothing_to_decide(caplog: pytest.LogCaptureFixture) -> None:
    def too_late(task: Task[Any]) -> None:
        raise Snooze(0)

    left[:] = ["done"]
    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_end=too_late).schedule(coroutine, "raised")
    assert task.state is TaskState.SUCCEEDED
    assert any("on_end of" in line and "raised" in line for line in messages(caplog, logging.ERROR))


# ---- what is allowed ----


async def test_the_result_is_not_asked_what_it_is() -> None:
    class Proxy:
        @property  # type: ignore[misc]  # which type checkers know as an attribute
        def __class__(self) -> Any:
            raise RuntimeError("nothing behind it")

    proxy = Proxy()

    async def find() -> Proxy:
        return proxy

    async with TaskScheduler() as scheduler:
        assert await scheduler.schedule(find) is proxy


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Snooze(-1), "Snooze(delay=-1): delay must be a number of seconds from 0 to 100 years, as in 60"),
        (lambda: Snooze(math.inf), "Snooze(delay=inf)"),
        (lambda: Snooze(math.nan), "Snooze(delay=nan)"),
        (lambda: Snooze(1e10), "Snooze(delay=10000000000.0)"),
        (lambda: Snooze("60"), "Snooze(delay='60')"),  # type: ignore[arg-type]  # what is refused
        (lambda: Cancel(""), "Cancel(reason=''): reason must be a text of 1 to 500 characters without NUL"),
        (lambda: Cancel("a" * 501), "reason must be a text of 1 to 500 characters"),
        (lambda: Cancel("a\0"), "without NUL"),
        (lambda: Cancel("\ud800"), "surrogates"),
        (lambda: Cancel(17), "Cancel(reason=17)"),  # type: ignore[arg-type]  # what is refused
    ],
)
def test_wrong_values_are_refused_at_the_call(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        make()
    assert message in str(caught.value)


def test_they_say_what_they_are() -> None:
    assert (repr(Snooze(0.5)), str(Snooze(0.5))) == ("Snooze(0.5)", "it runs again in 0.5 s")
    assert (repr(Cancel("no use")), str(Cancel("no use"))) == ("Cancel('no use')", "no use")


# ---- durable functions where there is no engine ----


@durable(retry=RetryPolicy(attempts=2, backoff=0.0))
async def without_engine(text: str) -> str | Snooze | Cancel:
    left.append(durable_context().attempt)
    match len(left):
        case 1 | 3:
            return Snooze(60)
        case 2:
            raise ValueError
    return f"{text} is done" if text != "cancelled" else Cancel("no use")


async def test_a_durable_task_in_memory_decides_too() -> None:
    async with TaskScheduler(clock=VirtualClock(), without_engine="memory") as scheduler:
        receipt = await scheduler.schedule(without_engine, "this")
        assert await receipt.result() == "this is done"
        assert left == [1, 1, 2, 2]
        receipt = await scheduler.schedule(without_engine, "cancelled")
        with pytest.raises(TaskCancelledError, match="no use"):
            await receipt.result()
        status = await receipt.status()
    assert (status.state, status.reason, status.attempts) == (DurableState.CANCELLED, "no use", 1)


@durable(retry=None, on_error=lambda _task, _error: Cancel("hopeless"))
async def hopeless() -> None:
    raise ValueError


async def test_a_durable_task_in_memory_that_is_cancelled_after_a_failure_says_why() -> None:
    async with TaskScheduler(without_engine="memory") as scheduler:
        receipt = await scheduler.schedule(hopeless)
        with pytest.raises(TaskCancelledError, match="hopeless"):
            await receipt.result()

"""`on_end`: the application is called when a task has ended, in whatever way."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from weakref import ref

import anyio
import anyio.lowlevel
import pytest
from core_support import EventLog, fail, messages, noop
from tasks_core import (
    SchedulerClosedError,
    Task,
    TaskConfig,
    TaskPhase,
    TaskScheduler,
    TaskState,
    current_task,
    observe,
    retry,
)
from tasks_core.exceptions import InvalidConfigError
from tasks_testing import VirtualClock, record_tasks

pytestmark = pytest.mark.anyio


class Rows:
    """Stands for a table with a row for each job."""

    def __init__(self) -> None:
        self.closed: list[tuple[str, TaskState, str | None]] = []
        self.threads: list[int] = []

    async def close(self, task: Task[Any]) -> None:
        await anyio.lowlevel.checkpoint()
        self.close_plainly(task)

    def close_plainly(self, task: Task[Any]) -> None:
        self.threads.append(threading.get_ident())
        self.closed.append((task.args[0] if task.args else task.name, task.state, task.reason))


async def succeed(_job: str) -> None:
    pass


async def break_off(_job: str) -> None:
    raise ValueError("failed on purpose")


async def wait(_job: str) -> None:
    await anyio.sleep_forever()


@pytest.mark.parametrize("kind", ["close", "close_plainly"])
async def test_each_terminal_state_is_reported_once(kind: str) -> None:
    rows = Rows()
    async with TaskScheduler(grace_period=0.01) as scheduler:
        jobs = scheduler.task(on_end=getattr(rows, kind))
        await jobs.schedule(succeed, "succeeds").wait()
        await jobs.task(on_error=retry(attempts=2, backoff=0)).schedule(break_off, "fails twice").wait()
        jobs.task(delay=100).schedule(succeed, "is cancelled before it starts").cancel()
        await jobs.schedule(wait, "is cancelled by shutdown").started.wait()
        phase = TaskPhase(scheduler, "after_commit")
        phase.task(on_end=getattr(rows, kind)).schedule(succeed, "is discarded with its phase")
        phase.discard("rolled back")
        TaskPhase(scheduler, "never").task(on_end=getattr(rows, kind)).schedule(succeed, "is discarded by shutdown")
    assert sorted(rows.closed) == [
        ("fails twice", TaskState.FAILED, None),
        ("is cancelled before it starts", TaskState.CANCELLED, "task.cancel() was called"),
        ("is cancelled by shutdown", TaskState.CANCELLED, "the grace period of the shutdown was over"),
        ("is discarded by shutdown", TaskState.DISCARDED, "the grace period of the shutdown was over"),
        ("is discarded with its phase", TaskState.DISCARDED, "rolled back"),
        ("succeeds", TaskState.SUCCEEDED, None),
    ]
    assert (threading.get_ident() in rows.threads) is (kind == "close")
    numbers = scheduler.statistics()
    assert (numbers.scheduled, numbers.succeeded, numbers.failed, numbers.cancelled, numbers.discarded) == (
        6, 1, 1, 2, 2,
    )  # fmt: skip


async def test_the_handler_has_the_context_of_the_call_and_is_no_part_of_the_task() -> None:
    request_id: ContextVar[str] = ContextVar("request_id", default="none")
    seen: list[object] = []

    async def on_end(task: Task[Any]) -> None:
        seen.extend((request_id.get(), current_task(), task.state))

    async with TaskScheduler() as scheduler:
        token = request_id.set("r-1")
        task = scheduler.task(on_end=on_end).schedule(noop)
        request_id.reset(token)
        await task
    assert seen == ["r-1", None, TaskState.SUCCEEDED]


async def test_the_configuration_of_the_scheduler_gives_all_tasks_a_handler() -> None:
    rows = Rows()
    async with TaskScheduler(config=TaskConfig(on_end=rows.close)) as scheduler:
        scheduler.schedule(succeed, "a")
        scheduler.task(name="other").schedule(succeed, "b")
    assert sorted(job for job, _, _ in rows.closed) == ["a", "b"]


@pytest.mark.parametrize("error", [RuntimeError("row is locked"), SystemExit(1)])
async def test_a_handler_that_raises_changes_nothing_and_is_logged(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_end(task: Task[Any]) -> None:
        raise error

    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_end=on_end).schedule(noop)
        other = scheduler.schedule(noop)
    assert task.state is other.state is TaskState.SUCCEEDED
    [record] = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.getMessage().startswith("on_end of Task 'noop' #")
    assert record.getMessage().endswith(" raised")
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_a_handler_that_takes_too_long_is_cancelled_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock(auto=False)
    async with TaskScheduler(clock=clock) as scheduler:
        task = scheduler.task(on_end=lambda task: anyio.sleep_forever()).schedule(noop)
        await task.wait()  # does not wait for the handler
        assert scheduler.tasks == ()
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        clock.advance(10)
        await scheduler.idle()
    assert "took longer than 10 s and was cancelled" in messages(caplog, logging.ERROR)[0]


async def test_idle_and_shutdown_wait_for_the_handlers_and_follow_ups_are_refused_then() -> None:
    gate = anyio.Event()
    seen: list[str] = []

    async def on_end(task: Task[Any]) -> None:
        await gate.wait()
        try:
            scheduler.schedule(noop)
        except SchedulerClosedError:
            seen.append("refused")
        else:
            seen.append("accepted")

    async def wait_until_idle() -> None:
        await scheduler.idle()
        seen.append("idle")

    scheduler = TaskScheduler(grace_period=10)
    await scheduler.start()
    async with anyio.create_task_group() as group:
        await scheduler.task(on_end=on_end).schedule(noop)
        group.start_soon(wait_until_idle)
        await anyio.lowlevel.checkpoint()
        assert seen == []
        gate.set()
    assert seen == ["accepted", "idle"]
    gate = anyio.Event()
    await scheduler.task(on_end=on_end).schedule(noop)
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.aclose)
        await scheduler.stopping.wait()
        gate.set()
    assert seen[2:] == ["refused"]


@pytest.mark.parametrize("shield_timeout", [0, None])
async def test_shutdown_does_not_wait_for_a_handler_that_hangs(
    shield_timeout: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = anyio.Event()

    async def on_end(task: Task[Any]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    clock = VirtualClock(auto=False)
    scheduler = TaskScheduler(grace_period=1, shield_timeout=shield_timeout, clock=clock)
    await scheduler.start()
    task = scheduler.task(on_end=on_end).schedule(wait, "job")
    await task.started.wait()
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.aclose)
        await scheduler.stopping.wait()
        while clock.now() < 8:  # 1 second of grace, 5 seconds for handlers, and less than the limit of a handler
            await anyio.sleep(0.001)
            clock.advance(0.1)
    assert scheduler.closed
    assert task.state is TaskState.CANCELLED
    with anyio.fail_after(5):
        await cancelled.wait()
    assert len([line for line in messages(caplog, logging.WARNING) if line.startswith("on_end of Task")]) >= 1
    numbers = scheduler.statistics()
    assert (numbers.scheduled, numbers.cancelled) == (1, 1)


async def test_a_task_that_ignores_its_cancellation_to_the_end_gets_a_line_and_no_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = Rows()
    gate = anyio.Event()

    async def ignore(_job: str) -> None:
        with anyio.CancelScope(shield=True):
            while not gate.is_set():
                try:
                    await gate.wait()
                except anyio.get_cancelled_exc_class():
                    continue

    async with TaskScheduler(grace_period=0, shield_timeout=0) as scheduler:
        task = scheduler.task(on_end=rows.close).schedule(ignore, "job")
        await task.started.wait()
    assert task.state is TaskState.CANCELLED
    assert rows.closed == []
    assert [line for line in messages(caplog, logging.WARNING) if line.endswith("is not called: shutdown is over")]
    gate.set()


async def test_observers_hear_of_the_end_after_the_handler_so_that_a_recorder_waits_for_it() -> None:
    log = EventLog()

    async def on_end(task: Task[Any]) -> None:
        log.events.append(("on_end", task.name))

    with observe(log):
        async with TaskScheduler() as scheduler:
            scheduler.task(on_end=on_end).schedule(noop)
    assert log.events == [("scheduled", "noop"), ("started 1", "noop"), ("on_end", "noop"), ("succeeded", "noop")]
    rows = Rows()
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.task(on_end=rows.close).schedule(succeed, "recorded")
            await recorder.adrain()
            assert rows.closed == [("recorded", TaskState.SUCCEEDED, None)]


def test_a_handler_must_be_callable() -> None:
    with pytest.raises(InvalidConfigError, match="on_end='close': on_end must be a function of"):
        TaskConfig(on_end="close")  # type: ignore[arg-type]


async def test_a_task_is_released_when_its_handler_has_returned() -> None:
    async def on_end(task: Task[Any]) -> None:
        raise ValueError("failed on purpose")

    handlers: list[Callable[[Task[Any]], Any]] = [on_end, lambda task: None]
    async with TaskScheduler() as scheduler:
        for handler in handlers:
            task = scheduler.task(on_end=handler).schedule(fail)
            weak = ref(task)
            del task
            await scheduler.idle()
            with anyio.fail_after(10):
                # Of the first one, the log record of pytest keeps the exception. A worker thread, which has called the
                # second one, lets go of the task a moment after that.
                while handler is not on_end and weak() is not None:
                    gc.collect()
                    await anyio.sleep(0.001)

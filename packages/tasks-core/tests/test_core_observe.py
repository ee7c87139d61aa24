"""Observers: what they see, and what they may do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
import pytest
from core_support import EventLog, fail, in_thread, messages, noop
from tasks_core import (
    PhaseInfo,
    SchedulerClosedError,
    Task,
    TaskObserver,
    TaskPhase,
    TaskScheduler,
    TaskState,
    current_task,
    observe,
    retry,
)
from tasks_core.frameworks import announce
from tasks_core.testing import release_task
from tasks_core.types import RunAttempt, Subscription
from tasks_testing import VirtualClock

pytestmark = pytest.mark.anyio


async def test_an_observer_sees_every_transition() -> None:
    log = EventLog()
    async with TaskScheduler(clock=VirtualClock()) as scheduler:
        with observe(log):
            batch = TaskPhase(scheduler, "later")
            task = batch.task(name="t", on_error=retry(attempts=2, backoff=3)).schedule(fail)
            batch.open("success")
            await task.wait()
            cancelled = scheduler.task(name="c").schedule(noop)
            cancelled.cancel()
            dropped = TaskPhase(scheduler, "never")
            dropped.task(name="d").schedule(noop)
            dropped.discard("so")
            announce("request 1", "request_started")
        announce("request 2", "request_started")
        await scheduler.schedule(noop)
    assert log.events == [
        ("scheduled", "t"),
        ("opened success", "later"),
        ("started 1", "t"),
        ("retrying after ValueError in 3", "t"),
        ("started 2", "t"),
        ("failed", "t"),
        ("scheduled", "c"),
        ("cancelled", "c"),
        ("scheduled", "d"),
        ("discarded because so", "never"),
        ("discarded", "d"),
        ("request_started", "request 1"),
    ]


class Raising(TaskObserver):
    """Raises in everything that it is told or asked."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def task_scheduled(self, task: Task[Any]) -> None:
        raise self.error

    def task_started(self, task: Task[Any]) -> None:
        raise self.error

    def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
        raise self.error

    def task_finished(self, task: Task[Any]) -> None:
        raise self.error

    def phase_opened(self, batch: PhaseInfo, outcome: Any) -> None:
        raise self.error

    def phase_discarded(self, batch: PhaseInfo, reason: str) -> None:
        raise self.error

    def origin_event(self, origin: object, event: str) -> None:
        raise self.error

    def hold_task(self, task: Task[Any]) -> bool:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("observer"), SystemExit(1)])
async def test_an_observer_that_raises_harms_nobody(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog()
    with observe(Raising(error)), observe(log):
        async with TaskScheduler() as scheduler:
            batch, dropped = TaskPhase(scheduler, "later"), TaskPhase(scheduler, "never")
            again = batch.task(on_error=retry(attempts=2, backoff=0)).schedule(fail)
            dropped.schedule(noop)
            batch.open()
            dropped.discard("so")
            announce("origin", "event")
            await again.wait()
            await scheduler.schedule(noop)
    assert [event for event, _ in log.events if event in ("succeeded", "failed", "discarded", "event")] == [
        "discarded",
        "event",
        "failed",
        "succeeded",
    ]
    lines = [line for line in messages(caplog) if line.startswith("An observer raised in")]
    told = {line.split()[4].rstrip(";") for line in lines}
    assert told == {name for name in vars(Raising) if not name.startswith("__")}


@pytest.mark.parametrize("thread", [True, False])
async def test_a_keyboard_interrupt_in_an_observer_is_for_the_process(thread: bool) -> None:
    ran: list[int] = []
    async with TaskScheduler() as scheduler:
        with observe(Raising(KeyboardInterrupt())), pytest.raises(KeyboardInterrupt):
            in_thread(lambda: scheduler.schedule(ran.append, 1)) if thread else scheduler.schedule(ran.append, 1)
        await anyio.wait_all_tasks_blocked()
        numbers = scheduler.statistics()
        assert (numbers.scheduled, numbers.discarded) == (1, 1), "nobody has a handle to it"
    assert ran == []


async def test_observers_may_come_and_go_while_an_event_is_delivered() -> None:
    told: list[str] = []
    subscriptions: list[Subscription] = []

    class Leaving(TaskObserver):
        def task_started(self, task: Task[Any]) -> None:
            told.append("leaving")
            subscriptions[0].close()
            subscriptions.append(observe(Coming()))

    class Coming(TaskObserver):
        def task_started(self, task: Task[Any]) -> None:
            told.append("coming")

    class Staying(TaskObserver):
        def task_started(self, task: Task[Any]) -> None:
            told.append("staying")

    subscriptions.append(observe(Leaving()))
    with observe(Staying()):
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(noop)
            await scheduler.schedule(noop)
    subscriptions[1].close()
    assert told == ["leaving", "staying", "staying", "coming"]


async def test_an_observer_may_schedule_tasks() -> None:
    class Following(TaskObserver):
        def task_finished(self, task: Task[Any]) -> None:
            if task.name == "first":
                scheduler.task(name="second").schedule(noop)

        def task_scheduled(self, task: Task[Any]) -> None:
            if task.name == "second":
                scheduler.task(name="third").schedule(noop)

    log = EventLog()
    with observe(Following()), observe(log):
        async with TaskScheduler() as scheduler:
            await scheduler.task(name="first").schedule(noop)
            await anyio.wait_all_tasks_blocked()
    assert sorted(name for event, name in log.events if event == "succeeded") == ["first", "second", "third"]


async def test_an_observer_hears_of_the_end_after_it_heard_of_the_task() -> None:
    class Canceller(TaskObserver):
        def task_scheduled(self, task: Task[Any]) -> None:
            task.cancel()

    log = EventLog()
    with observe(Canceller()), observe(log):
        async with TaskScheduler() as scheduler:
            scheduler.schedule(noop)
            in_thread(lambda: scheduler.schedule(noop))
    assert [event for event, _ in log.events] == ["scheduled", "cancelled"] * 2


async def test_a_task_that_ends_while_another_thread_still_tells_of_it_is_told_in_order() -> None:
    telling, tell = threading.Event(), threading.Event()

    class Slow(TaskObserver):
        def task_scheduled(self, task: Task[Any]) -> None:
            telling.set()
            tell.wait()

    log = EventLog()
    with observe(Slow()), observe(log):
        async with TaskScheduler(grace_period=0) as scheduler, anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, lambda: scheduler.schedule(noop))
            await anyio.to_thread.run_sync(telling.wait)
            report = await scheduler.aclose()
            assert len(report.discarded) == 1
            assert log.events == []
            tell.set()
    assert [event for event, _ in log.events] == ["scheduled", "discarded"]


async def test_subscribed_twice_it_is_told_twice_and_leaves_once_at_a_time() -> None:
    log = EventLog()
    first, second = observe(log), observe(log)
    announce("o", "twice")
    first.close()
    announce("o", "once")
    second.close()
    announce("o", "never")
    assert log.events == [("twice", "o"), ("twice", "o"), ("once", "o")]


async def test_an_observer_need_not_be_a_task_observer() -> None:
    class Duck:
        def __init__(self) -> None:
            self.ended: list[str] = []

        def task_finished(self, task: Task[Any]) -> None:
            self.ended.append(task.name)

    duck: Any = Duck()
    with observe(duck):
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(noop)
    assert duck.ended == ["noop"]


# ---- holding ----


class Holder(TaskObserver):
    def __init__(self) -> None:
        self.asked: list[Task[Any]] = []

    def hold_task(self, task: Task[Any]) -> bool:
        self.asked.append(task)
        return True


@pytest.mark.parametrize("thread", [True, False])
async def test_a_held_task_starts_when_it_is_released(thread: bool) -> None:
    holder = Holder()
    async with TaskScheduler() as scheduler:
        with observe(holder):
            task = scheduler.schedule(noop)
            delayed = scheduler.task(delay=0.001).schedule(noop)
        await anyio.wait_all_tasks_blocked()
        assert task.state is TaskState.PENDING
        if thread:
            in_thread(lambda: release_task(task))
        else:
            release_task(task)
        release_task(task)
        release_task(delayed)
        await task
        await delayed
        release_task(task)
    assert holder.asked == [task, delayed]


async def test_a_held_task_can_be_cancelled_and_is_then_not_released() -> None:
    async with TaskScheduler() as scheduler:
        with observe(Holder()):
            task = scheduler.schedule(noop)
        task.cancel()
        release_task(task)
        await task.wait()
    assert (task.state, task.attempts) == (TaskState.CANCELLED, 0)


async def test_releasing_a_task_that_nobody_holds_does_nothing() -> None:
    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "later")
        task = batch.schedule(noop)
        release_task(task)
        await anyio.wait_all_tasks_blocked()
        assert task.state is TaskState.PENDING
        batch.open()


async def test_an_observer_that_is_asked_may_cancel() -> None:
    class Canceller(TaskObserver):
        def hold_task(self, task: Task[Any]) -> bool:
            task.cancel()
            return False

    async with TaskScheduler(max_concurrency=1) as scheduler:
        with observe(Canceller()):
            task = scheduler.schedule(noop)
        await scheduler.schedule(noop)
    assert (task.state, task.attempts) == (TaskState.CANCELLED, 0)


# ---- around an attempt ----


class Around(TaskObserver):
    def __init__(self, name: str, log: list[str], replacement: Callable[..., Any] | None = None) -> None:
        self.name, self.log, self.replacement = name, log, replacement

    async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
        self.log.append(f"{self.name} before")
        try:
            return await (run() if self.replacement is None else run(self.replacement))
        finally:
            self.log.append(f"{self.name} after")


async def test_observers_nest_around_an_attempt() -> None:
    log: list[str] = []

    async def run(number: int) -> int:
        log.append("run")
        return number

    with observe(Around("outer", log)), observe(Around("inner", log)):
        async with TaskScheduler() as scheduler:
            assert await scheduler.task(timeout=5).schedule(run, 3) == 3
            assert await scheduler.schedule(lambda: 4) == 4
    inside, outside = ["outer before", "inner before"], ["inner after", "outer after"]
    assert log == [*inside, "run", *outside, *inside, *outside]


async def double(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize("replacement", [double, lambda number: 2 * number])
@pytest.mark.parametrize("outer", [True, False])
async def test_an_observer_may_replace_the_function(replacement: Callable[..., Any], outer: bool) -> None:
    log: list[str] = []
    replacing, plain = Around("replacing", log, replacement), Around("plain", log)

    def plain_function(number: int) -> int:
        raise AssertionError("replaced")

    with observe(replacing if outer else plain), observe(plain if outer else replacing):
        async with TaskScheduler(max_threads=1) as scheduler:
            for _ in range(2):
                assert await scheduler.schedule(plain_function, 3) == 6


async def test_a_replacement_must_take_the_arguments() -> None:
    with observe(Around("x", [], lambda: None)):
        async with TaskScheduler() as scheduler:
            with pytest.raises(TypeError, match="cannot be called with these arguments"):
                await scheduler.schedule(double, 3)


async def test_an_observer_may_answer_in_place_of_the_function_or_fail_it() -> None:
    class Answering(TaskObserver):
        async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
            if task.attempts == 1:
                raise OSError("injected")
            return "answered"

    with observe(Answering()):
        async with TaskScheduler(max_threads=1) as scheduler:
            for func in (noop, threading.get_ident):
                task: Task[Any] = scheduler.task(on_error=retry(backoff=0)).schedule(func)
                assert await task == "answered"
                assert task.attempts == 2
                assert isinstance(task.exception, OSError)


async def test_an_observer_runs_in_the_context_of_the_task() -> None:
    seen: list[Task[Any] | None] = []

    class Looking(TaskObserver):
        async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
            seen.append(current_task())
            return await run()

    with observe(Looking()):
        async with TaskScheduler() as scheduler:
            task = scheduler.schedule(noop)
            await task
    assert seen == [task]


async def test_a_finished_task_is_no_reason_to_schedule_more_while_shutting_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Following(TaskObserver):
        def task_finished(self, task: Task[Any]) -> None:
            scheduler.schedule(noop)

    async with TaskScheduler() as scheduler:
        gate = anyio.Event()
        task = scheduler.schedule(gate.wait)
        await task.started.wait()
        with observe(Following()):
            async with anyio.create_task_group() as group:
                group.start_soon(scheduler.aclose)
                await scheduler.stopping.wait()
                await anyio.wait_all_tasks_blocked()
                gate.set()
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], SchedulerClosedError)


async def test_an_observer_may_leave_the_rest_to_its_base() -> None:
    class Calling(TaskObserver):
        def hold_task(self, task: Task[Any]) -> bool:
            return super().hold_task(task)

        async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
            return await super().around_attempt(task, run)

    with observe(Calling()):
        async with TaskScheduler() as scheduler:
            assert await scheduler.schedule(double, 3) == 6


async def test_an_observer_sees_what_shutdown_begins_with() -> None:
    seen: list[tuple[list[Task[Any]], float]] = []

    class Looking(TaskObserver):
        def shutdown_started(self, tasks: Sequence[Task[Any]], grace_period: float) -> None:
            assert scheduler.stopping.is_set()
            seen.append((list(tasks), grace_period))
            gate.set()

    gate = anyio.Event()
    with observe(Looking()):
        async with TaskScheduler(grace_period=30) as scheduler:
            await scheduler.schedule(noop)
            tasks: list[Task[Any]] = [scheduler.schedule(gate.wait), scheduler.task(delay=0.001).schedule(noop)]
        with anyio.CancelScope() as scope:
            async with TaskScheduler(grace_period=30) as scheduler:
                scope.cancel()
                await anyio.sleep_forever()
    assert seen == [(tasks, 30.0), ([], 0.0)], "whoever is cancelled has no grace period to give"

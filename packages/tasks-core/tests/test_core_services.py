"""Services: what runs as long as the application, is started again when it fails, and costs a deploy nothing."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from weakref import ref

import anyio
import anyio.lowlevel
import pytest
from core_support import EventLog, in_thread, messages, noop
from tasks_core import (
    RetryPolicy,
    SchedulerClosedError,
    Service,
    TaskScheduler,
    TaskState,
    current_scheduler,
    current_task,
    observe,
)
from tasks_core.exceptions import InvalidConfigError, InvalidTaskError
from tasks_testing import VirtualClock, record_tasks

pytestmark = pytest.mark.anyio


class Consumer:
    """Runs until it is told to return or to fail, and counts its starts."""

    def __init__(self) -> None:
        self.starts = 0
        self.running = False
        self.cleaned_up = 0
        self.act: Callable[[], object] | None = None
        self.started = anyio.Event()
        self.wake = anyio.Event()

    async def run(self) -> None:
        self.starts += 1
        self.running = True
        self.started.set()
        try:
            while self.act is None:
                await self.wake.wait()
                self.wake = anyio.Event()
            act, self.act = self.act, None
            act()
        finally:
            self.running = False
            self.cleaned_up += 1

    def fail(self) -> None:
        def act() -> None:
            raise ConnectionError("the broker is gone")

        self.act = act
        self.wake.set()

    def end(self) -> None:
        self.act = lambda: None
        self.wake.set()


async def turns(number: int = 20) -> None:
    for _ in range(number):
        await anyio.lowlevel.checkpoint()


# ---- start and end ----


async def test_a_service_starts_with_the_scheduler_whenever_it_was_added() -> None:
    before, inside, paused, late = Consumer(), Consumer(), Consumer(), Consumer()
    scheduler = TaskScheduler()
    service = scheduler.service(before.run)
    assert (service.state, service.attempts, service.name) == (TaskState.PENDING, 0, "Consumer.run")
    await scheduler.start(paused=True)
    scheduler.service(paused.run)
    await turns()
    assert not before.running
    assert not paused.running
    scheduler.resume()
    scheduler.service(inside.run, name="consumer")
    in_thread(lambda: scheduler.service(late.run))
    await turns()
    assert all(consumer.running for consumer in (before, paused, inside, late))
    assert [s.state for s in scheduler.services] == [TaskState.RUNNING] * 4
    assert [s.name for s in scheduler.services] == ["Consumer.run", "Consumer.run", "consumer", "Consumer.run"]
    await scheduler.aclose()
    assert not any(consumer.running for consumer in (before, paused, inside, late))
    assert scheduler.services == ()
    assert service.state is TaskState.CANCELLED
    assert service.reason == "the scheduler shuts down"
    with pytest.raises(SchedulerClosedError, match=r"The service 'Consumer\.run' was not started"):
        scheduler.service(before.run)
    with pytest.raises(SchedulerClosedError):
        service.start()


async def test_a_service_that_returns_has_ended_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    consumer = Consumer()
    async with TaskScheduler() as scheduler:
        service = scheduler.service(consumer.run)
        await consumer.started.wait()
        consumer.end()
        await service.wait()
        assert (service.state, service.finished, scheduler.services) == (TaskState.SUCCEEDED, True, ())
    assert consumer.starts == 1
    [line] = [line for line in messages(caplog) if line.startswith("Service")]
    assert (
        line == f"Service 'Consumer.run' (started at {service.where}) has ended: it returned, and is not started again"
    )
    assert service.where.startswith(__file__)


async def test_a_service_is_cancelled_and_started_again_by_its_handle(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    consumer = Consumer()
    async with TaskScheduler() as scheduler:
        service = scheduler.service(consumer.run)
        await consumer.started.wait()
        assert in_thread(service.cancel) is True
        await service.wait()
        assert (service.state, service.reason) == (TaskState.CANCELLED, "service.cancel() was called")
        assert service.cancel() is False
        assert not consumer.running
        service.start()
        await turns()
        assert consumer.running
        assert service.state is TaskState.RUNNING
        service.start()  # it runs
        await turns()
        assert consumer.starts == 2
    assert messages(caplog, logging.WARNING) == []


@pytest.mark.parametrize("started", [False, True])
async def test_a_service_that_was_cancelled_before_its_first_step_does_not_run(started: bool) -> None:
    consumer = Consumer()
    scheduler = TaskScheduler()
    if started:
        await scheduler.start()
    service = scheduler.service(consumer.run)
    assert service.cancel()
    if not started:
        await scheduler.start()
    await turns()
    assert (service.state, consumer.starts) == (TaskState.CANCELLED, 0)
    await scheduler.aclose()


# ---- failures ----


async def test_a_service_that_fails_is_started_again_with_growing_pauses_and_the_whole_failure_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = VirtualClock(auto=False)
    consumer = Consumer()
    async with TaskScheduler(clock=clock) as scheduler:
        service = scheduler.service(consumer.run)
        for number, pause in enumerate([1, 2, 4, 8, 16, 32, 60, 60], start=1):
            consumer.fail()
            await turns()
            assert (service.state, service.failures) == (TaskState.RETRYING, number)
            clock.advance(pause - 0.5)
            await turns()
            assert consumer.starts == number
            clock.advance(0.5)
            await turns()
            assert (consumer.starts, service.state) == (number + 1, TaskState.RUNNING)
        clock.advance(60)  # a good while
        consumer.fail()
        await turns()
        assert service.failures == 1
        clock.advance(1)
        await turns()
        assert service.attempts == 10
        assert isinstance(service.exception, ConnectionError)
    records = [r for r in caplog.records if r.name == "tasks_core" and r.levelno >= logging.WARNING]
    assert len(records) == 9
    assert all(r.exc_info is not None and isinstance(r.exc_info[1], ConnectionError) for r in records)
    assert "failed, 2 times in a row, and is started again in 2 s" in records[1].getMessage()


@pytest.mark.parametrize(
    "restart, starts",
    [(False, 1), (RetryPolicy(attempts=3, backoff=0), 3), (RetryPolicy(attempts=3, backoff=0, on=OSError), 3)],
)
async def test_a_policy_says_when_a_service_is_started_again(
    restart: RetryPolicy | bool, starts: int, caplog: pytest.LogCaptureFixture
) -> None:
    number = 0

    async def fail() -> None:
        nonlocal number
        number += 1
        raise OSError("no route")

    async with TaskScheduler() as scheduler:
        service = scheduler.service(fail, restart=restart)
        with anyio.fail_after(5):
            await service.wait()
    assert (service.state, number) == (TaskState.FAILED, starts)
    assert messages(caplog, logging.ERROR)[-1].endswith("failed and is not started again")


async def test_a_service_that_exits_harms_nobody() -> None:
    async def leave() -> None:
        raise SystemExit(1)

    async with TaskScheduler() as scheduler:
        service = scheduler.service(leave, restart=False)
        await service.wait()
        await scheduler.schedule(noop)
    assert service.state is TaskState.FAILED


async def test_a_service_has_the_context_of_the_call_each_time_and_is_no_task() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen: list[object] = []

    async def run() -> None:
        seen.append((variable.get(), current_task(), current_scheduler()))
        variable.set("changed")
        if len(seen) == 1:
            raise ValueError("failed on purpose")

    async with TaskScheduler() as scheduler:
        token = variable.set("call")
        service = scheduler.service(run, restart=RetryPolicy(backoff=0))
        variable.reset(token)
        await service.wait()
        assert seen[0] == ("call", None, scheduler)
        service.start()
        await service.wait()
        assert seen[2] == ("call", None, scheduler)


# ---- shutdown ----


async def test_a_consumer_that_waits_costs_a_deploy_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = VirtualClock(auto=False)
    consumer = Consumer()
    async with TaskScheduler(grace_period=30, clock=clock) as scheduler:
        service = scheduler.service(consumer.run)
        await consumer.started.wait()
    assert scheduler.report is not None
    assert (scheduler.report.clean, scheduler.report.duration) == (True, 0)
    assert consumer.cleaned_up == 1
    assert service.state is TaskState.CANCELLED
    assert messages(caplog, logging.WARNING) == []
    assert str(scheduler.report) == "Tasks drained in 0.00 s: nothing to wait for"


async def test_services_are_cancelled_before_the_tasks_that_they_feed_have_ended() -> None:
    order: list[str] = []
    gate = anyio.Event()

    async def feed() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            order.append("service cancelled")
            scheduler.schedule(record, "what it had taken")  # it has not ended

    async def record(what: str) -> None:
        order.append(what)

    async def work() -> None:
        await gate.wait()
        order.append("task")

    scheduler = TaskScheduler(grace_period=math.inf)
    await scheduler.start()
    scheduler.service(feed)
    scheduler.schedule(work)
    await turns()
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.aclose)
        await scheduler.stopping.wait()
        await turns()
        gate.set()
    assert order == ["service cancelled", "what it had taken", "task"]


async def test_a_service_with_grace_finishes_its_work_and_can_say_goodbye() -> None:
    said: list[str] = []

    async def say(what: str) -> None:
        said.append(what)

    async def serve() -> None:
        await scheduler.stopping.wait()
        await scheduler.schedule(say, "we are going down")
        scheduler.schedule(say, "goodbye")

    async with TaskScheduler(grace_period=30) as scheduler:
        service = scheduler.service(serve, grace=10)
        await turns()
    assert said == ["we are going down", "goodbye"]
    assert service.state is TaskState.SUCCEEDED
    assert scheduler.report is not None
    assert scheduler.report.succeeded == 2


@pytest.mark.parametrize("grace, takes", [(2, 2), (100, 5)])
async def test_grace_is_bounded_by_itself_and_by_the_grace_period(
    grace: float, takes: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock = VirtualClock(auto=False)
    consumer = Consumer()
    scheduler = TaskScheduler(grace_period=5, clock=clock)
    await scheduler.start()
    scheduler.service(consumer.run, grace=grace)
    await consumer.started.wait()
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.aclose)
        await scheduler.stopping.wait()
        await turns()
        clock.advance(takes - 0.5)
        await turns()
        assert consumer.running
        clock.advance(0.5)
    assert not consumer.running
    assert scheduler.report is not None
    assert scheduler.report.duration == takes
    assert messages(caplog, logging.WARNING) == []


@pytest.mark.parametrize("grace_period", [0, 30])
async def test_a_service_that_ignores_its_cancellation_is_abandoned_with_a_line(
    grace_period: float, caplog: pytest.LogCaptureFixture
) -> None:
    gate = anyio.Event()

    async def ignore() -> None:
        with anyio.CancelScope(shield=True):
            while not gate.is_set():
                try:
                    await gate.wait()
                except anyio.get_cancelled_exc_class():
                    continue

    clock = VirtualClock(auto=False)
    scheduler = TaskScheduler(grace_period=grace_period, shield_timeout=0, clock=clock)
    await scheduler.start()
    service = scheduler.service(ignore)
    await turns()
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.aclose)
        await scheduler.stopping.wait()
        await turns()
        clock.advance(5)
    gate.set()
    await turns()
    [line] = messages(caplog, logging.WARNING)
    assert line == f"Service {service.name!r} (started at {service.where}) ignored its cancellation and was abandoned"
    assert service.state is TaskState.CANCELLED


async def test_a_block_that_is_cancelled_does_not_wait_for_the_grace_of_services() -> None:
    consumer = Consumer()
    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with TaskScheduler(grace_period=math.inf) as scheduler:
            scheduler.service(consumer.run, grace=math.inf)
            await consumer.started.wait()
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scheduler.closed
    assert not consumer.running


# ---- apart ----


async def test_services_are_not_counted_as_tasks() -> None:
    consumer = Consumer()
    log = EventLog()
    with observe(log):
        async with TaskScheduler() as scheduler:
            scheduler.service(consumer.run)
            await consumer.started.wait()
            numbers = scheduler.statistics()
            assert (numbers.scheduled, numbers.running, numbers.oldest_age, dict(numbers.by_phase)) == (0, 0, 0, {})
            assert not scheduler.tasks
            with anyio.fail_after(5):
                await scheduler.idle()
            await scheduler.wait_for_capacity()
    assert log.events == []


async def test_observers_are_called_when_a_service_starts_and_ends() -> None:
    events: list[object] = []

    class Watcher(EventLog):
        def service_starting(self, service: Service) -> None:
            events.append(("starting", service.name))

        def service_started(self, service: Service) -> None:
            events.append(("started", service.name))

        def service_ended(self, service: Service) -> None:
            events.append((service.state, service.name))

    with observe(Watcher()):
        async with TaskScheduler() as scheduler:
            await scheduler.service(noop).wait()
            scheduler.resume()  # once more: nothing is started twice
        early = TaskScheduler()
        service = early.service(noop, name="early")
        assert len(events) == 3, "it is not certain yet that the scheduler starts"
        async with early:
            await service.wait()
    assert events == [
        ("starting", "noop"),
        ("started", "noop"),
        (TaskState.SUCCEEDED, "noop"),
        ("starting", "early"),
        ("started", "early"),
        (TaskState.SUCCEEDED, "early"),
    ]


async def test_a_recorder_does_not_wait_for_services_and_sees_what_they_schedule() -> None:
    wake = anyio.Event()

    async def feed() -> None:
        await wake.wait()
        scheduler.schedule(noop)
        await anyio.sleep_forever()

    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.service(feed, name="feed")
            await turns()
            await recorder.adrain()
            [service] = recorder.services
            assert (service.name, service.state) == ("feed", TaskState.RUNNING)
            service.cancel()
            await service.wait()
            service.start()
            wake.set()
            await turns()
            await recorder.adrain()
            recorder.assert_ran(noop, times=1)


async def test_a_service_that_always_fails_does_not_move_virtual_time() -> None:
    async def fail() -> None:
        raise ValueError("failed on purpose")

    clock = VirtualClock()
    async with TaskScheduler(clock=clock) as scheduler:
        service = scheduler.service(fail)
        await turns(200)
        assert (service.attempts, clock.now()) == (1, 0)
        await scheduler.task(delay=10).schedule(noop)
        assert clock.now() == 10


async def test_nothing_of_a_service_is_kept() -> None:
    class Argument:
        pass

    async def take(argument: Argument) -> None:
        await anyio.sleep_forever()

    argument = Argument()
    weak = ref(argument)
    scheduler = TaskScheduler()
    scheduler.service(take, argument)
    del argument
    async with scheduler:
        await turns()
    gc.collect()
    assert weak() is None


# ---- bad input ----


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((len, "abc"), {}, "len is a plain function, which shutdown could not cancel"),
        ((anyio.sleep,), {}, "missing a required argument: 'delay'"),
        ((5,), {}, "'int', which is not callable"),
    ],
)
def test_a_function_that_cannot_be_a_service_is_refused(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidTaskError, match=message):
        TaskScheduler().service(*arguments, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"restart": 5}, "restart=5: restart must be True, False or a RetryPolicy"),
        ({"grace": -1}, "grace=-1: grace must be a number of seconds, 0 or more"),
        ({"name": ""}, "name='': name must be a text that is not empty"),
    ],
)
def test_a_bad_option_of_a_service_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        TaskScheduler().service(noop, **options)


# ---- delays at a deploy ----


async def test_a_task_whose_delay_ends_after_the_grace_period_is_discarded_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = VirtualClock(auto=False)
    async with TaskScheduler(grace_period=5, shield_timeout=5, clock=clock) as scheduler:
        reason = "its delay would have ended after the time that shutdown leaves it"
        late = scheduler.task(delay=60).schedule(noop)
        shielded = scheduler.task(delay=60, shield=True).schedule(noop)
    assert scheduler.report is not None
    assert scheduler.report.duration == 0
    assert [task.state for task in (late, shielded)] == [TaskState.DISCARDED] * 2
    assert late.reason == shielded.reason == reason
    assert len([line for line in messages(caplog, logging.WARNING) if line.endswith(reason)]) == 2


async def test_a_delay_that_ends_in_time_is_waited_for() -> None:
    clock = VirtualClock()
    async with TaskScheduler(grace_period=5, shield_timeout=50, clock=clock) as scheduler:
        soon = scheduler.task(delay=4).schedule(noop)
        shielded = scheduler.task(delay=40, shield=True).schedule(noop)
    assert [task.state for task in (soon, shielded)] == [TaskState.SUCCEEDED] * 2


async def test_a_task_that_schedules_itself_again_with_a_delay_does_not_hold_a_deploy() -> None:
    clock = VirtualClock(auto=False)

    async def again() -> None:
        scheduler.task(delay=60).schedule(again)

    async with TaskScheduler(grace_period=30, clock=clock) as scheduler:
        scheduler.schedule(again)
    assert scheduler.report is not None
    assert scheduler.report.duration == 0
    assert len(scheduler.report.discarded) == 1


async def test_nothing_is_kept_of_delays_that_are_over() -> None:
    clock = VirtualClock()
    async with TaskScheduler(clock=clock) as scheduler:
        await scheduler.task(delay=1).schedule(noop)
        scheduler.task(delay=1).schedule(noop).cancel()
        cancelled = scheduler.task(delay=1).schedule(noop)
        await turns()
        cancelled.cancel()
        await turns()
        assert scheduler._runner.delayed == {}

"""Rare moments: between two steps of a task, with parts that are broken, and when the event loop is cancelled."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from core_support import fail, in_thread, messages, noop
from tasks_core import Task, TaskPhase, TaskScheduler, TaskState
from tasks_core.testing import MonotonicClock, override_clock

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


async def turns(number: int = 20) -> None:
    for _ in range(number):
        await anyio.lowlevel.checkpoint()


async def forever() -> None:
    await anyio.sleep_forever()


class Factory:
    """A task factory of asyncio that raises while it is broken."""

    def __init__(self) -> None:
        self.broken = False
        asyncio.get_running_loop().set_task_factory(self)

    def __call__(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
        if self.broken:
            raise OSError("no more tasks")
        return asyncio.Task(coro, loop=loop, **options)


def cancel_native_tasks(name: str) -> None:
    """Cancel through the event loop, as its end does."""
    for native in asyncio.all_tasks():
        if native.get_name() == name:
            native.cancel()


# ---- a task factory that raises ----


@on_asyncio
async def test_a_task_ends_when_its_on_end_cannot_be_started(caplog: pytest.LogCaptureFixture) -> None:
    factory = Factory()
    called: list[object] = []
    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_end=called.append).schedule(forever)
        await turns()
        factory.broken = True
        task.cancel()
        await turns()
        factory.broken = False
        assert task.state is TaskState.CANCELLED
        assert scheduler.tasks == ()
    assert called == []
    (line,) = messages(caplog, logging.ERROR)
    assert line.startswith(f"on_end of Task 'forever' #{task.id} ")
    assert line.endswith(" could not be started")


@on_asyncio
@pytest.mark.parametrize("caller", ["the event loop", "another thread"])
async def test_a_service_that_cannot_be_started_has_failed(caller: str, caplog: pytest.LogCaptureFixture) -> None:
    factory = Factory()
    async with TaskScheduler() as scheduler:
        factory.broken = True
        if caller == "the event loop":
            service = scheduler.service(forever)
        else:
            service = in_thread(lambda: scheduler.service(forever))
            await turns()
        factory.broken = False
        assert service.state is TaskState.FAILED
        assert isinstance(service.exception, OSError)
        assert scheduler.services == ()
        service.start()
        await turns()
        assert service.attempts == 1
    (line,) = messages(caplog, logging.ERROR)
    assert line.startswith("Service 'forever' (started at ")
    assert line.endswith(" could not be started")


# ---- before the start ----


async def test_a_phase_that_opens_before_the_scheduler_starts_opens_when_it_starts() -> None:
    scheduler = TaskScheduler()
    phase = TaskPhase(scheduler, "after_commit")
    phase.open()
    async with scheduler:
        task = phase.schedule(noop)
        await task


# ---- clocks ----


class LateClock(MonotonicClock):
    """Raises from when it is broken."""

    broken = False

    def now(self) -> float:
        if self.broken:
            raise OSError("no time")
        return super().now()


async def test_a_timeout_is_kept_with_a_clock_that_never_worked(caplog: pytest.LogCaptureFixture) -> None:
    clock = LateClock()
    async with TaskScheduler() as scheduler:
        clock.broken = True
        with override_clock(clock):
            await scheduler.task(timeout=30).schedule(noop)
    assert messages(caplog, logging.ERROR)[0].startswith("The clock LateClock raised OSError")


async def test_a_delay_by_a_clock_that_breaks_does_not_keep_shutdown_from_its_end() -> None:
    clock = LateClock()
    async with TaskScheduler(clock=clock, grace_period=0) as scheduler:
        task = scheduler.task(delay=100).schedule(noop)
        await turns()
        clock.broken = True
    assert task.state is TaskState.DISCARDED


class PatientClock(MonotonicClock):
    """Swallows cancellations, as a clock of an application may."""

    async def sleep_until(self, deadline: float) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass


async def test_a_service_whose_clock_swallows_its_cancellation_is_not_started_again() -> None:
    async with TaskScheduler(clock=PatientClock()) as scheduler:
        service = scheduler.service(fail)
        await turns()
        assert service.exception is not None
        service.cancel()
        await service.wait()
        assert service.attempts == 1
    assert service.state is TaskState.CANCELLED


async def test_a_service_whose_clock_raises_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    clock = LateClock()
    async with TaskScheduler(clock=clock) as scheduler:
        clock.broken = True
        service = scheduler.service(forever)
        await service.wait()
        assert service.state is TaskState.FAILED
        assert isinstance(service.exception, OSError)
        clock.broken = False
    assert any(line.endswith("failed and is not started again") for line in messages(caplog, logging.ERROR))


# ---- services, between two steps ----


async def test_a_service_of_a_thread_that_is_cancelled_before_it_starts_does_not_run() -> None:
    ran: list[bool] = []

    async def run() -> None:
        ran.append(True)

    async with TaskScheduler() as scheduler:
        service = in_thread(lambda: scheduler.service(run))
        assert service.cancel()
        await turns()
    assert service.state is TaskState.CANCELLED
    assert ran == []


async def test_a_cancellation_by_a_thread_may_come_after_the_end() -> None:
    async with TaskScheduler() as scheduler:
        service = scheduler.service(forever)
        assert in_thread(service.cancel)
        assert service.cancel()
        assert service.state is TaskState.CANCELLED
        await turns()
        assert not service.cancel()
    assert service.attempts == 0


async def test_two_wait_for_the_end_of_one_service() -> None:
    async with TaskScheduler() as scheduler, anyio.create_task_group() as group:
        service = scheduler.service(forever)
        group.start_soon(service.wait)
        group.start_soon(service.wait)
        await turns()
        assert repr(service) == f"<Service 'forever' #{service.id} running>"
        service.cancel()


async def test_services_of_a_scheduler_that_is_closed_before_it_is_resumed_do_not_run() -> None:
    scheduler = TaskScheduler()
    await scheduler.start(paused=True)
    service = scheduler.service(forever)
    await scheduler.aclose()
    assert service.state is TaskState.CANCELLED
    assert service.attempts == 0


@on_asyncio
async def test_a_service_that_is_cancelled_through_the_event_loop_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with TaskScheduler() as scheduler:
        service = scheduler.service(forever)
        await turns()
        cancel_native_tasks("forever")
        await service.wait()
        assert service.state is TaskState.CANCELLED
        assert service.reason == "it was cancelled from outside of the scheduler"
    assert any(line.endswith(f"was cancelled: {service.reason}") for line in messages(caplog, logging.WARNING))


# ---- a block that is cancelled, and shutdown with it ----


@on_asyncio
async def test_a_service_that_was_cancelled_before_its_first_step_ends_with_the_event_loop() -> None:
    """Shutdown is cancelled as well, before it asks the service, which has asked for time, to end."""
    scheduler = TaskScheduler()
    services = []

    async def main() -> None:
        async with scheduler:
            services.append(scheduler.service(forever, grace=30))
            cancel_native_tasks("forever")
            await turns()
            asyncio.get_running_loop().call_later(0, cancel_native_tasks, "tasks shutdown")

    with anyio.fail_after(20):
        await main()
    assert services[0].state is TaskState.CANCELLED
    assert services[0].attempts == 0


@on_asyncio
async def test_an_on_end_that_was_cancelled_before_its_first_step_does_not_hold_shutdown() -> None:
    called: list[object] = []
    with anyio.fail_after(30):
        async with TaskScheduler(grace_period=60) as scheduler:
            task = scheduler.task(on_end=called.append, delay=60).schedule(noop)
            await turns()
            task.cancel()
            cancel_native_tasks("on_end")
            await turns()
    assert task.state is TaskState.CANCELLED
    assert called == []


async def test_a_block_that_is_cancelled_twice_is_closed_once() -> None:
    scheduler = TaskScheduler(grace_period=60)
    async with anyio.create_task_group() as group:
        await scheduler.start()
        task = scheduler.schedule(forever)
        await task.started.wait()
        group.start_soon(scheduler.aclose)
        group.start_soon(scheduler.aclose)
        await turns()
        group.cancel_scope.cancel()
    assert task.state is TaskState.CANCELLED
    assert scheduler.closed


# ---- timeouts ----


@on_asyncio
async def test_a_group_of_cancellations_after_a_timeout_is_the_timeout() -> None:
    async def work() -> None:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError as error:
            raise BaseExceptionGroup("both", [error, BaseExceptionGroup("one", [asyncio.CancelledError()])]) from None

    async with TaskScheduler() as scheduler:
        task = scheduler.task(timeout=0.01).schedule(work)
        await task.wait()
    assert task.state is TaskState.FAILED
    assert isinstance(task.exception, TimeoutError)


async def test_an_error_handler_has_no_bound_where_the_task_has_none() -> None:
    handled: list[BaseException] = []

    async def handle(task: Task[Any], error: Exception) -> bool:
        handled.append(error)
        return True

    async with TaskScheduler() as scheduler:
        task = scheduler.task(timeout=inf, on_error=handle).schedule(fail)
        await task.wait()
    assert [type(error) for error in handled] == [ValueError]


# ---- threads that coroutines leave behind ----


class Gate:
    def __init__(self) -> None:
        self.inside, self.opened = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.inside.set()
        self.opened.wait(20)


@on_asyncio
@pytest.mark.parametrize("kind", ["a method", "a partial", "a builtin", "one that has ended"])
async def test_a_function_that_a_coroutine_leaves_in_a_thread_is_abandoned_unless_it_has_ended(kind: str) -> None:
    gate, lock = Gate(), threading.Lock()
    executor = ThreadPoolExecutor(2)
    asyncio.get_running_loop().set_default_executor(executor)
    func: Callable[[], object] = gate.wait
    if kind == "a partial":
        func = partial(partial(Gate.wait), gate)
    elif kind == "a builtin":
        gate.inside.set()
        lock.acquire()
        func = lock.acquire

    async def work() -> None:
        await asyncio.to_thread(func)

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(work)
        while not gate.inside.is_set():
            await anyio.sleep(0.001)
        await turns()
        task.cancel()
        await task.wait()
        if kind == "one that has ended":
            gate.opened.set()
            executor.shutdown()
    gate.opened.set()
    if kind == "a builtin":
        lock.release()
    assert scheduler.report is not None
    assert len(scheduler.report.abandoned) == (kind != "one that has ended")


class Evasive:
    """An awaitable whose iterator raises when it is asked for an attribute that it has not."""

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        raise (AttributeError if name in ("close", "throw") else RuntimeError)(name)


@on_asyncio
async def test_a_task_that_awaits_an_evasive_iterator_is_cancelled_like_any_other() -> None:
    async def work() -> None:
        await Evasive()

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(work)
        await turns()
        assert task.cancel()
        await task.wait()
    assert task.state is TaskState.CANCELLED


# ---- what may not be there ----


@on_asyncio
async def test_without_trio_a_thread_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trio", raising=False)
    async with TaskScheduler() as scheduler:
        task = in_thread(lambda: scheduler.schedule(noop))
        await task


async def test_plain_functions_run_where_anyio_has_no_variables_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TaskScheduler() as scheduler:
        monkeypatch.delattr(anyio.from_thread, "threadlocals")
        task = scheduler.schedule(threading.get_ident)
        await task.wait()
        monkeypatch.undo()
    assert task.state is TaskState.SUCCEEDED

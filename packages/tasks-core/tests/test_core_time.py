"""Timeouts, delays, and the clocks that they come from."""

from __future__ import annotations

import logging
import threading
import time

import anyio
import anyio.lowlevel
import pytest
from core_support import messages, noop, states
from tasks_core import Clock, TaskPhase, TaskScheduler, TaskState, retry
from tasks_core.testing import MonotonicClock, override_clock
from tasks_testing import VirtualClock

pytestmark = pytest.mark.anyio


async def test_a_task_that_takes_too_long_fails(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock(auto=False)
    cleaned: list[str] = []

    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append("up")

    async with TaskScheduler(clock=clock) as scheduler:
        task = scheduler.task(timeout=30).schedule(hang)
        await task.started.wait()
        clock.advance(29.9)
        await anyio.wait_all_tasks_blocked()
        assert task.state is TaskState.RUNNING
        clock.advance(0.2)
        with pytest.raises(TimeoutError, match=r"^attempt 1 of '.*hang' took longer than timeout=30 seconds$"):
            await task
    assert states(task) == [TaskState.FAILED]
    assert cleaned == ["up"]
    assert len(messages(caplog, logging.ERROR)) == 1


async def test_a_timeout_can_be_retried() -> None:
    clock = VirtualClock(auto=False)
    ran: list[int] = []

    async def hang_once() -> int:
        ran.append(1)
        if len(ran) == 1:
            clock.advance(10)
            await anyio.sleep_forever()
        return len(ran)

    async with TaskScheduler(clock=clock) as scheduler:
        task = scheduler.task(timeout=5, on_error=retry(on=TimeoutError, backoff=0)).schedule(hang_once)
        assert await task == 2


async def test_a_task_that_is_in_time_leaves_no_timer() -> None:
    clock = VirtualClock(auto=False)
    async with TaskScheduler(clock=clock) as scheduler:
        await scheduler.task(timeout=5).schedule(noop)
        task = scheduler.task(timeout=100).schedule(noop)
        clock.advance(50)
        await task
    assert task.state is TaskState.SUCCEEDED


async def test_a_task_may_catch_its_timeout() -> None:
    clock = VirtualClock(auto=False)

    async def save_what_there_is() -> str:
        clock.advance(10)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "half"
        raise AssertionError

    async def fail_in_its_own_words() -> None:
        clock.advance(10)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            raise ValueError("too slow") from None

    async with TaskScheduler(clock=clock) as scheduler:
        assert await scheduler.task(timeout=5).schedule(save_what_there_is) == "half"
        with pytest.raises(ValueError, match="too slow"):
            await scheduler.task(timeout=5).schedule(fail_in_its_own_words)


async def test_a_function_in_a_thread_times_out_and_is_left_to_itself() -> None:
    clock = VirtualClock(auto=False)
    leave = threading.Event()
    async with TaskScheduler(clock=clock, max_threads=1) as scheduler:
        task = scheduler.task(timeout=5).schedule(leave.wait)
        other = scheduler.schedule(threading.get_ident)
        await task.started.wait()
        await anyio.wait_all_tasks_blocked()
        clock.advance(6)
        with pytest.raises(TimeoutError):
            await task
        await anyio.wait_all_tasks_blocked()
        assert other.state is TaskState.PENDING, "the thread is still taken"
        leave.set()
        await other
    assert scheduler.report is not None
    assert scheduler.report.clean


async def test_cancelled_and_timed_out_at_once_it_is_cancelled() -> None:
    clock = VirtualClock(auto=False)
    async with TaskScheduler(clock=clock) as scheduler:
        task = scheduler.task(timeout=5).schedule(anyio.sleep_forever)
        await task.started.wait()
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        clock.advance(6)
        await task.wait()
    assert (task.state, task.attempts) == (TaskState.CANCELLED, 1)


async def test_an_infinite_timeout_is_none() -> None:
    async with TaskScheduler() as scheduler:
        inherited = scheduler.task(timeout=1e-9)
        await inherited.task(timeout=float("inf")).schedule(anyio.lowlevel.checkpoint)


async def test_a_delay_counts_from_the_opening_of_the_phase() -> None:
    clock = VirtualClock(auto=False)
    async with TaskScheduler(clock=clock) as scheduler:
        batch = TaskPhase(scheduler, "later")
        task = batch.task(delay=10).schedule(noop)
        clock.advance(100)
        batch.open()
        await anyio.wait_all_tasks_blocked()
        assert task.state is TaskState.PENDING
        clock.advance(9)
        await anyio.wait_all_tasks_blocked()
        assert task.state is TaskState.PENDING
        clock.advance(2)
        await task


async def test_delays_take_no_slot() -> None:
    clock = VirtualClock(auto=False)
    async with TaskScheduler(clock=clock, max_concurrency=1, grace_period=0) as scheduler:
        scheduler.task(delay=10).schedule(noop)
        await scheduler.schedule(noop)


async def test_an_hour_of_retries_takes_no_time() -> None:
    clock = VirtualClock()
    attempts: list[float] = []

    async def fail_for_an_hour() -> None:
        attempts.append(clock.now())
        if clock.now() < 3600:
            raise OSError

    began = time.monotonic()
    async with TaskScheduler(clock=clock) as scheduler:
        await scheduler.task(on_error=retry(attempts=1000, backoff=60)).schedule(fail_for_an_hour)
    assert attempts == [60 * n for n in range(61)]
    assert time.monotonic() - began < 30


# ---- clocks ----


async def test_the_monotonic_clock_sleeps_until_the_deadline() -> None:
    clock = MonotonicClock()
    assert isinstance(clock, Clock)
    deadline = clock.now() + 0.01
    await clock.sleep_until(deadline)
    assert clock.now() >= deadline


async def test_sleeping_until_the_past_is_a_checkpoint() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await MonotonicClock().sleep_until(0)
    assert scope.cancelled_caught


async def test_an_override_is_in_force_for_waits_that_begin_under_it() -> None:
    clock, other = VirtualClock(auto=False), VirtualClock(auto=False)
    async with TaskScheduler() as scheduler:
        with override_clock(clock):
            task = scheduler.task(delay=3600).schedule(noop)
            await anyio.wait_all_tasks_blocked()
            with override_clock(other):  # the latest wins
                later = scheduler.task(delay=3600).schedule(noop)
                await anyio.wait_all_tasks_blocked()
        clock.advance(3601)
        await task
        assert later.state is TaskState.PENDING
        other.advance(3601)
        await later
        await scheduler.task(delay=0.001).schedule(noop)  # by the clock of the scheduler


async def test_the_same_clock_overridden_twice_is_in_force_until_both_end() -> None:
    clock = VirtualClock()
    first, second = override_clock(clock), override_clock(clock)
    async with TaskScheduler() as scheduler:
        second.close()
        await scheduler.task(delay=3600).schedule(noop)
    first.close()


async def test_an_override_leaves_the_bounds_of_shutdown_alone() -> None:
    with override_clock(VirtualClock(auto=False)):
        async with TaskScheduler(grace_period=0.01) as scheduler:
            task = scheduler.schedule(anyio.sleep_forever)
    assert task.state is TaskState.CANCELLED


class BrokenClock(MonotonicClock):
    async def sleep_until(self, deadline: float) -> None:
        raise OSError("no time")


async def test_a_clock_that_raises_loses_no_task(caplog: pytest.LogCaptureFixture) -> None:
    async with TaskScheduler() as scheduler:
        with override_clock(BrokenClock()):
            task = scheduler.task(delay=1).schedule(noop)
            again = scheduler.task(on_error=retry(backoff=1)).schedule(_fail)
            await task.wait()
            await again.wait()
        await scheduler.schedule(noop)
    assert (task.state, task.reason) == (TaskState.DISCARDED, "waiting for its delay or its limiter raised OSError")
    assert (again.state, again.attempts) == (TaskState.CANCELLED, 1)
    assert isinstance(task.exception, OSError)
    assert len([line for line in messages(caplog, logging.WARNING) if "limiter raised OSError" in line]) == 2


async def _fail() -> None:
    raise ValueError


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_clock_that_raises_ends_no_task(backend: str) -> None:
    async def main() -> None:
        async with TaskScheduler() as scheduler:
            with override_clock(BrokenClock()):
                await scheduler.task(timeout=1).schedule(anyio.sleep, 0.01)
            await scheduler.schedule(noop)

    anyio.run(main, backend=backend)


class InterruptedClock(MonotonicClock):
    async def sleep_until(self, deadline: float) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_while_a_clock_is_at_work_is_for_the_process(backend: str) -> None:
    async def main() -> None:
        async with TaskScheduler(grace_period=0) as scheduler:
            with override_clock(InterruptedClock()):
                scheduler.task(timeout=1).schedule(anyio.sleep_forever)
                await anyio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)

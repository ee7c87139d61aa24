"""Virtual time, without the recorder."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from threading import Thread

import anyio
import pytest
from tasks_core import Clock, TaskPhase, TaskScheduler, TaskState, retry
from tasks_testing import VirtualClock

pytestmark = pytest.mark.anyio


class Flaky:
    """Fails some times, and notes when it was called."""

    def __init__(self, now: Callable[[], float], failures: int) -> None:
        self.now = now
        self.failures = failures
        self.calls: list[float] = []

    async def __call__(self) -> str:
        self.calls.append(self.now())
        if len(self.calls) <= self.failures:
            raise ConnectionError("down")
        return "done"


async def test_an_hour_of_retries_takes_milliseconds() -> None:
    clock = VirtualClock()
    flaky = Flaky(clock.now, 6)
    began = time.monotonic()
    async with TaskScheduler(clock=clock) as scheduler:
        task = scheduler.task(on_error=retry(attempts=7, backoff=600, max_delay=600)).schedule(flaky)
        assert await task == "done"
    assert flaky.calls == [0, 600, 1200, 1800, 2400, 3000, 3600]
    assert time.monotonic() - began < 5


async def test_whoever_waits_for_a_task_sees_the_time_at_which_it_ended() -> None:
    clock = VirtualClock(start=100)
    async with TaskScheduler(clock=clock) as scheduler:
        later = scheduler.task(delay=50).schedule(clock.now)
        sooner = scheduler.task(delay=20).schedule(clock.now)
        assert await sooner == 120
        assert clock.now() == 120
        assert await later == 150


async def test_time_stands_still_while_a_task_runs() -> None:
    clock = VirtualClock()
    release = anyio.Event()
    async with TaskScheduler(clock=clock) as scheduler:
        running = scheduler.schedule(release.wait)
        later = scheduler.task(delay=5).schedule(clock.now)
        await running.started.wait()
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert (clock.now(), later.state) == (0, TaskState.PENDING)
        release.set()
        assert await later == 5


async def test_a_timeout_never_comes_early_by_itself() -> None:
    clock = VirtualClock()
    async with TaskScheduler(clock=clock) as scheduler:
        task = scheduler.task(timeout=5).schedule(anyio.sleep_forever)
        await task.started.wait()
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert task.state is TaskState.RUNNING
        clock.advance(5)
        with pytest.raises(TimeoutError, match=r"longer than timeout=5 seconds"):
            await task


async def test_aadvance_stops_at_each_deadline_on_the_way() -> None:
    clock = VirtualClock(auto=False)
    flaky = Flaky(clock.now, 3)
    async with TaskScheduler(clock=clock) as scheduler:
        task = scheduler.task(delay=5, on_error=retry(attempts=4, backoff=1)).schedule(flaky)
        await clock.aadvance(4.5)
        assert (flaky.calls, clock.now()) == ([], 4.5)
        await clock.aadvance(2)
        assert (flaky.calls, clock.now()) == ([5, 6], 6.5)
        await clock.aadvance(60)
        assert (flaky.calls, clock.now()) == ([5, 6, 8, 12], 66.5)
        assert task.result() == "done"


async def test_aadvance_waits_for_threads() -> None:
    clock = VirtualClock(auto=False)
    calls: list[float] = []

    def fail_slowly() -> None:
        time.sleep(0.05)
        calls.append(clock.now())
        raise ConnectionError("down")

    async with TaskScheduler(clock=clock) as scheduler:
        scheduler.task(on_error=retry(attempts=3, backoff=1)).schedule(fail_slowly)
        await clock.aadvance(60)
    assert calls == [0, 1, 3]


async def test_aadvance_brings_about_the_timeout_of_a_task_that_hangs() -> None:
    clock = VirtualClock(auto=False)
    async with TaskScheduler(clock=clock) as scheduler:
        task = scheduler.task(delay=1, timeout=5).schedule(anyio.sleep_forever)
        await clock.aadvance(5.5, while_running=True)
        assert not task.state.finished
        await clock.aadvance(0.5, while_running=True)
        assert isinstance(task.exception, TimeoutError)


async def test_aadvance_names_the_tasks_that_do_not_come_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks_testing._time.virtual_clock._TIMEOUT", 0.1)
    clock = VirtualClock(auto=False)
    async with TaskScheduler(clock=clock, grace_period=0) as scheduler:
        task = scheduler.schedule(anyio.sleep_forever)
        with pytest.raises(
            TimeoutError, match=r"still run: 'sleep_forever' \(scheduled at .*test_testing_clock.py:\d+\)"
        ):
            await clock.aadvance(1)
        task.cancel()


async def test_advance_is_one_leap() -> None:
    clock = VirtualClock(auto=False)
    flaky = Flaky(clock.now, 1)
    async with TaskScheduler(clock=clock) as scheduler:
        task = scheduler.task(delay=5, on_error=retry(attempts=2, backoff=1)).schedule(flaky)
        await anyio.wait_all_tasks_blocked()
        thread = Thread(target=clock.advance, args=(60,))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        await anyio.wait_all_tasks_blocked()
        assert flaky.calls == [60]
        clock.advance(1)
        await task
        assert flaky.calls == [60, 61]


async def test_a_task_whose_phase_is_not_open_does_not_hold_up_time() -> None:
    clock = VirtualClock()
    async with TaskScheduler(clock=clock) as scheduler:
        batch = TaskPhase(scheduler, "after_commit")
        waiting = batch.task(delay=1).schedule(clock.now)
        dropped = TaskPhase(scheduler, "after_rollback")
        unwanted = dropped.schedule(clock.now)
        assert await scheduler.task(delay=5).schedule(clock.now) == 5
        batch.open()
        dropped.discard("there was no rollback")
        assert await waiting == 6
        assert unwanted.state is TaskState.DISCARDED


async def test_a_cancelled_sleeper_does_not_hold_up_time() -> None:
    clock = VirtualClock()
    async with TaskScheduler(clock=clock) as scheduler:
        first = scheduler.task(delay=5).schedule(clock.now)
        second = scheduler.task(delay=7).schedule(clock.now)
        first.cancel()
        assert await second == 7


async def test_shutdown_takes_no_time_either() -> None:
    clock = VirtualClock()
    scheduler = TaskScheduler(clock=clock, grace_period=30)
    async with scheduler:
        inside = scheduler.task(delay=29).schedule(clock.now)
        outside = scheduler.task(delay=31).schedule(clock.now)
    assert inside.result() == 29
    assert outside.state is TaskState.DISCARDED
    assert clock.now() == 29, "a delay that ends too late is not waited for"


async def test_one_clock_serves_schedulers_on_several_event_loops() -> None:
    clock = VirtualClock()

    async def serve() -> list[float]:
        async with TaskScheduler(clock=clock) as scheduler:
            return [await scheduler.task(delay=delay).schedule(clock.now) for delay in (1, 2, 3)]

    results: list[list[float]] = []

    def run(backend: str) -> None:
        results.append(anyio.run(serve, backend=backend))

    threads = [Thread(target=run, args=(backend,)) for backend in ("asyncio", "trio")]
    for thread in threads:
        thread.start()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert [len(result) for result in results] == [3, 3]
    assert all(result == sorted(result) for result in results)


async def test_a_clock_is_a_clock() -> None:
    clock: Clock = VirtualClock(start=3)
    assert isinstance(clock, Clock)
    assert repr(clock) == "<VirtualClock 3>"
    await clock.sleep_until(2)


def watchers() -> int:
    gc.collect()
    return sum(type(obj).__name__ == "_Watcher" for obj in gc.get_objects())


async def test_a_forgotten_clock_stops_watching() -> None:
    async with TaskScheduler() as scheduler:
        gc.collect()
        await scheduler.schedule(anyio.lowlevel.checkpoint)  # the forgotten clocks of other tests find out
        before = watchers()
        clock = VirtualClock()
        assert watchers() == before + 1
        del clock
        gc.collect()
        await scheduler.schedule(anyio.lowlevel.checkpoint)
        assert watchers() == before


async def test_a_clock_is_forgotten_whatever_its_last_tasks_know() -> None:
    async def use(clock: VirtualClock) -> None: ...

    before = watchers()
    async with TaskScheduler(clock=VirtualClock(), grace_period=0) as scheduler:
        for target in (TaskPhase(scheduler, "never"), scheduler.task(delay=60)):
            target.schedule(use, VirtualClock())
    del scheduler, target
    async with TaskScheduler() as other:
        for _ in range(20):  # turns: trio runs what is ready in any order, the last step of the other scheduler too
            gc.collect()
            await other.schedule(anyio.lowlevel.checkpoint)
            if watchers() <= before:
                break
    assert watchers() <= before


async def test_a_clock_keeps_no_task_of_a_phase_that_is_still_to_open() -> None:
    clock = VirtualClock()
    async with TaskScheduler(clock=clock) as scheduler:
        batch = TaskPhase(scheduler, "later")
        first, second = batch.schedule(anyio.lowlevel.checkpoint), batch.schedule(anyio.lowlevel.checkpoint)
        gone = weakref.ref(first)
        first.cancel()
        del first
        gc.collect()
        assert gone() is None
        batch.open()
        await second

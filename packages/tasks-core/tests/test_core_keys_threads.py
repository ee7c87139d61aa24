"""Keys while two threads schedule: one thread is held at each line in turn, and the other one goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from itertools import count
from typing import Any, Literal, TypeAlias

import anyio
import anyio.lowlevel
import pytest
from core_support import in_thread, messages, noop
from core_tracing import HeldAtLine
from tasks_core import Task, TaskObserver, TaskPhase, TaskScheduler, TaskState, observe

pytestmark = pytest.mark.anyio


async def turns() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


class Lock:
    """The lock of the keys, which says when a thread waits for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.contended = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.contended.set()
            self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def free(self) -> bool:
        """Return whether another thread can have the lock now."""

        def take() -> bool:
            taken = self._lock.acquire(blocking=False)
            if taken:
                self._lock.release()
            return taken

        return bool(in_thread(take))


class Other:
    """A call in a thread: it has returned, or waits for the lock of the keys, when `start()` returns."""

    def __init__(self, scheduler: TaskScheduler, call: Callable[[], Task[Any]]) -> None:
        self._lock = Lock()
        scheduler._runner.keys._lock = self._lock  # type: ignore[assignment]
        self._call = call
        self._tasks: list[Task[Any]] = []
        self._thread: threading.Thread | None = None

    def _run(self) -> None:
        self._tasks.append(self._call())
        self._lock.contended.set()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._lock.contended.wait()

    def join(self) -> Task[Any]:
        """Return what the call has returned, which is made now if the other thread did not come as far as the line."""
        if self._thread is None:
            self.start()
        assert self._thread is not None
        self._thread.join()
        return self._tasks[0]


Hold: TypeAlias = Callable[[Callable[[], None]], HeldAtLine]


async def at_every_line(scenario: Callable[[Hold], Awaitable[None]]) -> int:
    """Run *scenario* with a thread held at its first line, at its second, and so on; return how many there are."""
    for number in count():
        held: list[HeldAtLine] = []

        def hold(then: Callable[[], None], held: list[HeldAtLine] = held, number: int = number) -> HeldAtLine:
            held.append(HeldAtLine(number, then))
            return held[0]

        await scenario(hold)
        if held[0].lines <= number:
            return number
    raise AssertionError("unreachable")


class Announced(TaskObserver):
    """An observer, so that tasks are announced to it before the event loop sees them."""

    def task_scheduled(self, task: Task[Any]) -> None:
        assert not task.state.finished


@pytest.mark.parametrize("where", ["in a thread", "on the loop"])
@pytest.mark.parametrize("observed", [False, True])
async def test_a_call_of_another_thread_at_the_same_moment_joins(
    where: str, observed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario(hold: Hold) -> None:
        caplog.clear()
        ran: list[str] = []

        async def work(caller: str) -> None:
            ran.append(caller)

        async with TaskScheduler() as scheduler:
            target = scheduler.task(key="k")
            other = Other(scheduler, lambda: target.schedule(work, "other"))

            def schedule() -> Task[Any]:
                with hold(other.start):
                    return target.schedule(work, "held")

            task = schedule() if where == "on the loop" else in_thread(schedule)
            assert other.join() is task
            await task
            await scheduler.idle()
            assert len(scheduler._runner.keys) == 0
        assert len(ran) == 1
        assert scheduler.statistics().scheduled == 1
        assert len([line for line in messages(caplog) if line.startswith("No task was made")]) == 1

    with observe(Announced()) if observed else nullcontext():
        assert await at_every_line(scenario) > 30


async def test_a_call_on_the_loop_at_the_same_moment_joins() -> None:
    async def scenario(hold: Hold) -> None:
        async with TaskScheduler() as scheduler:
            target = scheduler.task(key="k")
            # The other way round: the thread is held, and the call on the event loop is made meanwhile.
            held, tasks = threading.Event(), []
            lock = Lock()
            scheduler._runner.keys._lock = lock  # type: ignore[assignment]

            def wait() -> None:
                held.set()
                lock.contended.wait()

            def schedule() -> None:
                with hold(wait):
                    tasks.append(target.schedule(noop))
                held.set()

            thread = threading.Thread(target=schedule)
            thread.start()
            held.wait()
            task = target.schedule(noop)
            lock.contended.set()
            thread.join()
            assert tasks == [task]
            await scheduler.idle()
        assert scheduler.statistics().scheduled == 1

    assert await at_every_line(scenario) > 30


async def test_a_call_joins_while_the_event_loop_takes_a_task() -> None:
    async def scenario(hold: Hold) -> None:
        async with TaskScheduler() as scheduler:
            target = scheduler.task(key="k")
            first = in_thread(lambda: target.task(delay=3600).schedule(noop))
            other = Other(scheduler, lambda: target.schedule(noop))
            with hold(other.start):
                await turns()
            assert other.join() is first
            first.cancel()
        assert scheduler.statistics().scheduled == 1

    assert await at_every_line(scenario) > 15


@pytest.mark.parametrize("on_conflict", ["queue", "replace"])
async def test_a_call_joins_the_last_task_while_the_one_before_ends(on_conflict: Literal["queue", "replace"]) -> None:
    async def scenario(hold: Hold) -> None:
        gate = anyio.Event()
        async with TaskScheduler() as scheduler:
            target = scheduler.task(key="k")
            first = target.schedule(gate.wait)
            await first.started.wait()
            second = target.task(on_conflict=on_conflict, delay=3600).schedule(noop)
            other = Other(scheduler, lambda: target.schedule(noop))
            gate.set()
            with hold(other.start):
                await first.wait()
                await turns()
            assert other.join() is second
            second.cancel()
        assert scheduler.statistics().scheduled == 2

    assert await at_every_line(scenario) > 30


async def test_a_call_joins_while_the_event_loop_replaces_a_task() -> None:
    async def scenario(hold: Hold) -> None:
        async with TaskScheduler() as scheduler:
            target = scheduler.task(key="k", delay=3600)
            first = target.schedule(noop)
            other = Other(scheduler, lambda: target.schedule(noop))
            with hold(other.start):
                second = target.task(on_conflict="replace").schedule(noop)
            assert other.join() in (first, second)
            assert first.state is TaskState.DISCARDED
            second.cancel()
        assert scheduler.statistics().scheduled == 2

    assert await at_every_line(scenario) > 30


async def test_nothing_of_users_is_called_while_other_threads_wait() -> None:
    """An observer, or a handler of log records, may wait for a thread that schedules."""
    lock = Lock()

    class Observer(TaskObserver):
        def task_scheduled(self, task: Task[Any]) -> None:
            assert lock.free()

        def task_finished(self, task: Task[Any]) -> None:
            assert lock.free()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert lock.free()
            lines.append(record.getMessage())

    lines: list[str] = []
    logger, handler = logging.getLogger("tasks_core"), Handler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with observe(Observer()):
            async with TaskScheduler() as scheduler:
                scheduler._runner.keys._lock = lock  # type: ignore[assignment]
                modes: list[Literal["join", "replace", "queue"]] = ["join", "replace", "queue", "join", "replace"]
                for mode in modes:
                    scheduler.task(key="k", on_conflict=mode).schedule(noop)
                failed = TaskPhase(scheduler, "phase")
                failed.task(key="k").schedule(noop)
                failed.open()
                await scheduler.idle()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert [line for line in lines if "raised" in line] == []
    assert len(lines) > 5

"""
The garbage collector runs anywhere, and a finalizer may use the scheduler while the same thread is in the middle of it.

A plain lock there would have the thread wait for itself, and every other thread behind it.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from itertools import count

import anyio.lowlevel
import pytest
from core_support import in_thread, noop
from core_tracing import HeldAtLine
from tasks_core import TaskObserver, TaskQueueFullError, TaskScheduler, observe
from tasks_core.testing import MonotonicClock, override_clock
from tasks_testing import TasksRecorder, record_tasks
from tasks_testing._recording import routing

# How many allocations there may be before the collector runs: it comes at another place for each of them.
PLACES = range(1, 80)


class Cyclic:
    """Calls a function when the garbage collector finds it."""

    def __init__(self, finalize: Callable[[], object]) -> None:
        self.me = self
        self.finalize = finalize

    def __del__(self) -> None:
        self.finalize()


def collect_during(use: Callable[[], object], place: int, finalize: Callable[[], object]) -> None:
    """Call *use* with the collector, which finds something to finalize, running behind so many allocations."""
    before = gc.get_threshold()
    gc.disable()
    gc.collect(0)
    Cyclic(finalize)
    gc.set_threshold(place)
    gc.enable()
    try:
        use()
    finally:
        gc.set_threshold(*before)


class Finalizers:
    """Uses a scheduler, and has a finalizer use it at each place on the way."""

    def __init__(self, scheduler: TaskScheduler) -> None:
        self.scheduler = scheduler
        self.ran: list[str] = []
        self.finalized = 0

    def finalize(self) -> None:
        self.finalized += 1
        self.scheduler.schedule(self.note, "from a finalizer")
        self.scheduler.task(key="finalizer", on_conflict="queue").schedule(self.note_plainly, "from a finalizer")
        self.scheduler.service(self.serve).cancel()
        self.scheduler.statistics()
        observe(TaskObserver()).close()
        override_clock(MonotonicClock()).close()

    async def note(self, what: str) -> None:
        self.ran.append(what)

    def note_plainly(self, what: str) -> None:
        self.ran.append(what)

    async def serve(self) -> None: ...

    def uses(self) -> dict[str, Callable[[], object]]:
        """What code does with a scheduler."""
        scheduler = self.scheduler
        return {
            "schedule": lambda: scheduler.schedule(self.note, "use"),
            "plain": lambda: scheduler.schedule(self.note_plainly, "use"),
            "key": lambda: scheduler.task(key="k", on_conflict="queue").schedule(self.note, "use"),
            "service": lambda: scheduler.service(self.serve).cancel(),
            "observe": lambda: observe(TaskObserver()).close(),
            "clock": lambda: override_clock(MonotonicClock()).close(),
            "made": lambda: TaskScheduler(slow_callback_duration=0.5),
        }


@pytest.mark.parametrize("where", ["loop", "thread"])
@pytest.mark.parametrize("use", list(Finalizers(TaskScheduler()).uses()))
def test_a_finalizer_may_use_the_scheduler_wherever_the_collector_runs(use: str, where: str) -> None:
    """Under a bound of `max_pending`, so that the ledger has its lock."""
    ended: list[int] = []

    async def run() -> None:
        async with TaskScheduler(max_pending=100_000, max_threads=4) as scheduler:
            finalizers = Finalizers(scheduler)
            for place in PLACES:
                call = partial(collect_during, finalizers.uses()[use], place, finalizers.finalize)
                if where == "loop":
                    call()
                else:
                    in_thread(call)
                await anyio.lowlevel.checkpoint()
            gc.collect()
            await scheduler.idle()
            assert finalizers.ran.count("from a finalizer") == 2 * finalizers.finalized
            ended.append(finalizers.finalized)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "a thread waits for itself"
    assert ended == [len(PLACES)]


def test_a_finalizer_may_schedule_while_a_task_is_refused() -> None:
    """The error of `max_pending` is made under the lock."""
    refused: list[int] = []

    async def run() -> None:
        async with TaskScheduler(max_pending=1, max_concurrency=1) as scheduler:
            scheduler.task(delay=3600).schedule(anyio.sleep, 0)

            def schedule() -> None:
                with suppress(TaskQueueFullError):
                    scheduler.schedule(anyio.sleep, 0)
                refused.append(1)

            for place in PLACES:
                collect_during(schedule, place, schedule)
            gc.collect()
            scheduler.tasks[0].cancel()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "a thread waits for itself"
    assert len(refused) == 2 * len(PLACES)


def record() -> None:
    with record_tasks():
        pass


def enter() -> None:
    """Schedulers share the threads that watch their event loops."""

    async def run() -> None:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(asyncio.sleep, 0)

    in_thread(lambda: asyncio.run(run()))  # the finalizer of a thread that has an event loop cannot run another one


@pytest.mark.parametrize("use", [record, enter])
def test_a_finalizer_may_begin_what_the_thread_is_beginning(use: Callable[[], None]) -> None:
    ended: list[int] = []

    def run() -> None:
        for place in PLACES:
            collect_during(use, place, finalize)
        gc.collect()

    def finalize() -> None:
        use()
        ended.append(1)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "a thread waits for itself"
    assert len(ended) == len(PLACES)


@pytest.mark.parametrize("when", ["begins", "ends"])
def test_a_recording_that_a_finalizer_begins_while_another_one_begins_or_ends_is_kept(when: str) -> None:
    """At each place of the code that has the list of the recordings."""

    async def run() -> None:
        async with TaskScheduler() as scheduler:
            scheduler.schedule(noop)

    for number in count():
        finalizers = ExitStack()
        begun: list[TasksRecorder] = []

        def finalize(finalizers: ExitStack = finalizers, begun: list[TasksRecorder] = begun) -> None:
            begun.append(finalizers.enter_context(record_tasks()))

        held = HeldAtLine(number, finalize, at="call", of=routing.__file__)
        with finalizers:
            with ExitStack() as stack:
                with held if when == "begins" else nullcontext():
                    stack.enter_context(record_tasks())
                with held if when == "ends" else nullcontext():
                    stack.close()
            if not begun:
                break
            asyncio.run(run())
            begun[0].assert_ran(noop, times=1)
    assert number > 2

"""
Whatever is done to a scheduler, and in whatever order: its promises hold.

A state machine drives a scheduler from another thread than that of its event loop. `TASKS_CORE_SOAK=300` takes as many
examples for each event loop in place of the few of the normal run; see benchmarks/soak.py.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from core_support import Workers, quiet
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tasks_core import (
    SchedulerClosedError,
    Task,
    TaskBatch,
    TaskErrorHandler,
    TaskObserver,
    TaskQueueFullError,
    TaskScheduler,
    TaskState,
    observe,
    retry,
)
from tasks_testing import VirtualClock

GRACE_PERIOD, SHIELD_TIMEOUT = 8.0, 16.0
CANCEL_CALLED = "task.cancel() was called"
STOPPED_BY_SHUTDOWN = "the grace period of the shutdown was over"


class Watcher(TaskObserver):
    """Notes what must not happen; the machine looks at it after each step."""

    def __init__(self, machine: SchedulerMachine) -> None:
        self.machine = machine
        self.finished: Counter[int] = Counter()
        self.wrong: list[str] = []

    def task_started(self, task: Task[Any]) -> None:
        if not self.machine.scheduler.owns(task):
            return
        if task.batch is not None and not task.batch.opened:
            self.wrong.append(f"{task} started before its phase")
        if task.id in self.machine.cancelled_unstarted:
            self.wrong.append(f"{task} started after it was cancelled")
        if self.finished[task.id]:
            self.wrong.append(f"{task} started after its end")

    def task_finished(self, task: Task[Any]) -> None:
        if self.machine.scheduler.owns(task):
            self.finished[task.id] += 1
            if not task.state.finished:
                self.wrong.append(f"{task} has not ended")


async def handle_badly(task: Task[Any], error: Exception) -> None:
    raise RuntimeError("handler failed")


async def handle_for_ever(task: Task[Any], error: Exception) -> None:
    await anyio.sleep_forever()


def handle_plainly(task: Task[Any], error: Exception) -> bool:
    return True


HANDLERS: list[TaskErrorHandler | None] = [
    None,
    retry(attempts=3, backoff=1),
    retry(attempts=2, backoff=0),
    handle_badly,
    handle_for_ever,
    handle_plainly,
]


class SchedulerMachine(RuleBasedStateMachine):
    backend = "asyncio"

    # ---- before and after ----

    @initialize(
        max_concurrency=st.sampled_from([None, 1, 2]),
        max_pending=st.sampled_from([None, 4]),
        max_threads=st.sampled_from([1, 2]),
    )
    def enter(self, max_concurrency: int | None, max_pending: int | None, max_threads: int) -> None:
        self.workers = Workers()
        self.quiet = quiet()
        self.quiet.__enter__()
        self.portal_manager = anyio.from_thread.start_blocking_portal(self.backend)
        self.portal = self.portal_manager.__enter__()
        self.clock = VirtualClock(auto=False)
        self.max_concurrency, self.max_threads = max_concurrency, max_threads
        self.scheduler = TaskScheduler(
            clock=self.clock,
            grace_period=GRACE_PERIOD,
            shield_timeout=SHIELD_TIMEOUT,
            max_concurrency=max_concurrency,
            max_pending=max_pending,
            max_threads=max_threads,
        )
        self.limiter = anyio.CapacityLimiter(1)
        self.tasks: list[Task[Any]] = []
        self.batches: list[TaskBatch] = []
        self.cancelled_unstarted: set[int] = set()
        self.closing: Any = None
        self.leave_threads = threading.Event()
        self.lock = threading.Lock()
        self.in_threads = self.most_in_threads = self.in_limiter = self.most_in_limiter = 0
        self.watcher = Watcher(self)
        self.subscription = observe(self.watcher)
        self.portal.call(self.make_gate)
        self.portal.call(self.scheduler.start)

    async def make_gate(self) -> None:
        self.gate = anyio.Event()

    def teardown(self) -> None:
        if not hasattr(self, "portal"):
            return
        try:
            self.close()
            self.leave_threads.set()
            for _ in range(200):
                if self.closing.done():
                    break
                self.clock.advance(1)
                self.rest()
            report = self.closing.result(timeout=10)
            self.rest()
            self.check_the_end(report)
        finally:
            self.subscription.close()
            self.portal_manager.__exit__(None, None, None)
            self.quiet.__exit__(None, None, None)

    def check_the_end(self, report: Any) -> None:
        assert self.watcher.wrong == []
        numbers = self.scheduler.statistics()
        ends = Counter(task.state for task in self.tasks)
        assert numbers.pending == numbers.running == numbers.retrying == 0
        assert numbers.scheduled == len(self.tasks) == sum(ends.values())
        assert numbers.succeeded == ends[TaskState.SUCCEEDED]
        assert numbers.failed == ends[TaskState.FAILED]
        assert numbers.cancelled == ends[TaskState.CANCELLED]
        assert numbers.discarded == ends[TaskState.DISCARDED]
        assert self.watcher.finished == Counter({task.id: 1 for task in self.tasks})
        for task in self.tasks:
            assert (task.reason is None) is (task.state in (TaskState.SUCCEEDED, TaskState.FAILED))
            assert (task.state is TaskState.DISCARDED) <= (task.attempts == 0)
            if task.config.shielded:
                assert task.reason != STOPPED_BY_SHUTDOWN, "shielded work ends at its own bound"
        assert report.duration <= GRACE_PERIOD + SHIELD_TIMEOUT + 2, "bounded, give and take a step of the clock"
        assert self.most_in_limiter <= 1
        assert self.limiter.borrowed_tokens == 0
        for thread in self.workers.alive():
            thread.join(10)
        assert self.workers.alive() == []

    # ---- what tasks do ----

    async def limited(self) -> None:
        self.in_limiter += 1
        self.most_in_limiter = max(self.in_limiter, self.most_in_limiter)
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            self.in_limiter -= 1

    async def succeed(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def fail(self) -> None:
        raise ValueError("failed on purpose")

    async def exit(self) -> None:
        raise SystemExit(1)

    async def wait_at_gate(self) -> None:
        await self.gate.wait()

    async def follow_up(self) -> None:
        self.add(lambda: self.scheduler.schedule(self.succeed))

    async def follow_up_shielded_late(self) -> None:
        await self.gate.wait()
        self.add(lambda: self.scheduler.task(shield=True).schedule(self.succeed))

    def work(self, func: Callable[[], object]) -> None:
        with self.lock:
            self.in_threads += 1
            self.most_in_threads = max(self.most_in_threads, self.in_threads)
        try:
            func()
        finally:
            with self.lock:
                self.in_threads -= 1

    def succeed_plainly(self) -> None:
        self.work(lambda: None)

    def fail_plainly(self) -> None:
        def fail() -> None:
            raise ValueError("failed on purpose")

        self.work(fail)

    def block(self) -> None:
        self.work(self.leave_threads.wait)

    def follow_up_plainly(self) -> None:
        self.work(lambda: self.add(lambda: self.scheduler.schedule(self.succeed_plainly)))

    KINDS = (
        "succeed",
        "fail",
        "exit",
        "wait_at_gate",
        "follow_up",
        "follow_up_shielded_late",
        "succeed_plainly",
        "fail_plainly",
        "block",
        "follow_up_plainly",
    )

    # ---- steps ----

    def add(self, schedule: Callable[[], Task[Any]]) -> None:
        try:
            task = schedule()
        except SchedulerClosedError:
            assert self.closing is not None
        except TaskQueueFullError:
            pass
        else:
            self.tasks.append(task)

    def on_loop(self, func: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return func()

        return self.portal.call(call)

    @rule(
        kind=st.sampled_from(KINDS),
        thread=st.booleans(),
        batch=st.integers(-3, 3),
        shield=st.booleans(),
        delay=st.sampled_from([None, 1, 30]),
        timeout=st.sampled_from([None, 3]),
        on_error=st.sampled_from(HANDLERS),
        limited=st.booleans(),
        when=st.sampled_from([None, "error", "always"]),
    )
    def schedule(
        self,
        kind: str,
        thread: bool,
        batch: int,
        shield: bool,
        delay: float | None,
        timeout: float | None,
        on_error: TaskErrorHandler | None,
        limited: bool,
        when: Any,
    ) -> None:
        options: dict[str, Any] = {"shield": shield, "delay": delay, "timeout": timeout, "on_error": on_error}
        target: Any = self.scheduler
        if 0 <= batch < len(self.batches):
            target, options["when"] = self.batches[batch], when
        func = getattr(self, kind)
        if limited:
            func, options["limiter"] = self.limited, self.limiter

        def call() -> None:
            self.add(lambda: target.task(**options).schedule(func))

        call() if thread else self.on_loop(call)

    @rule()
    def make_batch(self) -> None:
        if len(self.batches) < 4:
            self.batches.append(TaskBatch(self.scheduler, f"phase {len(self.batches)}"))

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), how=st.sampled_from(["success", "error", "discard"]), thread=st.booleans())
    def end_batch(self, data: st.DataObject, how: Any, thread: bool) -> None:
        batch = data.draw(st.sampled_from(self.batches))

        def call() -> None:
            if how == "discard":
                batch.discard("not wanted")
            else:
                batch.open(how)

        call() if thread else self.on_loop(call)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), thread=st.booleans())
    def cancel(self, data: st.DataObject, thread: bool) -> None:
        task = self.tasks[data.draw(st.integers(0, len(self.tasks) - 1))]

        def cancel() -> None:
            task.cancel()
            if task.state is TaskState.CANCELLED and not task.attempts:
                self.cancelled_unstarted.add(task.id)

        cancel() if thread else self.on_loop(cancel)

    @rule(seconds=st.sampled_from([0.5, 1, 4, 10]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def open_gate(self) -> None:
        self.on_loop(self.gate.set)
        self.portal.call(self.make_gate)

    @rule()
    def rest(self) -> None:
        self.portal.call(anyio.wait_all_tasks_blocked)

    @rule()
    def close(self) -> None:
        if self.closing is None:
            self.closing = self.portal.start_task_soon(self.scheduler.aclose)

    # ---- promises ----

    @invariant()
    def numbers_add_up(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        n = self.scheduler.statistics()
        alive = n.pending + n.running + n.retrying
        assert n.scheduled == alive + n.succeeded + n.failed + n.cancelled + n.discarded
        assert sum(n.by_phase.values()) == alive

    @invariant()
    def limits_hold(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        running = self.on_loop(lambda: self.scheduler.statistics().running)
        assert self.max_concurrency is None or running <= self.max_concurrency
        assert self.most_in_threads <= self.max_threads

    @invariant()
    def nothing_went_wrong(self) -> None:
        if hasattr(self, "watcher"):
            assert self.watcher.wrong == []


class TrioSchedulerMachine(SchedulerMachine):
    backend = "trio"


SOAK = int(os.environ.get("TASKS_CORE_SOAK", "0"))


@pytest.mark.timeout(0 if SOAK else 120)
@pytest.mark.parametrize("machine", [SchedulerMachine, TrioSchedulerMachine])
def test_the_promises_hold_whatever_happens(machine: type[SchedulerMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=SOAK or 12,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=not SOAK,
            database=None,
        ),
    )

"""A machine that does anything to a scheduler, in any order, and looks whether its promises hold."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from core_support import Workers, in_thread
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tasks_core import (
    SchedulerClosedError,
    ShutdownReport,
    Task,
    TaskErrorHandler,
    TaskObserver,
    TaskPhase,
    TaskQueueFullError,
    TaskScheduler,
    TaskState,
    current_task,
    observe,
    retry,
)
from tasks_core.testing import release_task
from tasks_testing import VirtualClock

GRACE_PERIOD, SHIELD_TIMEOUT = 8.0, 16.0
CANCEL_CALLED = "task.cancel() was called"
GRACE_OVER = "the grace period of the shutdown was over"
SHIELD_OVER = "the time for shielded tasks (shield_timeout) was over"
# Earlier releases lend a token that they have just given to somebody else, at times.
LIMITERS_LIMIT = tuple(map(int, version("anyio").split(".")[:2])) >= (4, 15)

# What the caller of schedule() had set; each task is given the same object as its argument.
caller: ContextVar[object] = ContextVar("caller", default=None)


class Watcher(TaskObserver):
    """Notes what must not happen; the machine looks at it after each step."""

    def __init__(self, machine: SchedulerMachine) -> None:
        self.machine = machine
        self.finished: Counter[int] = Counter()
        self.shutting_down = self.grace_over = False
        self.wrong: list[str] = []

    def hold_task(self, task: Task[Any]) -> bool:
        return self.machine.scheduler.owns(task) and task.name == "held"

    def task_started(self, task: Task[Any]) -> None:
        machine = self.machine
        if not machine.scheduler.owns(task):
            return
        batch, when = task.phase, task.config.when or "success"
        self.unless(batch is None or batch.opened, task, "started before its phase")
        self.unless(batch is None or when in ("always", batch.outcome), task, "is not for this outcome")
        self.unless(task.id not in machine.cancelled_unstarted, task, "started after it was cancelled")
        self.unless(not self.finished[task.id], task, "started after its end")
        self.unless(task.name != "held" or task.id in machine.released, task, "started while it was held")
        self.unless(task.config.shielded or not self.grace_over, task, "started after the grace period")
        self.unless(caller.get() is task.args[0], task, "started in the context of another call")
        self.unless(not machine.overtaken(task), task, "started ahead of an older one")
        self.unless(task.attempts > 1 or task.age >= (task.config.delay or 0), task, "did not wait for its delay")
        if LIMITERS_LIMIT:
            limited = [t for t in machine.tasks if t.config.limiter is not None and t.state is TaskState.RUNNING]
            self.unless(len(limited) <= 1, task, "did not wait for its limiter")

    def task_finished(self, task: Task[Any]) -> None:
        if not self.machine.scheduler.owns(task):
            return
        self.finished[task.id] += 1
        self.unless(task.state.finished, task, "has not ended")
        if task.reason == GRACE_OVER:
            self.grace_over = True
            self.unless(self.machine.closed_for(GRACE_PERIOD), task, "had less than the grace period")
            self.unless(not task.config.shielded, task, "was shielded")
        if task.reason == SHIELD_OVER:
            self.unless(self.machine.closed_for(GRACE_PERIOD + SHIELD_TIMEOUT), task, "had less than its time")

    def shutdown_started(self, tasks: Sequence[Task[Any]], grace_period: float) -> None:
        self.shutting_down = True  # of the only scheduler that there is

    def unless(self, right: bool, task: Task[Any], what: str) -> None:
        if not right:
            self.wrong.append(f"{task} {what}")


class Lines(logging.Handler):
    """The lines of the log in place of all other handlers, by the task that they are about."""

    def __init__(self) -> None:
        super().__init__()
        self.of: defaultdict[int | None, list[str]] = defaultdict(list)
        self.logger = logging.getLogger("tasks_core")
        self.before = self.logger.level

    def emit(self, record: logging.LogRecord) -> None:
        self.of[getattr(record, "task_id", None)].append(record.getMessage())

    def open(self) -> None:
        self.logger.addHandler(self)
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False

    def close(self) -> None:
        self.logger.removeHandler(self)
        self.logger.setLevel(self.before)
        self.logger.propagate = True
        super().close()


async def handle_badly(task: Task[Any], error: Exception) -> None:
    raise RuntimeError("handler failed")


def handle_plainly(task: Task[Any], error: Exception) -> bool:
    return True


async def handle_for_long(task: Task[Any], error: Exception) -> None:
    await task.func.__self__.last_gate.wait()  # type: ignore[attr-defined]  # they are methods of the machine


HANDLERS: list[TaskErrorHandler | None] = [
    None,
    retry(attempts=3, backoff=1),
    retry(attempts=2, backoff=0),
    handle_badly,
    handle_for_long,
    handle_plainly,
]


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
PLAIN_KINDS = {"succeed_plainly", "fail_plainly", "block", "follow_up_plainly"}


@dataclass(frozen=True)
class Plan:
    """A task that is to be scheduled."""

    kind: str
    batch: int | None = None
    shield: bool = False
    delay: float | None = None
    timeout: float | None = None
    on_error: TaskErrorHandler | None = None
    limited: bool = False
    held: bool = False
    when: Any = None
    cancel: str | None = None


PLANS = st.builds(
    Plan,
    kind=st.sampled_from(KINDS),
    batch=st.sampled_from([None, None, 0, 1, 2]),
    shield=st.booleans(),
    delay=st.sampled_from([None, None, 1, 30]),
    timeout=st.sampled_from([None, 3]),
    on_error=st.sampled_from(HANDLERS),
    limited=st.sampled_from([False, False, True]),
    held=st.sampled_from([False, False, False, True]),
    when=st.sampled_from([None, "error", "always"]),
    cancel=st.sampled_from([None, None, None, "here", "in a thread"]),
)
# What is drawn must not depend on how far the tasks have come: an index is taken modulo the number that there is.
INDEXES = st.integers(0, 99)


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler from another thread than that of its event loop."""

    backend = "asyncio"
    use_uvloop = False

    # ---- before and after ----

    @initialize(
        max_concurrency=st.sampled_from([None, 1, 2]),
        max_pending=st.sampled_from([None, None, 4]),
        max_threads=st.sampled_from([1, 2]),
        drains=st.booleans(),
        leap=st.sampled_from([1.0, GRACE_PERIOD + 2]),
        first=st.lists(PLANS, min_size=1, max_size=4),
    )
    def enter(
        self,
        max_concurrency: int | None,
        max_pending: int | None,
        max_threads: int,
        drains: bool,
        leap: float,
        first: list[Plan],
    ) -> None:
        self.workers = Workers()
        self.lines = Lines()
        self.lines.open()
        options = {"use_uvloop": True} if self.use_uvloop else {}
        self.portal_manager = anyio.from_thread.start_blocking_portal(self.backend, options)
        self.portal = self.portal_manager.__enter__()
        self.clock = VirtualClock(auto=False)
        self.max_concurrency, self.max_pending, self.max_threads = max_concurrency, max_pending, max_threads
        self.drains, self.leap = drains, leap
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
        self.batches = [TaskPhase(self.scheduler, f"phase {number}") for number in range(3)]
        self.cancelled: set[int] = set()
        self.cancelled_unstarted: set[int] = set()
        self.released: set[int] = set()
        self.in_line: set[int] = set()
        self.closing: list[Any] = []
        self.closing_since = 0.0
        self.leave_threads = threading.Event()
        self.lock = threading.Lock()
        self.in_threads = self.most_in_threads = 0
        self.watcher = Watcher(self)
        self.subscription = observe(self.watcher)
        self.loop_thread = self.on_loop(threading.get_ident)
        self.on_loop(self.make_gates)
        self.portal.call(self.scheduler.start)
        self.schedule(first)

    def make_gates(self) -> None:
        self.gate, self.last_gate = anyio.Event(), anyio.Event()

    def teardown(self) -> None:
        if not hasattr(self, "portal"):
            return
        try:
            if self.drains:
                self.drain()
            if not self.closing:
                self.schedule([Plan("wait_at_gate", shield=True)])  # as long as it may
            self.close()
            self.close()
            self.leave_threads.set()
            self.clock.advance(self.leap)
            # No further: when the two bounds are over it has to end, whatever else happens.
            while not self.closing[0].done() and not self.closed_for(GRACE_PERIOD + SHIELD_TIMEOUT):
                self.clock.advance(1)
                self.rest()
            reports = [closing.result(timeout=10) for closing in self.closing]
            assert all(report is reports[0] for report in reports)
            self.rest()
            self.check_the_end(reports[0])
        finally:
            self.subscription.close()
            self.leave_threads.set()
            self.clock.advance(1000)  # the event loop has to end, also when shutdown has not kept its bounds
            self.portal_manager.__exit__(None, None, None)
            self.lines.close()

    def drain(self) -> None:
        """Take everything out of the way: each task has to end by itself."""
        for batch in self.batches:
            batch.open()
        for task in self.tasks:
            self.released.add(task.id)
            release_task(task)
        self.on_loop(self.gate.set)
        self.on_loop(self.last_gate.set)
        self.leave_threads.set()

        def all_have_ended() -> bool:
            self.clock.advance(5)
            self.rest()
            return all(task.state.finished for task in self.tasks)

        self.eventually(all_have_ended, "a task does not end although nothing is in its way")
        for task in self.tasks:
            if task.state is TaskState.CANCELLED:
                assert task.id in self.cancelled
            if task.state is TaskState.DISCARDED:
                assert task.phase is not None, "there is no other reason than an outcome"

    def check_the_end(self, report: ShutdownReport) -> None:
        assert not self.watcher.wrong, self.watcher.wrong
        assert not [line for line in self.lines.of[None] if "observer raised" in line], "the watcher has to see"
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
            self.check_its_end(task)
        lost = Counter(task.id for task in report.lost)
        assert set(lost.values()) <= {1}
        assert set(lost) == {task.id for task in self.tasks if task.lost}
        assert self.limiter.borrowed_tokens == 0
        for call in (lambda: self.scheduler.schedule(self.succeed, None), lambda: self.on_loop(self.schedule_late)):
            with pytest.raises(SchedulerClosedError):
                call()
        for thread in self.workers.alive():
            thread.join(10)
        assert self.workers.alive() == []

    def check_its_end(self, task: Task[Any]) -> None:
        assert (task.reason is None) is (task.state in (TaskState.SUCCEEDED, TaskState.FAILED))
        assert (task.state is TaskState.DISCARDED) <= (task.attempts == 0)
        assert (task.reason == CANCEL_CALLED) <= (task.id in self.cancelled)
        lines = self.lines.of[task.id]
        match task.state:
            case TaskState.SUCCEEDED:
                assert task.result() is task.args[0]
            case TaskState.FAILED:
                failed = [line for line in lines if line.endswith(f" failed in attempt {task.attempts}")]
                assert len(failed) == 1 or task.config.on_error is handle_plainly
            case state:
                assert len([line for line in lines if f" was {state}: " in line]) == 1, "a loss has a line"

    def schedule_late(self) -> None:
        self.scheduler.schedule(self.succeed, None)

    # ---- what the watcher asks ----

    def closed_for(self, seconds: float) -> bool:
        return bool(self.closing) and self.clock.now() >= self.closing_since + seconds

    def overtaken(self, task: Task[Any]) -> bool:
        """Whether an older task waits for the only place, in the same line; of two places, trio takes any first."""
        if self.max_concurrency != 1 or task.attempts > 1 or task.id not in self.in_line:
            return False
        older = [t for t in self.tasks if t.id in self.in_line and t.id < task.id]
        return any(t.state is TaskState.PENDING for t in older)

    # ---- what tasks do ----

    async def succeed(self, mark: object) -> object:
        await anyio.lowlevel.checkpoint()
        return mark

    async def fail(self, mark: object) -> object:
        raise ValueError("failed on purpose")

    async def exit(self, mark: object) -> object:
        raise SystemExit(1)

    async def wait_at_gate(self, mark: object) -> object:
        if not self.last_gate.is_set():
            await self.gate.wait()
        return mark

    async def follow_up(self, mark: object) -> object:
        self.add(self.scheduler, self.succeed)
        return mark

    async def follow_up_shielded_late(self, mark: object) -> object:
        await self.wait_at_gate(mark)
        self.add(self.scheduler.task(shield=True), self.succeed)
        return mark

    def work(self, mark: object, func: Callable[[], object]) -> object:
        with self.lock:
            self.in_threads += 1
            self.most_in_threads = max(self.most_in_threads, self.in_threads)
        try:
            func()
        finally:
            with self.lock:
                self.in_threads -= 1
        if caller.get() is not mark:
            self.watcher.wrong.append("a thread had the context of another call")
        return mark

    def succeed_plainly(self, mark: object) -> object:
        return self.work(mark, lambda: None)

    def fail_plainly(self, mark: object) -> object:
        def fail() -> None:
            raise ValueError("failed on purpose")

        return self.work(mark, fail)

    def block(self, mark: object) -> object:
        return self.work(mark, self.leave_threads.wait)

    def follow_up_plainly(self, mark: object) -> object:
        return self.work(mark, lambda: self.add(self.scheduler, self.succeed_plainly))

    # ---- steps ----

    def add(self, target: Any, func: Callable[[object], Any]) -> Task[Any] | None:
        here = threading.get_ident() == self.loop_thread
        is_outside = self.watcher.shutting_down and current_task() is None
        mark = object()
        token = caller.set(mark)
        try:
            task: Task[Any] = target.schedule(func, mark)
        except SchedulerClosedError:
            if not self.closing or (here and current_task() is not None):
                self.watcher.wrong.append("refused before the end, or in a task that runs")
            return None
        except TaskQueueFullError:
            if self.max_pending is None or (here and self.scheduler.statistics().pending < self.max_pending):
                self.watcher.wrong.append("refused although the queue is not full")
            return None
        finally:
            caller.reset(token)
        self.tasks.append(task)
        if is_outside:
            self.watcher.wrong.append("accepted from outside after the end had begun")
        if here and self.stands_in_line(task):
            self.in_line.add(task.id)
        return task

    def stands_in_line(self, task: Task[Any]) -> bool:
        """Whether a place is all that the task waits for; a function waits for a thread first."""
        config, waits_for_phase = task.config, task.phase is not None and not task.phase.opened
        waits = waits_for_phase or config.delay is not None or config.limiter is not None or task.name == "held"
        return not waits and task.func.__name__ not in PLAIN_KINDS

    async def take_turns(self) -> None:
        # anyio.wait_all_tasks_blocked() would look every tenth of a second on uvloop.
        for _ in range(20):
            await anyio.lowlevel.checkpoint()

    def on_loop(self, func: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return func()

        return self.portal.call(call)

    @rule(plans=st.lists(PLANS, min_size=1, max_size=4))
    def schedule(self, plans: list[Plan]) -> None:
        self.on_loop(lambda: self.carry_out(*plans))

    @rule(plans=st.lists(PLANS, min_size=1, max_size=4))
    def schedule_in_a_thread(self, plans: list[Plan]) -> None:
        self.carry_out(*plans)

    @rule(plan=PLANS, number=st.integers(2, 6))
    def schedule_several(self, plan: Plan, number: int) -> None:
        self.on_loop(lambda: self.carry_out(*[plan] * number))

    def carry_out(self, *plans: Plan) -> None:
        for plan in plans:
            self.carry_out_one(plan)

    def carry_out_one(self, plan: Plan) -> None:
        options: dict[str, Any] = {
            "name": "held" if plan.held else None,
            "shield": plan.shield,
            "delay": plan.delay,
            "timeout": plan.timeout,
            "on_error": plan.on_error,
            "limiter": self.limiter if plan.limited else None,
        }
        target: Any = self.scheduler
        if plan.batch is not None:
            target, options["when"] = self.batches[plan.batch], plan.when
        task = self.add(target.task(**options), getattr(self, plan.kind))
        if task is not None and plan.cancel is not None and threading.get_ident() == self.loop_thread:
            # The event loop has no chance to start it, also where another thread is the one to cancel it.
            task.cancel() if plan.cancel == "here" else in_thread(task.cancel)
            self.cancelled.add(task.id)
            self.cancelled_unstarted.add(task.id)

    @rule(index=st.integers(0, 2), how=st.sampled_from(["success", "error", "discard"]), thread=st.booleans())
    def end_batch(self, index: int, how: Any, thread: bool) -> None:
        batch = self.batches[index]

        def call() -> None:
            if how == "discard":
                batch.discard("not wanted")
            else:
                batch.open(how)

        call() if thread else self.on_loop(call)

    @rule(index=INDEXES, thread=st.booleans())
    def cancel(self, index: int, thread: bool) -> None:
        def cancel() -> None:
            task = self.tasks[index % len(self.tasks)]
            self.cancelled.add(task.id)
            task.cancel()
            if task.state is TaskState.CANCELLED and not task.attempts:
                self.cancelled_unstarted.add(task.id)

        cancel() if thread else self.on_loop(cancel)

    @rule(index=INDEXES, thread=st.booleans())
    def release(self, index: int, thread: bool) -> None:
        def release() -> None:
            if held := [task for task in self.tasks if task.name == "held"]:
                task = held[index % len(held)]
                if task.phase is None or task.phase.opened:  # before, there is nothing to release
                    self.released.add(task.id)
                release_task(task)

        release() if thread else self.on_loop(release)

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 10.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def open_gate(self) -> None:
        def call() -> None:
            self.gate.set()
            self.gate = anyio.Event()

        self.on_loop(call)

    @rule()
    def rest(self) -> None:
        self.portal.call(self.take_turns)
        if self.max_pending is not None:
            most = self.max_pending
            # Not at any moment: a task that has been given its place is pending until it starts.
            self.eventually(lambda: self.scheduler.statistics().pending <= most, "more tasks wait than may")

    @precondition(lambda self: not self.drains)
    @rule()
    def close(self) -> None:
        if not self.closing:
            self.closing_since = self.clock.now()
        self.closing.append(self.portal.start_task_soon(self.scheduler.aclose))
        self.eventually(self.scheduler.stopping.is_set, "shutdown does not begin")

    # ---- promises ----

    def eventually(self, condition: Callable[[], bool], otherwise: str) -> None:
        began = time.monotonic()
        while not condition():
            assert time.monotonic() < began + 10, otherwise
            time.sleep(0.001)

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
            assert not self.watcher.wrong, self.watcher.wrong


class UvloopSchedulerMachine(SchedulerMachine):
    use_uvloop = True


class TrioSchedulerMachine(SchedulerMachine):
    backend = "trio"

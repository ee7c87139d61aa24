"""A scheduler, what a program may do to it, and the promises that it keeps whatever that is."""

from __future__ import annotations

import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import anyio
import anyio.lowlevel
from tasks_core import (
    Clock,
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

GRACE_PERIOD, SHIELD_TIMEOUT = 8.0, 16.0
CANCEL_CALLED = "task.cancel() was called"
GRACE_OVER = "the grace period of the shutdown was over"
SHIELD_OVER = "the time for shielded tasks (shield_timeout) was over"
# Earlier releases lend a token that they have just given to another task, at times.
LIMITERS_LIMIT = tuple(map(int, version("anyio").split(".")[:2])) >= (4, 15)

# What the caller of schedule() had set; each task is given the same object as its argument.
caller: ContextVar[object] = ContextVar("caller", default=None)


async def handle_badly(task: Task[Any], error: Exception) -> None:
    raise RuntimeError("handler failed")


def handle_plainly(task: Task[Any], error: Exception) -> bool:
    return True


async def handle_for_long(task: Task[Any], error: Exception) -> None:
    await task.func.__self__.last_gate.wait()  # type: ignore[attr-defined]  # they are methods of what is checked


# The last one needs a thread.
HANDLERS: list[TaskErrorHandler | None] = [
    None,
    retry(attempts=3, backoff=1),
    retry(attempts=2, backoff=0),
    handle_badly,
    handle_for_long,
    handle_plainly,
]

COROUTINE_KINDS = (
    "succeed",
    "fail",
    "exit",
    "wait_at_gate",
    "follow_up",
    "follow_up_shielded_late",
)
PLAIN_KINDS = ("succeed_plainly", "fail_plainly", "block", "follow_up_plainly")


@dataclass(frozen=True)
class Plan:
    """A task that is to be scheduled."""

    kind: str
    phase: int | None = None
    shield: bool = False
    delay: float | None = None
    timeout: float | None = None
    on_error: TaskErrorHandler | None = None
    limited: bool = False
    held: bool = False
    when: Any = None
    cancel: str | None = None
    key: str | None = None
    on_conflict: Any = None


class Watcher(TaskObserver):
    """Records what must not happen."""

    def __init__(self, checked: CheckedScheduler) -> None:
        self.checked = checked
        self.finished: Counter[int] = Counter()
        self.shutting_down = self.grace_over = False
        self.wrong: list[str] = []

    def hold_task(self, task: Task[Any]) -> bool:
        return self.checked.scheduler.owns(task) and task.name == "held"

    def task_started(self, task: Task[Any]) -> None:
        checked = self.checked
        if not checked.scheduler.owns(task):
            return
        phase, when = task.phase, task.config.when or "success"
        self.unless(phase is None or phase.opened, task, "started before its phase")
        self.unless(phase is None or when in ("always", phase.outcome), task, "is not for this outcome")
        self.unless(task.id not in checked.cancelled_unstarted, task, "started after it was cancelled")
        self.unless(not self.finished[task.id], task, "started after its end")
        self.unless(task.name != "held" or task.id in checked.released, task, "started while it was held")
        self.unless(task.config.shielded or not self.grace_over, task, "started after the grace period")
        self.unless(caller.get() is task.args[0], task, "started in the context of another call")
        self.unless(not checked.overtaken(task), task, "started ahead of an older one")
        self.unless(task.attempts > 1 or task.age >= (task.config.delay or 0), task, "did not wait for its delay")
        key = task.config.key
        same = [t for t in checked.tasks if t.config.key == key and t.state is TaskState.RUNNING]
        self.unless(key is None or len(same) <= 1, task, "runs beside another of its key")
        if LIMITERS_LIMIT:
            limited = [t for t in checked.tasks if t.config.limiter is not None and t.state is TaskState.RUNNING]
            self.unless(len(limited) <= 1, task, "did not wait for its limiter")

    def task_finished(self, task: Task[Any]) -> None:
        if not self.checked.scheduler.owns(task):
            return
        self.finished[task.id] += 1
        self.unless(task.state.finished, task, "has not ended")
        if task.reason == GRACE_OVER:
            self.grace_over = True
            self.unless(self.checked.closed_for(GRACE_PERIOD), task, "had less than the grace period")
            self.unless(not task.config.shielded, task, "was shielded")
        if task.reason == SHIELD_OVER:
            self.unless(self.checked.closed_for(GRACE_PERIOD + SHIELD_TIMEOUT), task, "had less than its time")

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


class CheckedScheduler:
    """
    A scheduler with three phases and a limiter, the tasks that were scheduled into it, and its promises.

    What drives it calls `set_up()`, then anything else in any order, and `tear_down()`. All methods run on the event
    loop, except where a step says that it may run in another thread.
    """

    def set_up(
        self,
        max_concurrency: int | None = None,
        max_pending: int | None = None,
        max_threads: int = 2,
        *,
        clock: Clock,
        slow_callback_duration: float | None = 1.0,
    ) -> None:
        self.lines = Lines()
        self.lines.open()
        self.max_concurrency, self.max_pending, self.max_threads = max_concurrency, max_pending, max_threads
        self.scheduler = TaskScheduler(
            clock=clock,
            grace_period=GRACE_PERIOD,
            shield_timeout=SHIELD_TIMEOUT,
            max_concurrency=max_concurrency,
            max_pending=max_pending,
            max_threads=max_threads,
            slow_callback_duration=slow_callback_duration,
        )
        self.now = clock.now
        self.limiter = anyio.CapacityLimiter(1)
        self.tasks: list[Task[Any]] = []
        self.joined: list[Task[Any]] = []  # once for each call that made no task
        self.phases = [TaskPhase(self.scheduler, f"phase {number}") for number in range(3)]
        self.cancelled: set[int] = set()
        self.cancelled_unstarted: set[int] = set()
        self.released: set[int] = set()
        self.in_line: set[int] = set()
        self.closing_since: float | None = None
        self.loop_thread = -1
        self.leave_threads = threading.Event()
        self.lock = threading.Lock()
        self.in_threads = self.most_in_threads = 0
        self.watcher = Watcher(self)
        self.subscription = observe(self.watcher)

    def make_gates(self) -> None:
        self.loop_thread = threading.get_ident()
        self.gate, self.last_gate = anyio.Event(), anyio.Event()

    def tear_down(self) -> None:
        self.subscription.close()
        self.leave_threads.set()
        self.lines.close()

    # ---- what the watcher asks ----

    def closed_for(self, seconds: float) -> bool:
        return self.closing_since is not None and self.now() >= self.closing_since + seconds

    def overtaken(self, task: Task[Any]) -> bool:
        """Return whether an older task waits for the only place; of two places, trio takes any first."""
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
        """Schedule; in any thread."""
        here = threading.get_ident() == self.loop_thread
        is_outside = self.watcher.shutting_down and current_task() is None
        mark = object()
        token = caller.set(mark)
        try:
            task: Task[Any] = target.schedule(func, mark)
        except SchedulerClosedError:
            if self.closing_since is None or (here and current_task() is not None):
                self.watcher.wrong.append("refused before the end, or in a task that runs")
            return None
        except TaskQueueFullError:
            if self.max_pending is None or (here and self.scheduler.statistics().pending < self.max_pending):
                self.watcher.wrong.append("refused although the queue is not full")
            return None
        finally:
            caller.reset(token)
        if task in self.tasks:  # it has the key
            if task.config.key is None:
                self.watcher.wrong.append("a task was returned twice")
            self.joined.append(task)
            return None
        self.tasks.append(task)
        if is_outside:
            self.watcher.wrong.append("accepted from outside after the end had begun")
        if here and self.stands_in_line(task):
            self.in_line.add(task.id)
        return task

    def stands_in_line(self, task: Task[Any]) -> bool:
        """Return whether a place is all that the task waits for; a function waits for a thread first."""
        config, waits_for_phase = task.config, task.phase is not None and not task.phase.opened
        waits_for_phase = waits_for_phase or config.key is not None
        waits = waits_for_phase or config.delay is not None or config.limiter is not None or task.name == "held"
        return not waits and task.func.__name__ not in PLAIN_KINDS

    def carry_out(self, plan: Plan) -> Task[Any] | None:
        """Schedule what is planned; in any thread."""
        options: dict[str, Any] = {
            "name": "held" if plan.held else None,
            "shield": plan.shield,
            "delay": plan.delay,
            "timeout": plan.timeout,
            "on_error": plan.on_error,
            "limiter": self.limiter if plan.limited else None,
            "key": plan.key,
            "on_conflict": plan.on_conflict if plan.key else None,
        }
        target: Any = self.scheduler
        if plan.phase is not None:
            target, options["when"] = self.phases[plan.phase], plan.when
        return self.add(target.task(**options), getattr(self, plan.kind))

    def end_phase(self, index: int, how: Any) -> None:
        """Open a phase with the outcome *how*, or discard it; in any thread."""
        phase = self.phases[index]
        if how == "discard":
            phase.discard("not wanted")
        else:
            phase.open(how)

    def cancel(self, task: Task[Any]) -> None:
        """Cancel; in any thread."""
        self.cancelled.add(task.id)
        task.cancel()
        if task.state is TaskState.CANCELLED and not task.attempts:
            self.cancelled_unstarted.add(task.id)

    def release(self, index: int) -> None:
        """Release one of the tasks that the watcher holds; in any thread."""
        if held := [task for task in self.tasks if task.name == "held"]:
            task = held[index % len(held)]
            if task.phase is None or task.phase.opened:  # before, there is nothing to release
                self.released.add(task.id)
            release_task(task)

    def open_gate(self) -> None:
        self.gate.set()
        self.gate = anyio.Event()

    def remove_obstacles(self) -> None:
        """Open each phase and each gate, and release each task, so that each ends by itself."""
        for phase in self.phases:
            phase.open()
        for task in self.tasks:
            self.released.add(task.id)
            release_task(task)
        self.gate.set()
        self.last_gate.set()
        self.leave_threads.set()

    # ---- promises ----

    def check_nothing_went_wrong(self) -> None:
        assert not self.watcher.wrong, self.watcher.wrong

    def check_numbers(self) -> None:
        n = self.scheduler.statistics()
        alive = n.pending + n.running + n.retrying
        assert n.scheduled == alive + n.succeeded + n.failed + n.cancelled + n.discarded
        assert sum(n.by_phase.values()) == alive

    def check_limits(self) -> None:
        running = self.scheduler.statistics().running
        assert self.max_concurrency is None or running <= self.max_concurrency
        assert self.most_in_threads <= self.max_threads

    def few_enough_wait(self) -> bool:
        """Return whether no more tasks wait than may; false at times, between the moment of a start and the start."""
        return self.max_pending is None or self.scheduler.statistics().pending <= self.max_pending

    def check_all_ended_by_themselves(self) -> None:
        """Check the ends of tasks that had nothing in their way."""
        for task in self.tasks:
            if task.state is TaskState.CANCELLED:
                assert task.id in self.cancelled
            if task.state is TaskState.DISCARDED:
                assert task.phase is not None or task.config.key is not None, "there is no other reason"

    def check_the_end(self, report: ShutdownReport) -> None:
        self.check_nothing_went_wrong()
        assert not [line for line in self.lines.of[None] if "observer raised" in line], "the watcher has to see"
        assert len([line for line in self.lines.of[None] if "No task was made of the call" in line]) == len(self.joined)
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

"""Stepping in: tasks that are held, attempts that fail on demand, functions that are replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tasks_core import RunAttempt, Subscription, Task, TaskObserver, observe

from tasks_testing._recording.call import Target, check_target
from tasks_testing._recording.record import RecordedTask, is_meant
from tasks_testing._recording.recording import Recording


@dataclass(eq=False)
class HoldRule:
    targets: Sequence[Target]
    """None: all."""
    keep: Sequence[Target]

    def holds(self, task: RecordedTask[Any]) -> bool:
        wanted = not self.targets or any(is_meant(task, target) for target in self.targets)
        return wanted and not any(is_meant(task, target) for target in self.keep)


@dataclass(eq=False)
class FailRule:
    target: Target
    error: BaseException | type[BaseException]
    left: float
    after_run: bool

    def make_error(self) -> BaseException:
        return self.error() if isinstance(self.error, type) else self.error.with_traceback(None)


@dataclass(eq=False)
class StubRule:
    target: Target
    replacement: Callable[..., Any] | None


class Control(TaskObserver):
    """
    The rules of one recording.

    It observes only when there are rules: a recording that just listens leaves the way of a task, and the tracebacks of
    its errors, as they are in production.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._holds: list[HoldRule] = []
        self._fails: list[FailRule] = []
        self._stubs: list[StubRule] = []
        self._subscription: Subscription | None = None

    def close(self) -> None:
        if self._subscription is not None:
            self._subscription.close()

    def _observe(self) -> None:
        if self._subscription is None:
            self._subscription = observe(self)

    # ---- rules ----

    def hold(self, targets: Sequence[Target], keep: Sequence[Target]) -> HoldRule:
        for target in (*targets, *keep):
            check_target(target)
        rule = HoldRule(targets, keep)
        self._holds.append(rule)
        self._observe()
        return rule

    def end_hold(self, rule: HoldRule) -> None:
        """Let go of what the rule holds, unless another one does as well."""
        self._holds.remove(rule)
        for task in list(self._recording.tasks):
            if task._held and rule.holds(task) and not self._is_held(task):
                self._recording.release(task)

    def fail(
        self, target: Target, error: BaseException | type[BaseException], times: int | None, after_run: bool
    ) -> None:
        check_target(target)
        if not isinstance(error, BaseException) and not (isinstance(error, type) and issubclass(error, BaseException)):
            raise TypeError(
                "fail(target, error): error must be an exception, as in fail(charge, ConnectionError('down'))"
            )
        if isinstance(error, type):
            error()  # one that needs arguments is the fault of the test, not the failure of the task
        self._fails.append(FailRule(target, error, float("inf") if times is None else times, after_run))
        self._observe()

    def stub(self, target: Target, replacement: Callable[..., Any] | None) -> None:
        check_target(target)
        if replacement is not None and not callable(replacement):
            raise TypeError("stub(target, replacement): replacement must be a function with the parameters of the task")
        self._stubs.insert(0, StubRule(target, replacement))  # the latest counts
        self._observe()

    def releasable(self, target: Target | None) -> list[RecordedTask[Any]]:
        """Return the tasks that are held, or will be when their phase opens."""
        with self._recording.monitor.lock:
            return [
                task
                for task in self._recording.tasks
                if is_meant(task, target) and (task._held or (task._progress == "scheduled" and self._is_held(task)))
            ]

    def _is_held(self, task: RecordedTask[Any]) -> bool:
        return not task._released and any(rule.holds(task) for rule in self._holds)

    # ---- TaskObserver ----

    def hold_task(self, task: Task[Any]) -> bool:
        recorded = self._recording.find(task)
        with self._recording.monitor.lock:
            if recorded is None or recorded._run is not None or not self._is_held(recorded):
                return False
            self._recording.hold(recorded)
            return True

    async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
        __tracebackhide__ = True
        recorded = self._recording.find(task)
        if recorded is None:
            return await run()
        error, after_run = self._next_failure(recorded)
        if error is not None and not after_run:
            raise error
        result = await self._run(recorded, run)
        if error is not None:
            raise error
        return result

    async def _run(self, task: RecordedTask[Any], run: RunAttempt) -> Any:
        __tracebackhide__ = True
        for rule in self._stubs:
            if is_meant(task, rule.target):
                return None if rule.replacement is None else await run(rule.replacement)
        return await run()

    def _next_failure(self, task: RecordedTask[Any]) -> tuple[BaseException | None, bool]:
        with self._recording.monitor.lock:
            for rule in self._fails:
                if rule.left > 0 and is_meant(task, rule.target):
                    rule.left -= 1
                    error = rule.make_error()
                    task._injected.append(error)
                    return error, rule.after_run
        return None, False


@contextmanager
def holding(control: Control, rule: HoldRule) -> Iterator[None]:
    """End a rule at the end of a block."""
    try:
        yield
    finally:
        control.end_hold(rule)

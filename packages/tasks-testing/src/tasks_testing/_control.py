"""What a test changes about tasks: it holds them, makes attempts fail, and replaces functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from tasks_core import Task, TaskObserver, observe
from tasks_core.types import RunAttempt, Subscription

from . import _refusals
from ._recording.call import Target, check_target
from ._recording.cut import Cut, take_planned_cut
from ._recording.order import Choose, ChosenOrder
from ._recording.record import RecordedTask, is_named_by
from ._recording.recording import Recording


@dataclass(eq=False)
class HoldRule:
    """Keeps tasks from starting."""

    targets: Sequence[Target]
    """Which tasks; empty: all."""
    keep: Sequence[Target]
    """Which of them start all the same."""

    def holds(self, task: RecordedTask[Any]) -> bool:
        wanted = not self.targets or any(is_named_by(task, target) for target in self.targets)
        return wanted and not any(is_named_by(task, target) for target in self.keep)


@dataclass(eq=False)
class FailRule:
    """Makes attempts fail."""

    target: Target
    error: BaseException | type[BaseException]
    left: float
    """How many more attempts."""
    after_run: bool

    def make_error(self) -> BaseException:
        return self.error() if isinstance(self.error, type) else self.error.with_traceback(None)


@dataclass(eq=False)
class StubRule:
    """Runs a replacement instead of a function; without a replacement, runs nothing."""

    target: Target
    replacement: Callable[..., Any] | None


class Control(TaskObserver):
    """
    The rules of one recording.

    It observes tasks only if there is a rule. Without rules, tasks run exactly as in production, and the tracebacks of
    their exceptions have no frame of this package.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._holds: list[HoldRule] = []
        self._fails: list[FailRule] = []
        self._stubs: list[StubRule] = []
        self._subscription: Subscription | None = None

    def close(self) -> None:
        """End the effect of every rule on tasks that start later."""
        if self._subscription is not None:
            self._subscription.close()

    def observe(self) -> None:
        """Take part in every attempt from now on."""
        if self._subscription is None:
            self._subscription = observe(self)

    # ---- rules ----

    def hold(self, targets: Sequence[Target], keep: Sequence[Target]) -> HoldRule:
        """Add a rule that holds tasks."""
        for target in (*targets, *keep):
            check_target(target)
        rule = HoldRule(targets, keep)
        self._holds.append(rule)
        self.observe()
        return rule

    def end_hold(self, rule: HoldRule) -> None:
        """Remove a rule, and release the tasks that no other rule holds."""
        self._holds.remove(rule)
        for task in list(self._recording.tasks):
            if task.state == "held" and rule.holds(task) and not self._is_held(task):
                self._recording.release(task)

    def fail(
        self, target: Target, error: BaseException | type[BaseException], times: int | None, after_run: bool
    ) -> None:
        """Add a rule that makes attempts fail."""
        check_target(target)
        if not isinstance(error, BaseException) and not (isinstance(error, type) and issubclass(error, BaseException)):
            raise TypeError(_refusals.not_an_exception(error))
        if isinstance(error, type):
            error()  # if the type needs arguments, this raises here and not in the task, where it would look like a bug
        self._fails.append(FailRule(target, error, float("inf") if times is None else times, after_run))
        self.observe()

    def stub(self, target: Target, replacement: Callable[..., Any] | None) -> None:
        """Add a rule that replaces a function; it overrides the earlier rules."""
        check_target(target)
        if replacement is not None and not callable(replacement):
            raise TypeError(_refusals.not_a_replacement(replacement))
        self._stubs.insert(0, StubRule(target, replacement))
        self.observe()

    @contextmanager
    def choosing(self, keep: Sequence[Target], choose: Choose) -> Iterator[ChosenOrder]:
        """Start tasks in a chosen order until the end of the block; rules that are added in the block end with it."""
        recording = self._recording
        before = list(self._holds), [replace(rule) for rule in self._fails], list(self._stubs)
        rule = self.hold((), keep)

        def candidates() -> list[RecordedTask[Any]]:
            return [task for task in recording.tasks if task.state == "held" and not self._is_held(task, besides=rule)]

        order = recording.chosen_order = ChosenOrder(candidates, recording.release, choose)
        try:
            yield order
        finally:
            recording.chosen_order = None
            self.end_hold(rule)
            self._holds, self._fails, self._stubs = before

    def releasable(self, target: Target | None) -> list[RecordedTask[Any]]:
        """Return the tasks that are held, or will be held when their phase opens."""
        with self._recording.monitor.lock:
            return [
                task
                for task in self._recording.tasks
                if is_named_by(task, target)
                and (task.state == "held" or (task.state == "pending" and self._is_held(task)))
            ]

    def _is_held(self, task: RecordedTask[Any], *, besides: HoldRule | None = None) -> bool:
        return not task._released and any(rule.holds(task) for rule in self._holds if rule is not besides)

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
        cut = take_planned_cut()
        recorded = self._recording.find(task)
        if recorded is None:
            return await run()
        error, after_run = self._next_failure(recorded)
        if error is not None and not after_run:
            raise error
        result = await self._run(recorded, run, cut)
        if error is not None:
            raise error
        return result

    async def _run(self, task: RecordedTask[Any], run: RunAttempt, cut: Cut | None) -> Any:
        __tracebackhide__ = True
        func = None
        for rule in self._stubs:
            if is_named_by(task, rule.target):
                func = rule.replacement
                if func is None:
                    return None
                break
        if cut is None:
            return await run(func)
        return await run(cut.applied_to(task.task.func if func is None else func))

    def _next_failure(self, task: RecordedTask[Any]) -> tuple[BaseException | None, bool]:
        with self._recording.monitor.lock:
            for rule in self._fails:
                if rule.left > 0 and is_named_by(task, rule.target):
                    rule.left -= 1
                    error = rule.make_error()
                    task._injected.append(error)
                    return error, rule.after_run
        return None, False


class Holding(AbstractContextManager[None]):
    """
    Removes a rule at the end of a block.

    It is no generator, because `contextlib` assigns to the exception that leaves the block, which may be frozen.
    """

    def __init__(self, control: Control, rule: HoldRule) -> None:
        self._control = control
        self._rule = rule

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._control.end_hold(self._rule)

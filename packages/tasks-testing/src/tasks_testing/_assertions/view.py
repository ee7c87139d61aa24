"""Reading the record, and asserting what it contains."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, overload

from tasks_testing import _refusals
from tasks_testing._messages import explanation
from tasks_testing._messages.order import wrong_order
from tasks_testing._recording.call import Call, Target, check_target
from tasks_testing._recording.moment import StepLike, as_step, first_unmet
from tasks_testing._recording.record import RecordedTask, State, TaskEvent, check_states
from tasks_testing._recording.selection import Selection
from tasks_testing._text import number_of

from .expectation import Expectation, check, wait_until

R = TypeVar("R")


class TaskView(Sequence[RecordedTask[Any]]):
    """
    A part of the record. It is lazy: it shows what has been recorded by the time it is read.

    In a test without an event loop, assertions wait, for at most the timeout of the recorder: until they are met, or
    until no running task could meet them. If virtual time is automatic, they move it as far as they need. In a test
    that runs on an event loop they never wait: `await tasks_recorder.adrain()` first.

    An assertion that something did *not* happen, or happened an exact number of times, fails if it comes too early to
    decide: while a task runs, or a request is served, that could schedule more tasks.
    """

    def __init__(self, selection: Selection, timeout: float | None) -> None:
        self._selection = selection
        self._timeout = timeout

    # ---- narrowing ----

    @property
    def immediate(self) -> TaskView:
        """The tasks of `tasks.schedule()`."""
        return self.in_phase("immediate")

    @property
    def after_route(self) -> TaskView:
        """The tasks of `tasks.after_route.schedule()`."""
        return self.in_phase("after_route")

    @property
    def after_response(self) -> TaskView:
        """The tasks of `tasks.after_response.schedule()`."""
        return self.in_phase("after_response")

    def in_phase(self, phase: str) -> TaskView:
        """Return the tasks of a phase: of a request, or of a `TaskPhase` of your own with this name."""
        return self._narrow(phase=phase)

    def of(self, target: Target) -> TaskView:
        """Return the tasks that *target* names."""
        check_target(target)
        return self._narrow(targets=(*self._selection.targets, target))

    def request(self, index: int = -1) -> TaskView:
        """
        Return the tasks of one request; of the last request, unless *index* is given.

        Raises:
            AssertionError: There was no such request.
        """
        __tracebackhide__ = True
        requests = self._selection.requests()
        try:
            request = requests[index]
        except IndexError:
            raise AssertionError(explanation.no_such_request(index, requests)) from None
        return self._narrow(of_request=request)

    def in_state(self, *states: State) -> TaskView:
        """
        Return the tasks that are in one of these states when the view is read.

        Raises:
            ValueError: There is no such state.
        """
        check_states("in_state", states)
        return self._narrow(states=frozenset(states))

    def _narrow(self, **changes: Any) -> TaskView:
        return TaskView(replace(self._selection, **changes), self._timeout)

    # ---- reading ----

    @property
    def calls(self) -> list[Call[Any]]:
        """The calls in the order of scheduling: `assert view.calls == [call(send_email, "ann@x")]`."""
        tasks = self._selection.tasks()
        for task in tasks:
            task._asserted = True
        return [task.call for task in tasks]

    @property
    def events(self) -> tuple[TaskEvent, ...]:
        """The events of the tasks; those of the requests too, unless the view selects tasks by phase, name or state."""
        return tuple(self._selection.events())

    def __len__(self) -> int:
        return len(self._selection.tasks())

    def __iter__(self) -> Iterator[RecordedTask[Any]]:
        return iter(self._selection.tasks())

    @overload
    def __getitem__(self, index: int) -> RecordedTask[Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[RecordedTask[Any]]: ...

    def __getitem__(self, index: int | slice) -> RecordedTask[Any] | list[RecordedTask[Any]]:
        return self._selection.tasks()[index]

    def __repr__(self) -> str:
        states = [task.state for task in self._selection.tasks()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        name = f"{type(self).__name__} {self._selection}".rstrip()
        return f"<{name}: {number_of(len(states), 'task')}{f' ({counts})' if counts else ''}>"

    # ---- asserting ----

    @overload
    def one(self, target: Callable[..., Coroutine[Any, Any, R]]) -> RecordedTask[R]: ...

    @overload
    def one(self, target: Call[R]) -> RecordedTask[R]: ...

    @overload
    def one(self, target: Callable[..., R]) -> RecordedTask[R]: ...

    @overload
    def one(self, target: str | None = None) -> RecordedTask[Any]: ...

    def one(self, target: Target | None = None) -> RecordedTask[Any]:
        """
        Return the only task of the view, or the only task that *target* names.

        Raises:
            AssertionError: There is none, there are several, or more may come.
        """
        __tracebackhide__ = True
        return check(self._selection, Expectation(target, "been scheduled", _always, 1), self._timeout)[0]

    def assert_scheduled(self, target: Target, *, times: int | None = None) -> RecordedTask[Any]:
        """
        Assert that a task was scheduled.

        Args:
            target: Which task.

            times: The exact number of such tasks, 1 or more; `None`: one or more.

        Returns:
            The first such task.
        """
        __tracebackhide__ = True
        expectation = Expectation(target, "been scheduled", _always, _positive(times))
        return check(self._selection, expectation, self._timeout)[0]

    def assert_ran(self, target: Target, *, times: int | None = None) -> RecordedTask[Any]:
        """
        Assert that a task ran and succeeded.

        Args:
            target: Which task.

            times: The exact number of such tasks, 1 or more; `None`: one or more.

        Returns:
            The first such task.
        """
        __tracebackhide__ = True
        expectation = Expectation(target, "run", _succeeded, _positive(times))
        return check(self._selection, expectation, self._timeout)[0]

    def assert_failed(
        self,
        target: Target,
        error: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        *,
        match: str | None = None,
        times: int | None = None,
    ) -> RecordedTask[Any]:
        """
        Assert that a task failed, and has no further attempt. From then on the failure is expected.

        Args:
            target: Which task.

            error: The type of the exception of its last attempt.

            match: A regular expression that is searched in the text of the exception.

            times: The exact number of such tasks, 1 or more; `None`: one or more.

        Returns:
            The first such task.
        """
        __tracebackhide__ = True
        failure = Failure(error, match)
        done = f"failed with {explanation.show_failure(error, match)}"
        tasks = check(self._selection, Expectation(target, done, failure.is_of, _positive(times)), self._timeout)
        for task in tasks:
            task._failure_expected = True
        return tasks[0]

    def assert_not_scheduled(self, target: Target) -> None:
        """Assert that no such task was scheduled, and that no running task can schedule one any more."""
        __tracebackhide__ = True
        check(self._selection, Expectation(target, "been scheduled", _always, 0), self._timeout)

    def assert_nothing_scheduled(self) -> None:
        """Assert that no task at all was scheduled, and that no running task can schedule one any more."""
        __tracebackhide__ = True
        check(self._selection, Expectation(None, "been scheduled", _always, 0), self._timeout)

    def assert_order(self, *steps: StepLike) -> None:
        """
        Assert that events came in this order; other events may lie between them.

        Args:
            steps: Moments: `scheduled(target)`, `started(target)`, `finished(target)`, `opened(phase)`, or the name of
                a moment of a request (`RequestMoment`). A target alone means that the task started.
        """
        __tracebackhide__ = True
        wanted = [as_step(step) for step in steps]

        def concerned(task: RecordedTask[Any]) -> bool:
            return any(step.concerns(task) for step in wanted)

        def met() -> bool:
            return first_unmet(wanted, self._selection.events()) is None

        wait_until(self._selection, met, self._timeout, about=concerned, enough=met)
        unmet = first_unmet(wanted, self._selection.events())
        if unmet is not None:
            raise AssertionError(wrong_order(self._selection, wanted, unmet))
        for task in filter(concerned, self._selection.tasks()):
            task._asserted = True


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception that a task is expected to fail with."""

    error: type[BaseException] | tuple[type[BaseException], ...]
    match: str | None

    def is_of(self, task: RecordedTask[Any]) -> bool:
        """Return whether the task failed with it."""
        return (
            task.state == "failed"
            and isinstance(task.error, self.error)
            and (self.match is None or re.search(self.match, str(task.error)) is not None)
        )


def _always(_: RecordedTask[Any]) -> bool:
    return True


def _succeeded(task: RecordedTask[Any]) -> bool:
    return task.state == "succeeded"


def _positive(times: int | None) -> int | None:
    if times is not None and times < 1:
        raise ValueError(_refusals.wrong_times(times))
    return times

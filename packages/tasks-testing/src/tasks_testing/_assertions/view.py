"""Looking at what was recorded, and asserting it."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, overload

from tasks_testing._recording.call import Call, Target, check_target
from tasks_testing._recording.record import RecordedTask, State, TaskEvent
from tasks_testing._recording.selection import Part
from tasks_testing._text import number_of

from .expectation import Claim, judge, too_early, wait_until
from .order import StepLike, as_step, explain_order, first_unmet

R = TypeVar("R")


class TaskView(Sequence[RecordedTask[Any]]):
    """
    A part of what was recorded. Lazy: it shows what has been recorded when it is asked.

    Assertions in a test without an event loop wait, for at most the timeout of the recorder, until what they assert is
    true, or nothing that still runs could make it so. Inside a running event loop they never wait: there, `await
    tasks_recorder.adrain()` first. An assertion that something did *not* happen, or happened a number of times, fails
    when it comes too early to tell: while a task runs or a request is served that could schedule more.
    """

    def __init__(self, part: Part, timeout: float | None) -> None:
        self._part = part
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
        """Return the tasks of a phase; also of one that a `TaskPhase` of your own is."""
        return self._narrow(phase=phase)

    def of(self, target: Target) -> TaskView:
        """Return the tasks that *target* names."""
        check_target(target)
        return self._narrow(targets=(*self._part.targets, target))

    def request(self, index: int = -1) -> TaskView:
        """
        Return the tasks of one request; the last one, if *index* is not given.

        Raises:
            AssertionError: there was no such request.
        """
        __tracebackhide__ = True
        requests = self._part.requests()
        try:
            request = requests[index]
        except IndexError:
            recorded = "; ".join(map(str, requests)) or "no app with tasks was called while recording"
            counted = number_of(len(requests), "request")
            raise AssertionError(f"request({index}): {counted} recorded ({recorded})") from None
        return self._narrow(of_request=request)

    def in_state(self, *states: State) -> TaskView:
        """Return the tasks that are in one of these states now."""
        return self._narrow(states=frozenset(states))

    def _narrow(self, **changes: Any) -> TaskView:
        return TaskView(replace(self._part, **changes), self._timeout)

    # ---- reading ----

    @property
    def calls(self) -> list[Call[Any]]:
        """What was called, in the order of scheduling: `assert view.calls == [call(send_email, "ann@x")]`."""
        tasks = self._part.tasks()
        for task in tasks:
            task._asserted = True
        return [task.call for task in tasks]

    @property
    def events(self) -> tuple[TaskEvent, ...]:
        """What happened: to the tasks of the view, and to its requests unless it is a view of certain tasks."""
        return tuple(self._part.events())

    def __len__(self) -> int:
        return len(self._part.tasks())

    def __iter__(self) -> Iterator[RecordedTask[Any]]:
        return iter(self._part.tasks())

    @overload
    def __getitem__(self, index: int) -> RecordedTask[Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[RecordedTask[Any]]: ...

    def __getitem__(self, index: int | slice) -> RecordedTask[Any] | list[RecordedTask[Any]]:
        return self._part.tasks()[index]

    def __repr__(self) -> str:
        states = [task.state for task in self._part.tasks()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        name = f"{type(self).__name__} {self._part}".rstrip()
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
        Return the only task there is, or the only one that *target* names.

        Raises:
            AssertionError: there is none, or more than one, or there may be more soon.
        """
        __tracebackhide__ = True
        return judge(self._part, Claim(target, "been scheduled", _always, 1), self._timeout)[0]

    def assert_scheduled(self, target: Target, *, times: int | None = None) -> RecordedTask[Any]:
        """
        Assert that a task was scheduled, and return it (the first one).

        Args:
            target: Which task.

            times: How often exactly, at least 1; `None`: at least once.
        """
        __tracebackhide__ = True
        return judge(self._part, Claim(target, "been scheduled", _always, _positive(times)), self._timeout)[0]

    def assert_ran(self, target: Target, *, times: int | None = None) -> RecordedTask[Any]:
        """Assert that a task ran and succeeded, and return it (the first one); *times*: how often exactly."""
        __tracebackhide__ = True
        return judge(self._part, Claim(target, "run", _succeeded, _positive(times)), self._timeout)[0]

    def assert_failed(
        self,
        target: Target,
        error: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        *,
        match: str | None = None,
        times: int | None = None,
    ) -> RecordedTask[Any]:
        """
        Assert that a task failed for good, and return it (the first one). Its failure is expected from now on.

        Args:
            target: Which task.

            error: The type of the exception of its last attempt.

            match: A regular expression that is to be found in the text of the exception.

            times: How often exactly, at least 1; `None`: at least once.
        """
        __tracebackhide__ = True
        failure = Failure(error, match)
        claim = Claim(target, f"failed with {failure}", failure.is_that_of, _positive(times))
        tasks = judge(self._part, claim, self._timeout)
        for task in tasks:
            task._acknowledged = True
        return tasks[0]

    def assert_not_scheduled(self, target: Target) -> None:
        """Assert that no such task was scheduled, and none can come any more from what still runs."""
        __tracebackhide__ = True
        judge(self._part, Claim(target, "been scheduled", _always, 0), self._timeout)

    def assert_nothing_scheduled(self) -> None:
        """Assert that no task was scheduled at all, and none can come any more from what still runs."""
        __tracebackhide__ = True
        judge(self._part, Claim(None, "been scheduled", _always, 0), self._timeout)

    def assert_order(self, *steps: StepLike) -> None:
        """
        Assert that there are events that came in this order, whatever came in between.

        A bare target means that it started. Order is that of the events themselves, not of their times.
        """
        __tracebackhide__ = True
        wanted = [as_step(step) for step in steps]

        def concerned(task: RecordedTask[Any]) -> bool:
            return any(step.concerns(task) for step in wanted)

        def met() -> bool:
            return first_unmet(wanted, self._part.events()) is None

        wait_until(self._part, met, self._timeout, about=concerned)
        events = self._part.events()
        unmet = first_unmet(wanted, events)
        if unmet is not None:
            title = f"{self._part}: " if str(self._part) else ""
            early = too_early(self._part)
            hint = f"\n  hint: {early}: drain first" if early else ""
            raise AssertionError(f"{title}expected this order\n{explain_order(wanted, unmet, events)}{hint}")
        for task in filter(concerned, self._part.tasks()):
            task._asserted = True


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that a task is said to have failed with."""

    error: type[BaseException] | tuple[type[BaseException], ...]
    match: str | None

    def is_that_of(self, task: RecordedTask[Any]) -> bool:
        return (
            task._progress == "failed"
            and isinstance(task.error, self.error)
            and (self.match is None or re.search(self.match, str(task.error)) is not None)
        )

    def __str__(self) -> str:
        types = self.error if isinstance(self.error, tuple) else (self.error,)
        names = " or ".join(each.__name__ for each in types)
        return names if self.match is None else f"{names} matching {self.match!r}"


def _always(_: RecordedTask[Any]) -> bool:
    return True


def _succeeded(task: RecordedTask[Any]) -> bool:
    return task._progress == "succeeded"


def _positive(times: int | None) -> int | None:
    if times is not None and times < 1:
        raise ValueError("times must be 1 or more; for none at all write assert_not_scheduled()")
    return times

"""Whether an expectation about tasks is met, and whether it is too early to decide."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tasks_testing._messages import explanation
from tasks_testing._recording.call import Target, check_target
from tasks_testing._recording.record import RecordedTask, is_named_by
from tasks_testing._recording.recording import EndlessError
from tasks_testing._recording.selection import Selection
from tasks_testing._time.monitor import Steps, Wait, in_event_loop
from tasks_testing._time.real_time import monotonic


@dataclass(frozen=True, slots=True)
class Expectation:
    """A target has done something a number of times."""

    target: Target | None
    """`None`: any task."""
    done: str
    """A past participle for the message "expected X to have ...": "been scheduled", "run"."""
    holds: Callable[[RecordedTask[Any]], bool]
    """Whether one task has done it."""
    times: int | None = None
    """The exact number of tasks; `None`: one or more."""

    def found(self, selection: Selection) -> list[RecordedTask[Any]]:
        """Return the tasks that have done it."""
        return [task for task in selection.tasks() if is_named_by(task, self.target) and self.holds(task)]

    @property
    def least(self) -> int:
        """The smallest number of tasks that meets the expectation."""
        return 1 if self.times is None else self.times


def check(selection: Selection, expectation: Expectation, timeout: float | None) -> list[RecordedTask[Any]]:
    """
    Return the tasks that meet the expectation, when their number is the expected one.

    Raises:
        AssertionError: The number differs, or may still change.
    """
    __tracebackhide__ = True
    target, times = expectation.target, expectation.times
    if target is not None:
        check_target(target)
    # One or more is decided as soon as there is one; an exact number only when no more tasks can come.
    most = 0 if times is None else times
    wait_until(
        selection,
        lambda: len(expectation.found(selection)) > most,
        timeout,
        about=lambda task: is_named_by(task, target),
        enough=lambda: len(expectation.found(selection)) >= expectation.least,
    )
    found = expectation.found(selection)
    if (times is None and found) or (times == len(found) and selection.settled()):
        for task in found:
            task._asserted = True
        return found
    claim = explanation.expected(target, expectation.done, times)
    if times is not None and len(found) <= times and not selection.settled():
        raise AssertionError(explanation.undecided(selection, claim, timeout))
    claim = f"{claim}, {explanation.actual(target, expectation.done, times, len(found))}"
    if times is not None and len(found) > times:
        raise AssertionError(explanation.unwanted(selection, claim, found, times))
    raise AssertionError(explanation.missing(selection, claim, target))


def wait_until(
    selection: Selection,
    decided: Callable[[], bool],
    timeout: float | None,
    *,
    about: Callable[[RecordedTask[Any]], bool],
    enough: Callable[[], bool],
) -> None:
    """
    Wait until an expectation is decided, or until nothing changes any more. On an event loop, do not wait.

    A pending task that the expectation is *about* is waited for although its phase may never open, because another
    thread may open it. Virtual time moves, if it is automatic, until there is *enough* to meet the expectation.
    """
    if not in_event_loop():
        selection.recording.monitor.run(_waiting(selection, decided, timeout, about, enough))


def _waiting(
    selection: Selection,
    decided: Callable[[], bool],
    timeout: float | None,
    about: Callable[[RecordedTask[Any]], bool],
    enough: Callable[[], bool],
) -> Steps[None]:
    recording = selection.recording

    def quiet() -> bool:
        return decided() or (selection.settled() and not selection.may_still_open(about))

    def done() -> bool:  # in a chosen order, a task that has not started yet could change the answer
        return enough() and not recording.must_start()

    began = monotonic()
    with suppress(EndlessError):  # the message about the expectation says more
        yield from recording.moving(lambda: done() or (quiet() and not recording.can_move()), timeout)
    yield Wait(quiet, None if timeout is None else max(0.0, began + timeout - monotonic()))

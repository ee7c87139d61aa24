"""Which part of a record is looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from .call import Target, show_target
from .record import RecordedRequest, RecordedTask, State, TaskEvent, is_meant
from .recording import Recording


@dataclass(slots=True)
class Window:
    """A stretch of the record, from one event to another."""

    start: int
    end: float = inf


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a record: what a view shows."""

    recording: Recording
    phase: str | None = None
    targets: tuple[Target, ...] = ()
    of_request: RecordedRequest | None = None
    states: frozenset[State] | None = None
    window: Window | None = None

    def tasks(self) -> list[RecordedTask[Any]]:
        with self.recording.monitor.lock:
            return [task for task in self.recording.tasks if self.admits(task)]

    def requests(self) -> list[RecordedRequest]:
        with self.recording.monitor.lock:
            return [request for request in self.recording.requests if self._reaches(request, request._seq)]

    def events(self) -> list[TaskEvent]:
        with self.recording.monitor.lock:
            return [event for event in self.recording.events if self._shows(event)]

    def unsettled(self) -> list[RecordedTask[Any]]:
        """
        Return the tasks that get on by themselves, and may schedule more.

        Of the whole request, or the whole captured stretch: what runs in one phase may schedule into another.
        """
        waiting = [*self.recording.live_tasks(), *self.recording.awaiting_their_phase()]
        return [task for task in waiting if self._reaches(task.request, task._seq)]

    def unfinished_requests(self) -> list[RecordedRequest]:
        """Return the requests that are still served, and may schedule more."""
        return [request for request in self.recording.requests_in_flight() if self._reaches(request, request._seq)]

    def settled(self) -> bool:
        """Whether nothing can happen any more without the test's doing."""
        return not self.unsettled() and not self.unfinished_requests()

    def hopes_for(self, about: Callable[[RecordedTask[Any]], bool]) -> bool:
        """Whether a task waits for its phase."""
        return any(task.state == "scheduled" and not task.opened and about(task) for task in self.tasks())

    def admits(self, task: RecordedTask[Any]) -> bool:
        return (
            self._reaches(task.request, task._seq)
            and (self.phase is None or task.phase == self.phase)
            and (self.states is None or task.state in self.states)
            and all(is_meant(task, target) for target in self.targets)
        )

    def why_not(self, task: RecordedTask[Any]) -> str:
        """Say why a task is not in the part; "" if it is."""
        if self.admits(task):
            return ""
        if self.phase is not None and task.phase != self.phase:
            return "in another phase"
        if self.of_request is not None and task.request is not self.of_request:
            return f"of another request, {task.request}" if task.request else "outside of any request"
        if self.states is not None and task.state not in self.states:
            return f"in state {task.state}"
        return "outside of the captured block" if self.window else "another task than the view is of"

    def _reaches(self, request: RecordedRequest | None, seq: int) -> bool:
        if self.of_request is not None and request is not self.of_request:
            return False
        return self.window is None or self.window.start < seq < self.window.end

    def _shows(self, event: TaskEvent) -> bool:
        if event.task is not None:
            return self.admits(event.task)
        about_tasks = self.phase or self.targets or self.states is not None
        return not about_tasks and self._reaches(event.request, event.seq)

    def __str__(self) -> str:
        parts = [
            f"request {self.of_request}" if self.of_request else "",
            self.phase or "",
            *(f"of {show_target(target)}" for target in self.targets),
            " or ".join(sorted(self.states)) if self.states is not None else "",
            "captured" if self.window else "",
        ]
        return ", ".join(filter(None, parts))

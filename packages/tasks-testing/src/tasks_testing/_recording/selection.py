"""Which part of a record a view shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from .call import Target, show_target
from .record import RecordedRequest, RecordedTask, State, TaskEvent, is_named_by
from .recording import Recording


@dataclass(slots=True)
class Window:
    """The events between two sequence numbers."""

    start: int
    end: float = inf


@dataclass(frozen=True, slots=True)
class Selection:
    """A part of a record: what a view shows."""

    recording: Recording
    phase: str | None = None
    targets: tuple[Target, ...] = ()
    of_request: RecordedRequest | None = None
    states: frozenset[State] | None = None
    window: Window | None = None

    def tasks(self) -> list[RecordedTask[Any]]:
        """Return the selected tasks."""
        with self.recording.monitor.lock:
            return [task for task in self.recording.tasks if self.admits(task)]

    def requests(self) -> list[RecordedRequest]:
        """Return the selected requests."""
        with self.recording.monitor.lock:
            return [request for request in self.recording.requests if self._covers(request, request._seq)]

    def events(self) -> list[TaskEvent]:
        """Return the events of the selected tasks and requests."""
        with self.recording.monitor.lock:
            return [event for event in self.recording.events if self._shows(event)]

    def unsettled(self) -> list[RecordedTask[Any]]:
        """
        Return the tasks that go on without any further event, and may schedule more tasks.

        They are those of the whole request, or of the whole captured block: a task of one phase may schedule into
        another.
        """
        waiting = [*self.recording.live_tasks(), *self.recording.awaiting_their_phase()]
        return [task for task in waiting if self._covers(task.request, task._seq)]

    def unfinished_requests(self) -> list[RecordedRequest]:
        """Return the requests that are being served, and may schedule more tasks."""
        return [request for request in self.recording.requests_in_flight() if self._covers(request, request._seq)]

    def settled(self) -> bool:
        """Return whether nothing more happens until the test acts."""
        return not self.unsettled() and not self.unfinished_requests()

    def may_still_open(self, about: Callable[[RecordedTask[Any]], bool]) -> bool:
        """Return whether a task that *about* accepts waits for its phase, which another thread may open."""
        return any(task.state == "pending" and not task.opened and about(task) for task in self.tasks())

    def admits(self, task: RecordedTask[Any]) -> bool:
        """Return whether the task is selected."""
        return (
            self._covers(task.request, task._seq)
            and (self.phase is None or task.phase == self.phase)
            and (self.states is None or task.state in self.states)
            and all(is_named_by(task, target) for target in self.targets)
        )

    def _covers(self, request: RecordedRequest | None, seq: int) -> bool:
        if self.of_request is not None and request is not self.of_request:
            return False
        return self.window is None or self.window.start < seq < self.window.end

    def _shows(self, event: TaskEvent) -> bool:
        if event.task is not None:
            return self.admits(event.task)
        about_tasks = self.phase or self.targets or self.states is not None
        return not about_tasks and self._covers(event.request, event.seq)

    def __str__(self) -> str:
        parts = [
            f"request {self.of_request}" if self.of_request else "",
            self.phase or "",
            *(f"of {show_target(target)}" for target in self.targets),
            " or ".join(sorted(self.states)) if self.states is not None else "",
            "captured" if self.window else "",
        ]
        return ", ".join(filter(None, parts))

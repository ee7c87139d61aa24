"""Which unfinished tasks are live, and which rest until an event comes from outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks_core import PhaseInfo, Task


class LiveTasks:
    """
    The unfinished tasks, in two groups.

    A *live* task runs, or will run without any further event. A *resting* task waits for one of three events: its phase
    opens, a virtual clock moves, or the test releases it. Not thread-safe: its owner holds a lock around each call.
    """

    def __init__(self) -> None:
        self._live: dict[int, Task[Any]] = {}
        self._resting: dict[int, Task[Any]] = {}
        self._unopened: dict[int, dict[int, Task[Any]]] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Task[Any]]:
        return iter(list(self._live.values()))

    def add(self, task: Task[Any]) -> None:
        """Add a task that was just scheduled."""
        phase = task.phase
        if phase is None or phase.opened:
            self._live[task.id] = task
        else:
            self._resting[task.id] = task
            self._unopened.setdefault(id(phase), {})[task.id] = task

    def open(self, phase: PhaseInfo) -> None:
        """Wake the tasks of a phase that has opened, or never will: the latter are discarded in a moment."""
        for task in self._unopened.pop(id(phase), {}).values():
            self.wake(task)

    def rest(self, task: Task[Any]) -> None:
        """Move a live task to the resting ones."""
        if self._live.pop(task.id, None) is not None:
            self._resting[task.id] = task

    def wake(self, task: Task[Any]) -> None:
        """Move a resting task to the live ones."""
        if self._resting.pop(task.id, None) is not None:
            self._live[task.id] = task

    def remove(self, task: Task[Any]) -> None:
        """Remove a task that has finished, or that no wait is about."""
        self._live.pop(task.id, None)
        self._resting.pop(task.id, None)
        unopened = self._unopened.get(id(task.phase), {})
        if unopened.pop(task.id, None) is not None and not unopened:
            del self._unopened[id(task.phase)]

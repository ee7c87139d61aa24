"""Which tasks get on by themselves, and which rest until something else happens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks_core import Task, TaskPhase


class LiveTasks:
    """
    The tasks that are not finished, in two groups.

    A *live* task runs, or will without anybody's doing. A *resting* one waits for the opening of its phase, for a
    virtual clock to move, or for its release. Not safe for threads: whoever owns it has a lock.
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
        """Take in a task that was just scheduled."""
        phase = task.phase
        if phase is None or phase.opened:
            self._live[task.id] = task
        else:
            self._resting[task.id] = task
            self._unopened.setdefault(id(phase), {})[task.id] = task

    def open(self, phase: TaskPhase) -> None:
        """The phase of some tasks has opened, or never will."""
        for task in self._unopened.pop(id(phase), {}).values():
            self.wake(task)

    def rest(self, task: Task[Any]) -> None:
        """Note that a task cannot get on by itself."""
        if self._live.pop(task.id, None) is not None:
            self._resting[task.id] = task

    def wake(self, task: Task[Any]) -> None:
        """Note that a resting task gets on."""
        if self._resting.pop(task.id, None) is not None:
            self._live[task.id] = task

    def remove(self, task: Task[Any]) -> None:
        """Forget a finished task."""
        self._live.pop(task.id, None)
        self._resting.pop(task.id, None)
        unopened = self._unopened.get(id(task.phase), {})
        if unopened.pop(task.id, None) is not None and not unopened:
            del self._unopened[id(task.phase)]

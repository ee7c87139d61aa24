"""The order in which tasks start, chosen one task at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .record import RecordedTask


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision: which of the tasks that could start has started."""

    index: int
    """Among those that could start, in the order of scheduling: 0 is the task that was scheduled first."""
    among: int
    """How many tasks could start."""
    task: str
    """The task that has started, as text."""


Choose: TypeAlias = Callable[[Sequence[str], Sequence[Choice]], int]


class ChosenOrder:
    """
    Starts tasks one after another: the next one when no task is live.

    Args:
        candidates: Returns the tasks that could start now, in the order of scheduling.

        release: Starts a task.

        choose: Returns the index of the next task, given the candidates as text and the choices before.
    """

    def __init__(
        self,
        candidates: Callable[[], Sequence[RecordedTask[Any]]],
        release: Callable[[RecordedTask[Any]], None],
        choose: Choose,
    ) -> None:
        self._candidates = candidates
        self._release = release
        self._choose = choose
        self.choices: list[Choice] = []
        """The choices so far. Where there was only one candidate, there was no choice."""
        self.started: list[str] = []
        """The tasks in the order in which they were started, as text."""

    def can_start(self) -> bool:
        """Return whether a task waits to be started."""
        return bool(self._candidates())

    def start_next(self) -> None:
        """Start one task."""
        candidates = self._candidates()
        index = 0 if len(candidates) == 1 else self._choose(list(map(str, candidates)), self.choices)
        task = candidates[index]
        if len(candidates) > 1:
            self.choices.append(Choice(index, len(candidates), str(task)))
        self.started.append(str(task))
        self._release(task)

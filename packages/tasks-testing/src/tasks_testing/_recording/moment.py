"""How a test names a moment: of a task, of a phase, or of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from .call import Target, check_target, show_target
from .record import TERMINAL, Phase, RecordedTask, RequestMoment, TaskEvent, is_named_by

_REQUEST_MOMENTS = frozenset(get_args(RequestMoment))


@dataclass(frozen=True, slots=True)
class Step:
    """A moment that `assert_order()` looks for; `scheduled()`, `started()`, `finished()` and `opened()` make one."""

    moment: Literal["scheduled", "started", "finished", "opened"] | RequestMoment
    """Which moment."""
    target: Any = None
    """Of which task, or of which phase; `None` for a moment of a request."""

    def is_met_by(self, event: TaskEvent) -> bool:
        """Return whether *event* is the moment."""
        if self.moment == "opened":
            return event.kind == "phase_opened" and event.phase == self.target
        if self.moment == "finished":
            return event.kind in TERMINAL and event.task is not None and self.concerns(event.task)
        return event.kind == self.moment and (event.task is None or self.concerns(event.task))

    @property
    def of_task(self) -> bool:
        """Whether it is a moment of a task."""
        return self.moment in ("scheduled", "started", "finished")

    def concerns(self, task: RecordedTask[Any]) -> bool:
        """Return whether it is a moment of the task."""
        return self.of_task and is_named_by(task, self.target)

    def __str__(self) -> str:
        if self.target is None:
            return self.moment
        return f"{self.moment} {self.target if self.moment == 'opened' else show_target(self.target)}"


def scheduled(target: Target) -> Step:
    """Return the moment at which `schedule()` was called for a task."""
    check_target(target)
    return Step("scheduled", target)


def started(target: Target) -> Step:
    """Return the moment at which an attempt of a task began."""
    check_target(target)
    return Step("started", target)


def finished(target: Target) -> Step:
    """Return the moment at which a task ended, in any terminal state."""
    check_target(target)
    return Step("finished", target)


def opened(phase: Phase) -> Step:
    """Return the moment at which a phase opened."""
    return Step("opened", phase)


StepLike: TypeAlias = Step | Target | RequestMoment


def as_step(step: StepLike) -> Step:
    """Return a step: `started(target)` for a target, and the moment for the name of a moment of a request."""
    if isinstance(step, Step):
        return step
    if isinstance(step, str) and step in _REQUEST_MOMENTS:
        return Step(step)  # type: ignore[arg-type]  # it is one of them
    return started(step)


def first_unmet(steps: Sequence[Step], events: Sequence[TaskEvent]) -> int | None:
    """Return the index of the first step that does not match in order, or `None` if all match."""
    position = 0
    for index, step in enumerate(steps):
        while position < len(events) and not step.is_met_by(events[position]):
            position += 1
        if position == len(events):
            return index
        position += 1
    return None

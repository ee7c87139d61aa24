"""Assertions about what came before what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from tasks_testing._recording.call import Target, check_target, show_target
from tasks_testing._recording.record import TERMINAL, EventKind, Marker, Phase, RecordedTask, TaskEvent, is_meant
from tasks_testing._text import shorten

# How many events a message lists.
_MOST_EVENTS = 30

_MARKERS = frozenset(get_args(Marker))


@dataclass(frozen=True, slots=True)
class Step:
    """A moment that `assert_order()` looks for; made by `scheduled()`, `started()`, `finished()` and `opened()`."""

    moment: Literal["scheduled", "started", "finished", "opened"] | Marker
    target: Any = None

    def is_met_by(self, event: TaskEvent) -> bool:
        """Whether *event* is the moment."""
        if self.moment == "opened":
            return event.kind == "phase_opened" and event.phase == self.target
        if self.moment == "finished":
            return event.kind in TERMINAL and event.task is not None and self.concerns(event.task)
        return event.kind == self.moment and (event.task is None or self.concerns(event.task))

    def concerns(self, task: RecordedTask[Any]) -> bool:
        """Whether it is a moment of the task."""
        return self.moment in ("scheduled", "started", "finished") and is_meant(task, self.target)

    def __str__(self) -> str:
        if self.target is None:
            return self.moment
        return f"{self.moment} {self.target if self.moment == 'opened' else show_target(self.target)}"


def scheduled(target: Target) -> Step:
    """The moment at which `schedule()` was called for a task."""
    check_target(target)
    return Step("scheduled", target)


def started(target: Target) -> Step:
    """The moment at which an attempt of a task began."""
    check_target(target)
    return Step("started", target)


def finished(target: Target) -> Step:
    """The moment at which a task ended, in whatever way."""
    check_target(target)
    return Step("finished", target)


def opened(phase: Phase) -> Step:
    """The moment at which a phase began."""
    return Step("opened", phase)


StepLike: TypeAlias = Step | Target | Marker


def as_step(step: StepLike) -> Step:
    """Take a bare target for `started(target)`, and the name of a moment for that moment."""
    if isinstance(step, Step):
        return step
    if isinstance(step, str) and step in _MARKERS:
        return Step(step)  # type: ignore[arg-type]  # it is one of them
    return started(step)


def first_unmet(steps: Sequence[Step], events: Sequence[TaskEvent]) -> int | None:
    """Return the index of the first step for which no event is left behind those of the steps before; None: all met."""
    position = 0
    for index, step in enumerate(steps):
        while position < len(events) and not step.is_met_by(events[position]):
            position += 1
        if position == len(events):
            return index
        position += 1
    return None


def explain_order(steps: Sequence[Step], unmet: int, events: Sequence[TaskEvent]) -> str:
    """Show the order that was expected, and the one that was."""
    step = steps[unmet]
    earlier = any(step.is_met_by(event) for event in events)
    why = "it came earlier" if earlier else "it did not happen"
    expected = [
        *(f"  ok {each}" for each in steps[:unmet]),
        f"  -> {step}   {why}",
        *(f"     {each}" for each in steps[unmet + 1 :]),
    ]
    told = [event for event in events if event.kind not in _SILENT]
    actual = [f"  {shorten(show_event(event), 70)}" for event in told[-_MOST_EVENTS:]]
    if len(told) > _MOST_EVENTS:
        actual.insert(0, f"  (earlier {len(told) - _MOST_EVENTS} omitted)")
    return "\n".join([*expected, "but it was:" if told else "but nothing happened", *actual])


def show_event(event: TaskEvent) -> str:
    """Return an event in the words of the steps."""
    if event.kind == "phase_opened":
        return f"opened {event.phase}"
    if event.task is None:
        return event.kind
    return f"{event.kind} {event.task}"


_SILENT: frozenset[EventKind] = frozenset({"request_started", "held", "released"})

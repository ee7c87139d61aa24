"""The message of `assert_order()`: the expected steps, and the events that were recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from tasks_testing._recording.moment import Step
from tasks_testing._recording.record import EventKind, RequestMoment, TaskEvent
from tasks_testing._recording.selection import Selection
from tasks_testing._text import shorten

from .explanation import what_may_change

# How many events a message lists.
_MOST_EVENTS = 30

_LEFT_OUT: frozenset[EventKind] = frozenset({"held", "released"})


def wrong_order(selection: Selection, steps: Sequence[Step], unmet: int) -> str:
    """Return the message: the steps, the first of them that is *unmet*, and the events in the order of the record."""
    events, step = selection.events(), steps[unmet]
    why = "it came earlier" if any(map(step.is_met_by, events)) else "it did not happen"
    lines = [
        f"{f'{selection}: ' if str(selection) else ''}expected this order",
        *(f"  ok {each}" for each in steps[:unmet]),
        f"  -> {step}   {why}",
        *(f"     {each}" for each in steps[unmet + 1 :]),
    ]
    shown = [event for event in events if event.kind not in _LEFT_OUT]
    lines.append("but it was:" if shown else "but nothing happened")
    if len(shown) > _MOST_EVENTS:
        lines.append(f"  (earlier {len(shown) - _MOST_EVENTS} omitted)")
    lines += [f"  {shorten(_show_event(event), 70)}" for event in shown[-_MOST_EVENTS:]]
    return "\n".join([*lines, *_hints(selection, step)])


def _hints(selection: Selection, step: Step) -> Iterator[str]:
    if step.of_task and isinstance(step.target, str) and _names_no_task(selection, step.target):
        moments = ", ".join(get_args(RequestMoment))
        yield f"  hint: no task is called {step.target!r}; the moments of a request are {moments}"
    going_on = what_may_change(selection)
    if going_on:
        yield f"  hint: {going_on}: drain first"


def _names_no_task(selection: Selection, name: str) -> bool:
    return all(task.name != name for task in selection.recording.tasks)


def _show_event(event: TaskEvent) -> str:
    if event.kind == "phase_opened":
        return f"opened {event.phase}"
    if event.task is None:
        return event.kind
    return f"{event.kind} {event.task}"

"""The timeline: what happened, request by request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tasks_testing._recording.record import RecordedRequest, TaskEvent
from tasks_testing._recording.recording import Recording
from tasks_testing._text import shorten, show_error, show_where

# How many rows are shown, the latest ones, and how wide they and their names of tasks are.
_MOST_ROWS = 200
_WIDTH = 80
_SUBJECT = 36


def timeline(recording: Recording) -> str:
    """Return the timeline of a recording. Times are milliseconds since the request began, or the recording."""
    with recording.monitor.lock:
        events = list(recording.events)
    rows: list[str] = []
    for request in (*recording.requests, None):
        own = [event for event in events if event.request is request]
        rows += _block(request, own) if own else ()
    if not rows:
        return "nothing was recorded"
    omitted = len(rows) - _MOST_ROWS
    return "\n".join(rows if omitted <= 0 else [f" (earlier {omitted} omitted)", *rows[-_MOST_ROWS:]])


def _block(request: RecordedRequest | None, events: Sequence[TaskEvent]) -> Iterator[str]:
    yield " outside of requests" if request is None else shorten(f" {request}", _WIDTH)
    began = 0.0 if request is None else events[0].at
    seen: set[int] = set()
    subjects = [_subject(event, seen) for event in events]
    width = max(map(len, subjects))
    for event, subject in zip(events, subjects, strict=True):
        time = f"{f'+{(event.at - began) * 1000:.1f}':>8}"
        if event.task is None:
            yield shorten(f"{time}  {_marker(event)}", _WIDTH)
        else:
            yield from _rows(f"{time}  {event.phase or '-':<14}  {subject:<{width}}  {event.kind}", _detail(event))


def _rows(head: str, detail: str) -> Iterator[str]:
    """Return the head and the detail in one row, or in two rows if they do not fit into one."""
    line = f"{head}  {detail}".rstrip()
    if len(line) <= _WIDTH:
        yield line
    else:
        yield shorten(head, _WIDTH)
        yield shorten(f"{'':28}{detail}", _WIDTH)


def _subject(event: TaskEvent, seen: set[int]) -> str:
    """Return the task of an event: the whole call the first time, then its name."""
    task = event.task
    if task is None:
        return ""
    if task.id in seen:
        return shorten(f"#{task.id} {task.name}", _SUBJECT)
    seen.add(task.id)
    return shorten(str(task), _SUBJECT)


def _marker(event: TaskEvent) -> str:
    if event.kind == "phase_opened":
        return f"{event.phase} opened {event.detail}"
    if event.kind == "response_started" and event.request is not None and event.request.status:
        return f"response_started {event.request.status}"
    return event.kind


def _detail(event: TaskEvent) -> str:
    match event.kind:
        case "scheduled" if event.task is not None:
            return shorten(show_where(event.task.where), 50)
        case "started":
            return f"attempt {event.attempt}" if event.attempt > 1 else ""
        case "retrying" if event.error is not None:
            return f"{event.detail}, after {show_error(event.error, 28)}"
        case "failed":
            return show_error(event.error, 50)
    return event.detail

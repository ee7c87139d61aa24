"""
Records with an observer what happens in each request and its tasks, and shows it as text.

The demo reads the record, and `/timeline` returns it. The rest of the shop does not need it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, TextIO

from tasks_core import DurableTask, Outcome, PhaseInfo, Task, TaskObserver, TaskState, durable_context, observe
from tasks_fastapi import RequestOrigin

_request_number: ContextVar[int | None] = ContextVar("_request_number", default=None)


# ---- recording ----


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the record."""

    at: float = field(default_factory=time.monotonic)
    kind: str
    """An event of the request or of a task, by its name in `TaskObserver`, or `log`."""
    text: str
    request: int | None = field(default_factory=_request_number.get)
    task: int | None = None
    name: str = ""
    phase: str = ""


class Recorder(TaskObserver, logging.Handler):
    """Writes the events of tasks and requests, and the lines of the log, to a file: one JSON object a line."""

    def __init__(self, file: TextIO) -> None:
        super().__init__()
        self._file = file
        self._file_lock = Lock()  # tasks are scheduled, and lines are logged, from threads as well
        self._numbers = count(1)
        self._requests_of_keys: dict[str, int | None] = {}

    def origin_event(self, origin: object, event: str) -> None:
        """Record a step of a request."""
        if isinstance(origin, RequestOrigin):
            if event == "request_started":
                _request_number.set(next(self._numbers))
            self._write(Event(kind=event, text=f"{origin.method} {origin.path} → {origin.status}"))

    def phase_opened(self, phase: PhaseInfo, outcome: Outcome) -> None:
        """Record the opening of a phase."""
        self._write(Event(kind="phase_opened", text=f"{phase.name} opens", phase=phase.name))

    def task_scheduled(self, task: Task[Any]) -> None:
        """Record that a task was accepted."""
        self._write_task("task_scheduled", task, "is scheduled", self._request_of(task))

    def task_started(self, task: Task[Any]) -> None:
        """Record the start of an attempt, or of the submission of a durable task."""
        if isinstance(task, DurableTask):
            self._write_task("task_started", task, "to PostgreSQL")
            return
        attempt = "starts" if task.attempts == 1 else f"starts attempt {task.attempts}"
        immediate = _phase_of(task) == "immediate"
        self._write_task("task_started", task, f"{attempt} (immediate)" if immediate else attempt)

    def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
        """Record that an attempt failed and another one follows."""
        text = f"fails in attempt {task.attempts}: {type(exception).__name__}; next attempt in {delay:g} s"
        self._write_task("task_retrying", task, text)

    def task_finished(self, task: Task[Any]) -> None:
        """Record the end of a task. A durable task ends here when it is stored; the run of a worker is another task."""
        reason = task.reason or (task.exception and type(task.exception).__name__)
        state = "is stored" if isinstance(task, DurableTask) and task.state is TaskState.SUCCEEDED else task.state
        self._write_task("task_finished", task, f"{state}: {reason}" if reason else state)

    def emit(self, record: logging.LogRecord) -> None:
        """Record a line of the log."""
        self._write(Event(kind="log", text=record.getMessage(), name=record.name))

    def _request_of(self, task: Task[Any]) -> int | None:
        """Return the number of the request that scheduled a task; a run of a worker has it by the key of the call."""
        if isinstance(task, DurableTask):
            self._requests_of_keys[task.call.idempotency_key] = _request_number.get()
        try:
            return self._requests_of_keys.get(durable_context().idempotency_key)
        except LookupError:
            return _request_number.get()

    def _write_task(self, kind: str, task: Task[Any], text: str, request: int | None = None) -> None:
        name = f"submit {task.call.name}" if isinstance(task, DurableTask) else task.name
        self._write(Event(kind=kind, text=text, request=request, task=task.id, name=name, phase=_phase_of(task)))

    def _write(self, event: Event) -> None:
        # One short line to the cache of the operating system, which does not block the event loop.
        with self._file_lock:
            self._file.write(json.dumps(asdict(event)) + "\n")
            self._file.flush()


def _phase_of(task: Task[Any]) -> str:
    return "" if task.phase is None else task.phase.name


@contextmanager
def record(path: Path, loggers: Iterable[str]) -> Iterator[None]:
    """Write a new record to *path* until the block ends, with the lines of these loggers."""
    with path.open("w", encoding="utf-8") as file:
        recorder = Recorder(file)
        for name in loggers:
            logging.getLogger(name).addHandler(recorder)
        try:
            with observe(recorder):
                yield
        finally:
            for name in loggers:
                logging.getLogger(name).removeHandler(recorder)


# ---- reading ----


@dataclass
class Timeline:
    """What happened in one request."""

    title: str = ""
    events: list[Event] = field(default_factory=list)

    def time_of(self, kind: str, task: str = "") -> float | None:
        """Return when an event of the request, or of the task of this name, happened for the last time."""
        times = [event.at for event in self.events if event.kind == kind and event.name == task]
        return times[-1] if times else None

    def text_of(self, kind: str, task: str) -> str:
        """Return the text of the last event of this kind of the task."""
        texts = [event.text for event in self.events if event.kind == kind and event.name == task]
        return texts[-1] if texts else ""

    @property
    def tasks(self) -> set[str]:
        """Return the names of the tasks."""
        return {event.name for event in self.events if event.kind == "task_scheduled"}

    @property
    def finished(self) -> bool:
        """Return whether the request and all its tasks have ended."""
        scheduled = {event.task for event in self.events if event.kind == "task_scheduled"}
        ended = {event.task for event in self.events if event.kind == "task_finished"}
        return self.time_of("request_finished") is not None and scheduled == ended


def read_events(path: Path) -> list[Event]:
    """Return the events of a record that may still grow."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [Event(**json.loads(line)) for line in lines if line.endswith("\n")]


def timelines(events: Iterable[Event]) -> list[Timeline]:
    """Return the events by request, in the order in which the requests arrived."""
    by_request: dict[int, Timeline] = {}
    request_of_task: dict[int, int] = {}
    for event in events:
        number = event.request
        if event.task is not None:
            if event.kind == "task_scheduled" and number is not None:
                request_of_task[event.task] = number
            number = request_of_task.get(event.task)
        if number is None:
            continue
        timeline = by_request.setdefault(number, Timeline())
        timeline.events.append(event)
        if event.kind.startswith("re"):
            timeline.title = event.text
    return list(by_request.values())


# ---- showing ----

_MOMENTS = {
    "request_started": "REQUEST ARRIVES",
    "route_returned": "ENDPOINT HAS RETURNED",
    "response_sent": "LAST BYTE IS SENT",
}
_MARKS = {"task_started": "▶", "task_retrying": "↻", "task_finished": "■"}
_COLOURS = {"response_sent": "1", "request_started": "1", "route_returned": "1", "task_started": "36"}


def render(timeline: Timeline, *, width: int = 98, colour: bool = False) -> str:
    """Return a timeline as a table: each event with the milliseconds since the request arrived."""
    arrival = timeline.time_of("request_started")
    phases = {event.phase for event in timeline.events if event.kind == "task_started"}
    events = [event for event in timeline.events if _is_shown(event, phases)]
    return "\n".join([timeline.title, *(row(event, arrival, width=width, colour=colour) for event in events)])


def row(event: Event, since: float | None, *, width: int = 98, colour: bool = False) -> str:
    """Return a line of a table: the milliseconds since a moment, and what happened, cut to *width* characters."""
    time_since = "" if since is None else f"{(event.at - since) * 1000:.1f} ms"
    line = f"{time_since:>12}   {_describe(event)}"
    line = line if len(line) <= width else f"{line[: width - 4]} ..."
    code = "32" if event.text.startswith("succeeded") else _COLOURS.get(event.kind)
    return f"\033[{code}m{line}\033[0m" if colour and code else line


def _describe(event: Event) -> str:
    if event.kind in _MOMENTS:
        return f"── {_MOMENTS[event.kind]}"
    if event.kind in _MARKS:
        return f"     {_MARKS[event.kind]} {event.name:<24} {event.text}"
    return f"   {event.text}"


def _is_shown(event: Event, phases: set[str]) -> bool:
    if event.kind == "phase_opened":
        return event.phase in phases and event.phase != "immediate"
    if event.kind == "log":
        return event.name.startswith("shop")
    return event.kind in _MOMENTS or event.kind in _MARKS

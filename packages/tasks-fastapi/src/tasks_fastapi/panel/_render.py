"""The page as HTML."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from tasks_core import PeriodicTask, Task, TaskScheduler
from tasks_core.engines import DurableState, QueueStatistics, StoredTask, StoredTaskDetails, StoredTaskPage

from ._history import History
from ._html import Child, Html, inside, tag

# Running tasks that are listed.
_LISTED = 50
_STATES = [state.value for state in DurableState if state is not DurableState.UNKNOWN]


def page(title: str, parts: dict[str, Html], stored: Html | None) -> str:
    """Return the whole page. *parts* are replaced while it is open."""
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="robots", content="noindex"),
        tag("title", f"Tasks of {title}"),
        tag("link", rel="stylesheet", href="style.css"),
        tag("script", src="script.js", defer=True),
    )
    body = (
        tag("a", "Skip to the tasks", href="#main", class_="skip"),
        tag(
            "header",
            tag("h1", f"Tasks of {title}"),
            tag("span", f"process {os.getpid()}", class_="dim"),
            tag("span", "connecting", id="live", class_="dim", role="status"),
        ),
        tag("main", *(tag("section", html, id=id_) for id_, html in parts.items()), stored, id="main", tabindex="-1"),
    )
    return "<!doctype html>" + tag("html", tag("head", *head), tag("body", *body), lang="en")


# ---- this process ----


def process(scheduler: TaskScheduler) -> Html:
    """Return what runs in this process, and what waits."""
    numbers = scheduler.statistics()
    tasks = scheduler.tasks
    running = [task for task in tasks if task.state.value in ("running", "retrying")]
    phases = Counter(
        "no phase" if task.phase is None else task.phase.name for task in tasks if task.state.value == "pending"
    )
    return inside(
        (
            tag("h2", "This process"),
            _numbers(
                {
                    "running": numbers.running,
                    "pending": numbers.pending,
                    "retrying": numbers.retrying,
                    "succeeded": numbers.succeeded,
                    "failed": numbers.failed,
                    "oldest": _duration(numbers.oldest_age),
                }
            ),
            tag("p", "Pending by phase: ", ", ".join(f"{name} {count}" for name, count in phases.items()))
            if phases
            else None,
            _table(("Task", "State", "Age", "Attempt", "Scheduled"), map(_running_row, running[:_LISTED]))
            if running
            else None,
            tag("p", f"and {len(running) - _LISTED} more", class_="dim") if len(running) > _LISTED else None,
            _periodic(list(scheduler.periodic_tasks.values())),
        )
    )


def _running_row(task: Task[Any]) -> tuple[Child, ...]:
    return (
        task.name,
        task.state.value,
        _duration(task.age),
        task.attempts,
        (
            tag("span", task.where, class_="dim"),
            " ",
            _button("cancel_memory", "Cancel", f"Cancel {task.name}", id=str(task.id)),
        ),
    )


def _periodic(periodic: Sequence[PeriodicTask[Any]]) -> Html | None:
    if not periodic:
        return None
    rows = ((one.name, "-" if one.next_at is None else _moment(one.next_at)) for one in periodic)
    return inside((tag("h2", "Periodic tasks"), _table(("Task", "Next run"), rows)))


def troubles(history: History) -> Html:
    """Return the last failures with their tracebacks, and the last warnings."""
    failures = [
        tag(
            "details",
            tag("summary", tag("b", one.name), f" {one.error} ", tag("span", _moment(one.at), class_="dim")),
            tag("pre", one.traceback),
        )
        for one in history.failures
    ]
    warnings = (
        (_moment(one.at), tag("span", one.level, class_="bad" if one.level == "ERROR" else "warn"), one.text)
        for one in history.warnings
    )
    return inside(
        (
            tag("h2", "Last failures of this process"),
            failures or tag("p", "None", class_="dim"),
            tag("h2", "Last warnings of this process"),
            _table(("At", "Level", "Line"), warnings) if history.warnings else tag("p", "None", class_="dim"),
        )
    )


# ---- durable queues ----


def queues(statistics: Sequence[QueueStatistics], problem: str | None, history: History) -> Html:
    """Return the numbers of the durable queues."""
    head = ("Queue", "Waiting", "Lately", "Oldest", "Running", "Delayed", "Failed", "Ended/s", "Workers", "Paused")
    rows = (
        (
            one.queue,
            _bounded(one.waiting),
            _picture(history.waiting.get(one.queue, ())),
            tag("span", _duration(one.oldest_waiting), class_="warn" if (one.oldest_waiting or 0) > 60 else None),
            _bounded(one.running),
            _bounded(one.delayed),
            tag("span", _bounded(one.failed), class_="bad" if one.failed else None),
            f"{one.ended_per_second:.3g}",
            (
                one.workers_alive,
                tag("span", f" ({one.workers_silent} silent)", class_="bad") if one.workers_silent else None,
            ),
            _pause(one),
        )
        for one in statistics
    )
    return inside(
        (
            tag("h2", "Durable queues"),
            tag("p", f"These numbers are old: {problem}", class_="bad", role="alert") if problem else None,
            _table(head, rows),
        )
    )


def _pause(one: QueueStatistics) -> Child:
    do, label = ("resume", "Resume") if one.paused else ("pause", "Pause")
    names = [
        (tag("span", name), " ", _button("resume", "Resume", f"Resume {name}", queue=one.queue, name=name))
        for name in one.paused_names
    ]
    return (_button(do, label, f"{label} {one.queue}", queue=one.queue), names)


def _picture(values: Iterable[int]) -> Html:
    numbers = list(values)
    top = max([*numbers, 1])
    step = 118 / max(len(numbers) - 1, 1)
    points = " ".join(f"{1 + step * n:.1f},{26 - 24 * value / top:.1f}" for n, value in enumerate(numbers))
    label = (
        f"Waiting tasks over time: {numbers[0]} to {numbers[-1]}, {max(numbers)} at most" if numbers else "No numbers"
    )
    return tag("svg", tag("polyline", points=points), viewBox="0 0 120 28", role="img", aria_label=label)


# ---- stored tasks ----


def stored(found: StoredTaskPage, query: dict[str, str], shown: StoredTaskDetails | None) -> Html:
    """Return the stored tasks of a filter, and one of them in detail."""
    states = (tag("option", state, value=state, selected=state == query.get("state")) for state in ["", *_STATES])
    rows = (_stored_row(task, query) for task in found.tasks)
    return tag(
        "section",
        tag("h2", "Stored tasks"),
        tag(
            "form",
            tag("label", "State ", tag("select", *states, name="state", aria_label="State")),
            tag("label", "Name ", tag("input", name="name", value=query.get("name"), aria_label="Name")),
            tag("label", "Error ", tag("input", name="error", value=query.get("error"), aria_label="Error")),
            tag("button", "Show"),
            class_="filter",
            method="get",
            action="./",
        ),
        None if shown is None else _details(shown),
        _table(("Id", "Task", "State", "Queue", "Attempts", "Age", "Error", "Actions"), rows)
        if found.tasks
        else tag("p", "No such task", class_="dim"),
        tag("p", tag("a", "Next page", href=_link(query, after=found.after))) if found.after is not None else None,
        id="stored",
    )


def _stored_row(task: StoredTask, query: dict[str, str]) -> tuple[Child, ...]:
    label = f"task {task.id}, {task.name}"
    age = None if task.submitted_at is None else (datetime.now(UTC) - task.submitted_at).total_seconds()
    buttons: list[Child] = []
    if task.state in (DurableState.FAILED, DurableState.CANCELLED):
        buttons = [
            _button("retry", "Retry", f"Retry {label}", id=task.id),
            _button("discard", "Discard", f"Discard {label}", id=task.id),
        ]
    elif task.state in (DurableState.PENDING, DurableState.RUNNING):
        buttons = [_button("cancel", "Cancel", f"Cancel {label}", id=task.id)]
    return (
        tag("a", task.id, href=_link(query, task=task.id)),
        task.name,
        tag("span", task.state.value, class_="bad" if task.state is DurableState.FAILED else None),
        task.queue,
        task.attempts,
        _duration(age),
        task.error or "-",
        [(button, " ") for button in buttons],
    )


def _details(shown: StoredTaskDetails) -> Html:
    task = shown.task
    fields: dict[str, Child] = {"key": task.key, "queue": task.queue, "attempts": task.attempts}
    if shown.reason is not None:
        fields["reason"] = shown.reason
    for name in ("progress", "result", "arguments"):
        value = getattr(shown, name)
        if value is not None:
            fields[name] = json.dumps(dict(value) if name == "arguments" else value, ensure_ascii=False)
    events = ((_moment(event.at), event.type) for event in shown.events)
    errors = [
        tag(
            "details",
            tag("summary", f"Attempt {one.attempt}: {one.error}"),
            tag("pre", one.traceback or "No traceback"),
        )
        for one in shown.errors
    ]
    return tag(
        "div",
        tag("h2", f"Task {task.id}, {task.name}: {task.state.value}"),
        _numbers(fields),
        _table(("At", "Event"), events),
        errors,
    )


# ---- parts ----


def _numbers(values: dict[str, Child]) -> Html:
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in values.items()))


def _table(head: Sequence[str], rows: Iterable[Sequence[Child]]) -> Html:
    body = (
        tag("tr", *(tag("td", tag("span", cell), data_label=name) for name, cell in zip(head, row, strict=True)))
        for row in rows
    )
    return tag("table", tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))), tag("tbody", *body))


def _button(do: str, text: str, label: str, **fields: str) -> Html:
    hidden = (tag("input", type="hidden", name=name, value=value) for name, value in {"do": do, **fields}.items())
    return tag("form", *hidden, tag("button", text, aria_label=label), method="post", action="act")


def _link(query: dict[str, str], **more: str | None) -> str:
    return "./?" + urlencode({**query, **{name: value for name, value in more.items() if value is not None}})


def _bounded(count: int) -> str:
    return f"{count:,}+" if count >= 10_000 else f"{count:,}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.1f} s"


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"

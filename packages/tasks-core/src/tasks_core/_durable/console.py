"""What the command for operators prints: tables and sentences for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from .operate import QueueStatistics, StoredTask, StoredTaskDetails

# Characters of an error in a table; `show` prints all of it.
_ERROR_WIDTH = 60


def write(text: str) -> None:
    """Print to standard output."""
    print(text)  # noqa: T201  what the command is for


def write_json(value: Any) -> None:
    """Print as JSON: dataclasses as objects, moments in ISO 8601."""
    write(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else asdict(value)


def visible(text: str) -> str:
    """Return the text without characters that control a terminal: names and errors are data of the application."""
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Return lines of columns, of which those with the numbers *right* end at their right edge."""
    lines = [list(head), *([visible(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    ends = frozenset(right)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in ends else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def duration(seconds: float | None) -> str:
    """Return a length of time in its largest unit: `45 s`, `3 min`, `2.5 h`, `4 d`."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _age(moment: datetime | None) -> str:
    return duration(None if moment is None else max(0.0, (datetime.now(UTC) - moment).total_seconds()))


def statistics_table(statistics: Sequence[QueueStatistics]) -> str:
    """Return the numbers of queues."""
    return table(
        ("QUEUE", "WAITING", "OLDEST", "RUNNING", "DELAYED", "FAILED", "ENDED/S", "WORKERS", "PAUSED"),
        (
            (
                one.queue,
                str(one.waiting),
                duration(one.oldest_waiting),
                str(one.running),
                str(one.delayed),
                str(one.failed),
                f"{one.ended_per_second:.3g}",
                f"{one.workers_alive}" + (f" ({one.workers_silent} silent)" if one.workers_silent else ""),
                "all" if one.paused else ", ".join(one.paused_names) or "-",
            )
            for one in statistics
        ),
        right=range(1, 7),
    )


def tasks_table(tasks: Sequence[StoredTask]) -> str:
    """Return stored tasks, one a line."""
    return table(
        ("ID", "STATE", "NAME", "QUEUE", "ATTEMPTS", "AGE", "ERROR", "KEY"),
        (
            (
                task.id,
                task.state.value,
                task.name,
                task.queue,
                str(task.attempts),
                _age(task.submitted_at),
                _short(task.error),
                task.key,
            )
            for task in tasks
        ),
        right=(0, 4, 5),
    )


def _short(error: str | None) -> str:
    if error is None:
        return "-"
    return error if len(error) <= _ERROR_WIDTH else error[: _ERROR_WIDTH - 1] + "…"


def details(shown: StoredTaskDetails) -> str:
    """Return all that is known of a task, over several lines."""
    task = shown.task
    fields = {
        "key": task.key,
        "queue": task.queue,
        "attempts": str(task.attempts),
        "reason": shown.reason,
        "due": None if task.due_at is None else _moment(task.due_at),
        "progress": None if shown.progress is None else _json(shown.progress),
        "result": None if shown.result is None else _json(shown.result),
        "headers": _json(dict(shown.headers)) if shown.headers else None,
        "arguments": None if shown.arguments is None else _json(dict(shown.arguments)),
    }
    lines = [f"Task {task.id}, {visible(task.name)}: {task.state.value}"]
    lines += [f"  {name:<9} {visible(text)}" for name, text in fields.items() if text is not None]
    lines += [f"  {_moment(event.at)} {event.type}" for event in shown.events]
    for error in shown.errors:
        ended = datetime.fromtimestamp(error.ended, UTC)
        lines.append(f"  attempt {error.attempt}, {_moment(ended)}: {visible(error.error)}")
        lines += [f"    {visible(line)}" for line in error.traceback.splitlines()]
    return "\n".join(lines)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


class Progress:
    """Says on standard error how far a long action is, on one line of a terminal."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._written = False

    def __call__(self, count: int) -> None:
        if sys.stderr.isatty():
            self._written = True
            print(f"\r{self._doing} {count:,}", end="", file=sys.stderr, flush=True)  # noqa: T201  for the terminal

    def end(self) -> None:
        """End the line."""
        if self._written:
            print(file=sys.stderr)  # noqa: T201  for the terminal

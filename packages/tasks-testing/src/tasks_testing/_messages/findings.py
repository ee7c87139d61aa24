"""What the checks at the end of a test have found."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from tasks_testing._recording.record import RecordedTask, code_for
from tasks_testing._text import number_of, show_where

# How many frames of the traceback of a task are shown, the innermost ones.
_FRAMES = 3


def unexpected_failures(failed: Sequence[RecordedTask[Any]]) -> str:
    first = failed[0]
    what = f"{code_for(first)}, {type(first.error).__name__}"
    return "\n".join(
        [
            f"{number_of(len(failed), 'background task')} failed, and the test does not expect it",
            *(line for task in failed for line in _describe_failure(task)),
            f"  hint: where it should fail, write tasks_recorder.assert_failed({what});",
            "        failures='ignore' turns this check off, for a test (marker) or for all (ini file)",
        ]
    )


def not_asserted(tasks: Sequence[RecordedTask[Any]]) -> str:
    return "\n".join(
        [
            f"{number_of(len(tasks), 'task')} not asserted by the test",
            *map(_describe, tasks),
            "  hint: assert them; strict=False allows tasks that no assertion covers",
        ]
    )


def not_attributed(tasks: Iterable[str]) -> str:
    return "\n".join(
        [
            "several recorders are active side by side, and cannot tell to which of them these tasks belong",
            *(f"  {task}" for task in tasks),
            "  hint: run tests that record tasks one after another, or in separate processes",
        ]
    )


def leaks(live: Sequence[RecordedTask[Any]]) -> str:
    return "\n".join(
        [
            f"{number_of(len(live), 'task')} still running at the end of the test",
            *map(_describe, live),
            "  hint: wait for it with tasks_recorder.drain() or 'await tasks_recorder.adrain()',",
            f"        or allow it to run on: tasks_recorder.allow_running({code_for(live[0])})",
        ]
    )


def closed_sessions(tasks: Sequence[RecordedTask[Any]]) -> str:
    return "\n".join(
        [
            f"{number_of(len(tasks), 'task')} used a database session that its request had closed",
            *map(_describe, tasks),
            "  hint: SQLAlchemy opens it again, and its connection is missing in the pool. Give the task a session of",
            "        its own, session: SessionDep = Provided; close_resets_only=False makes the use an error",
        ]
    )


def lost(task: RecordedTask[Any]) -> str:
    return (
        f"{task} was {task.state} when its app shut down: {task.reason}. "
        "Drain first: tasks_recorder.drain(), or 'await tasks_recorder.adrain()'"
    )


def _describe(task: RecordedTask[Any]) -> str:
    return f"  {task}  {task.phase or '-'}  {task.state}, scheduled at {show_where(task.where)}"


def _describe_failure(task: RecordedTask[Any]) -> Iterable[str]:
    yield _describe(task)
    error = task.error
    lines = [] if error is None else traceback.format_exception(type(error), error, error.__traceback__, -_FRAMES)
    for line in "".join(lines).splitlines():
        if line != "Traceback (most recent call last):":
            yield f"    {line}"

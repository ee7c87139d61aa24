"""Waits of the recorder that end without success, and steps that cannot be taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks_testing._recording.call import Target, show_target
from tasks_testing._recording.record import RecordedTask, State, code_for, is_named_by
from tasks_testing._recording.recording import MOST_JUMPS, Recording
from tasks_testing._refusals import HELD_UNTIL_TEST_END
from tasks_testing._text import number_of

from .tables import list_unsettled, waits_for


def not_drained(recording: Recording, method: str, timeout: float | None, tasks: Sequence[RecordedTask[Any]]) -> str:
    listed = list_unsettled(recording, tasks)
    message = f"{method}() waited {timeout:g} s, and {number_of(len(tasks), 'task')} not ended\n{listed}"
    running = [task for task in tasks if task.state == "running" and not waits_for(recording, task)]
    if not running:
        return message
    loops = " and ".join(f"tasks_recorder.allow_running({name})" for name in dict.fromkeys(map(code_for, running)))
    return f"{message}\n  hint: for a task that never ends, such as a loop, write {loops}"


def not_reached(
    recording: Recording, method: str, target: Target, state: State, timeout: float | None, *, in_time: bool
) -> str:
    waited = "" if in_time else f" in {timeout:g} s"
    named = [task for task in recording.tasks if is_named_by(task, target)]
    listed = list_unsettled(recording, named or recording.live_tasks()) or "  nothing was scheduled"
    return f"{method}(): {show_target(target)} did not reach the state {state!r}{waited}\n{listed}"


def endless(method: str, tasks: Sequence[RecordedTask[Any]]) -> str:
    """Return the message about tasks that still wait when virtual time has moved too often."""
    names = list(dict.fromkeys(map(code_for, tasks)))
    allow = " and ".join(f"tasks_recorder.allow_running({name})" for name in names)
    return (
        f"{method}() moved virtual time {MOST_JUMPS} times, and {', '.join(names)} still waits. "
        f"If it schedules itself again, or never ends, write {allow}, "
        "or move the time by hand, with virtual_time(auto=False) and clock.advance()"
    )


def held_up(recording: Recording, seconds: float, timeout: float | None) -> str:
    """Return the message of `clock.advance()` about tasks that run for too long."""
    tasks = recording.live_tasks()
    message = f"clock.advance() waited {timeout:g} s of real time, and tasks still run"
    listed = list_unsettled(recording, tasks)
    timed = any(task.task.config.timeout is not None for task in tasks)
    hint = f"to bring timeouts about, write clock.advance({seconds:g}, while_running=True)"
    return "\n".join([message, listed, *([f"  hint: {hint}"] if timed else [])])


def not_cleared(recording: Recording, tasks: Sequence[RecordedTask[Any]]) -> str:
    return f"clear() came too early, {number_of(len(tasks), 'task')} not ended\n{list_unsettled(recording, tasks)}"


def not_released(recording: Recording, target: Target | None) -> str:
    what = "anything" if target is None else show_target(target)
    named = [task for task in recording.tasks if is_named_by(task, target)]
    if any(task.reason == HELD_UNTIL_TEST_END for task in named):
        why = "its app has shut down; release inside the 'with TestClient(app)' block"
    elif named:
        why = f"it is {named[-1].state}, not held"
    else:
        why = "no such task was scheduled"
    return f"cannot release {what}: {why}"


def durable_not_ended(
    recording: Recording, method: str, timeout: float | None, tasks: Sequence[RecordedTask[Any]]
) -> str:
    return f"{method}() waited {timeout:g} s, and a durable task has not ended\n{list_unsettled(recording, tasks)}"

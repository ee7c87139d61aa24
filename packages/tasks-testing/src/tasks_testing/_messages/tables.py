"""Lists of tasks, as messages show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks_core.testing import event_loop_runs

from tasks_testing._recording.durable_run import PHASE
from tasks_testing._recording.record import RecordedTask, code_for
from tasks_testing._recording.recording import Recording
from tasks_testing._text import number_of, shorten, show_where

# How many tasks a message lists, and how wide its lines are behind the margin of pytest.
_MOST_TASKS = 10
_WIDTH = 72


def table(rows: Sequence[tuple[RecordedTask[Any], str]], *, nearest: bool = False) -> list[str]:
    """List tasks with remarks, one task a line; a remark that does not fit has lines of its own."""
    shown = rows[:_MOST_TASKS]
    calls = [shorten(str(task), 40) for task, _ in shown]
    width = max(map(len, calls), default=0)
    phase_width = max((len(task.phase or "-") for task, _ in shown), default=0)
    lines: list[str] = []
    for index, ((task, remark), call) in enumerate(zip(shown, calls, strict=True)):
        label = ("closest:" if nearest else "recorded:") if index == 0 else "also:" if nearest and index == 1 else ""
        line = f"  {label:<10}{call:<{width}}  {task.phase or '-':<{phase_width}}  {task.state}"
        if remark and len(line) + len(remark) + 2 <= _WIDTH:
            lines.append(f"{line}  {remark}")
        else:
            lines += [line, *(f"{'':14}{part}" for part in remark.splitlines() or [remark] if part)]
    if len(rows) > len(shown):
        lines.append(f"  {'':10}and {number_of(len(rows) - len(shown), 'more task')}")
    return lines


def list_unsettled(recording: Recording, tasks: Sequence[RecordedTask[Any]]) -> str:
    """List tasks that have not ended, each with what it waits for if that is known."""
    lines = []
    for task in tasks[:_MOST_TASKS]:
        lines.append(f"  {shorten(str(task), 50)}  {task.state}, scheduled at {show_where(task.where)}")
        reason = waits_for(recording, task)
        if reason:
            lines.append(f"      {reason}")
    if len(tasks) > _MOST_TASKS:
        lines.append(f"  and {number_of(len(tasks) - _MOST_TASKS, 'more task')}")
    return "\n".join(lines)


def waits_for(recording: Recording, task: RecordedTask[Any]) -> str:
    """Return the event that the task waits for and that needs the test; "" if there is none."""
    if task.phase == PHASE and task.state == "retrying":
        return "it is snoozed: the next tasks_recorder.run_durable() runs it again"
    if not event_loop_runs(task.task):
        return (
            "the event loop of its scheduler does not run: start the scheduler on the event loop of the test, "
            "as the fixture tasks_scheduler does"
        )
    name = code_for(task)
    due = recording.queue.due_at(task.task)
    if task.state == "held":
        return f"it is held: tasks_recorder.release({name}) starts it"
    if due is not None:
        return f"it waits for virtual time, until {due:g} s: drain() or clock.advance({due - recording.queue.now():g})"
    if task.state == "retrying" and not recording.virtual:
        return "it waits in real time for its next attempt; with virtual_time=True (marker) that takes none"
    if task.state == "pending" and task.opened and task.delay and not recording.virtual:
        return "it waits in real time for the end of its delay; with virtual_time=True (marker) that takes none"
    if task.state == "running" and recording.virtual and task.task.config.timeout is not None:
        advance = f"clock.advance({task.task.config.timeout:g}, while_running=True)"
        return f"virtual time stands still while it runs; {advance} brings its timeout about"
    if task.state == "pending" and not task.opened:
        if task.request is None or task.request.finished:
            return f"its phase {task.phase!r} has not been opened"
        what = (
            "close the WebSocket" if task.request.method == "WEBSOCKET" else "read the response to its end, or close it"
        )
        return f"it waits for {task.phase} of {task.request}, which is still served: {what}"
    return ""

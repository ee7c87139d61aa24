"""The texts of failing assertions: what was asked, what came nearest, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ._call import Call, Target, base_function, show_difference, target_function
from ._monitor import in_event_loop
from ._record import RecordedTask, is_meant
from ._recording import HELD_TO_THE_END, Recording
from ._show import function_name, number_of, shorten, show_error, show_where

# How many tasks a message lists, and how wide its lines are behind the margin that pytest puts before them.
_MOST_TASKS = 10
_WIDTH = 72

DRAIN_FIRST = "'await tasks_recorder.adrain()' first"


def explain(recording: Recording, claim: str, target: Target | None, inside: Sequence[RecordedTask[Any]]) -> str:
    """
    Build the message of an assertion about *target* that failed.

    *inside*: the tasks that the assertion looked at; the message tells of all.
    """
    tasks = sorted(recording.tasks, key=lambda task: _distance(task, target, inside))
    lines = [claim, *table([(task, note(task, target, inside)) for task in tasks], nearest=_is_near(tasks, target))]
    hint = _hint(recording, tasks, target, inside)
    return "\n".join([*lines, f"  hint: {hint}"])


def explain_unwanted(claim: str, found: Sequence[RecordedTask[Any]]) -> str:
    """Build the message of an assertion that failed because of tasks that it did not expect."""
    rows = [(task, f"scheduled at {show_where(task.where)}") for task in found]
    return "\n".join([claim, *table(rows)])


def table(rows: Sequence[tuple[RecordedTask[Any], str]], *, nearest: bool = False) -> list[str]:
    """List tasks, one a line; what does not fit behind one is in the next line."""
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


def note(task: RecordedTask[Any], target: Target | None, inside: Iterable[RecordedTask[Any]]) -> str:
    """Say in what a task differs from what was asked for, and how it ended."""
    parts = []
    differences = _differences(task, target)
    if differences:
        parts += [show_difference(name, *values) for name, values in differences.items()]
    elif target is not None and is_meant(task, target) and task not in inside:
        parts.append("not in this view")
    if task.state == "failed":
        parts.append(show_error(task.error, 60))
    elif task.state in ("dropped", "cancelled"):
        parts.append(task.reason or "")
    return "\n".join(parts)


def show_unsettled(recording: Recording, tasks: Sequence[RecordedTask[Any]]) -> str:
    """List tasks that have not ended, and why not, as far as one can see."""
    lines = []
    for task in tasks[:_MOST_TASKS]:
        lines.append(f"  {shorten(str(task), 50)}  {task.state}, scheduled at {show_where(task.where)}")
        reason = _waits_for(recording, task)
        if reason:
            lines.append(f"      {reason}")
    if len(tasks) > _MOST_TASKS:
        lines.append(f"  and {number_of(len(tasks) - _MOST_TASKS, 'more task')}")
    return "\n".join(lines)


def _distance(task: RecordedTask[Any], target: Target | None, inside: Sequence[RecordedTask[Any]]) -> tuple[int, ...]:
    if target is None:
        return (task not in inside, task.id)
    if is_meant(task, target):
        return (0, 0, task not in inside, task.id)
    differences = _differences(task, target)
    if differences is not None:
        return (0, len(differences), task not in inside, task.id)
    return (1 if _is_namesake(task, target) else 2, 0, task not in inside, task.id)


def _is_near(tasks: Sequence[RecordedTask[Any]], target: Target | None) -> bool:
    if not tasks or target is None:
        return False
    return is_meant(tasks[0], target) or _differences(tasks[0], target) is not None or _is_namesake(tasks[0], target)


def _differences(task: RecordedTask[Any], target: Target | None) -> dict[str, tuple[Any, Any]] | None:
    return target.differences(task.call) if isinstance(target, Call) else None


def _is_namesake(task: RecordedTask[Any], target: Target) -> bool:
    function = target_function(target)
    return function is not None and function_name(function) == function_name(base_function(task.call.fn))


def _hint(
    recording: Recording,
    tasks: Sequence[RecordedTask[Any]],
    target: Target | None,
    inside: Sequence[RecordedTask[Any]],
) -> str:
    meant = [task for task in tasks if target is not None and is_meant(task, target)]
    for task in meant:
        if task in inside:
            return _hint_for(recording, task)
    if meant:
        return _hint_for_outsider(meant[0], inside)
    if tasks and target is not None and _differences(tasks[0], target) is not None:
        return "the arguments differ; call_like() compares only the parameters that you name"
    if tasks and target is not None and _is_namesake(tasks[0], target):
        recorded, wanted = base_function(tasks[0].call.fn), target_function(target)
        return f"another function of that name was scheduled: {_origin(recorded)}, not {_origin(wanted)}"
    return _hint_for_nothing(recording)


def _hint_for(recording: Recording, task: RecordedTask[Any]) -> str:
    reason = _waits_for(recording, task)
    if reason:
        return reason
    name = function_name(task.call.fn)
    match task.state:
        case "failed":
            expectation = f"assert_failed({name}, {type(task.error).__name__})"
            return f"it failed at {_failed_at(task)}; if it should, write {expectation}"
        case "dropped" if task.reason == HELD_TO_THE_END:
            return f"release({name}) while its app runs: inside the `with TestClient(app)` block"
        case "dropped" | "cancelled":
            return f"it was {task.state}: {task.reason}"
        case "succeeded":
            return "it succeeded; see the timeline"
    return f"it still runs: {DRAIN_FIRST}" if in_event_loop() else "it still runs: tasks_recorder.drain() says more"


def _waits_for(recording: Recording, task: RecordedTask[Any]) -> str:
    """Say what a task waits for that will not come by itself."""
    name = function_name(task.call.fn)
    due = recording.queue.due_at(task.handle)
    if task.state == "held":
        return f"it is held: tasks_recorder.release({name}) starts it"
    if due is not None:
        return f"it waits for virtual time, until {due:g} s: drain() or clock.advance({due - recording.queue.now():g})"
    if task.state == "scheduled" and not task.opened:
        if task.request is None or task.request.finished:
            return f"its phase {task.phase!r} has not been opened"
        what = (
            "close the WebSocket" if task.request.method == "WEBSOCKET" else "read the response to its end, or close it"
        )
        return f"it waits for {task.phase} of {task.request}, which is still served: {what}"
    return ""


def _hint_for_outsider(task: RecordedTask[Any], inside: Sequence[RecordedTask[Any]]) -> str:
    phases = {other.phase for other in inside}
    if task.phase not in phases or not inside:
        return f"it was scheduled into phase {task.phase or '-'}, at {show_where(task.where)}"
    return f"it is outside of this view: it belongs to {task.request or 'no request'}, and is {task.state}"


def _hint_for_nothing(recording: Recording) -> str:
    live = recording.live_tasks()
    if live and in_event_loop():
        return f"{number_of(len(live), 'task')} still running, which may schedule more: {DRAIN_FIRST}"
    if recording.tasks:
        return "other tasks were scheduled, this one was not"
    if not recording.requests:
        return "no app with tasks was called while recording, and nothing was scheduled"
    shown = ", ".join(map(str, recording.requests[:3])) + (", ..." if len(recording.requests) > 3 else "")
    return f"no task was scheduled in {number_of(len(recording.requests), 'request')}: {shown}"


def _failed_at(task: RecordedTask[Any]) -> str:
    traceback = None if task.error is None else task.error.__traceback__
    if traceback is None:
        return "its start"
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return show_where(f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}")


def _origin(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{function_name(function)}"

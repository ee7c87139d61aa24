"""The texts of failing assertions: what was asked, what came nearest, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks_testing._recording.call import Call, Target, base_function, show_difference, target_function
from tasks_testing._recording.durable_run import PHASE
from tasks_testing._recording.record import RecordedTask, is_meant, written
from tasks_testing._recording.recording import HELD_TO_THE_END, Recording
from tasks_testing._recording.selection import Part
from tasks_testing._text import function_name, number_of, shorten, show_error, show_where
from tasks_testing._time.monitor import in_event_loop

# How many tasks a message lists, and how wide its lines are behind the margin that pytest puts before them.
_MOST_TASKS = 10
_WIDTH = 72

DRAIN_FIRST = "'await tasks_recorder.adrain()' first"


def explain(part: Part, claim: str, target: Target | None) -> str:
    """Build the message of an assertion about *target* that failed; it looked at *part*, the message tells of all."""
    tasks = sorted(part.recording.tasks, key=lambda task: _distance(task, target, part))
    near = bool(tasks) and target is not None and _distance(tasks[0], target, part)[0] < _UNRELATED
    rows = [(task, note(task, target, part)) for task in tasks]
    return "\n".join([claim, *table(rows, nearest=near), f"  hint: {_hint(part, tasks, target)}"])


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


def note(task: RecordedTask[Any], target: Target | None, part: Part) -> str:
    """Say in what a task differs from what was asked for, and how it ended."""
    differences = _differences(task, target) or {}
    parts = [show_difference(name, *values) for name, values in differences.items()]
    if target is not None and is_meant(task, target):
        parts.append(part.why_not(task))
    match task.state:
        case "failed":
            parts.append(show_error(task.error, 60))
        case "dropped" | "cancelled":
            parts.append(task.reason or "")
    return "\n".join(filter(None, parts))


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


_UNRELATED = 3


def _distance(task: RecordedTask[Any], target: Target | None, part: Part) -> tuple[int, ...]:
    """Tell how far a task is from what was asked for: the very thing, other arguments, a namesake, something else."""
    kind, differences = _UNRELATED, _differences(task, target)
    if target is None or is_meant(task, target):
        kind = 0
    elif differences is not None:
        kind = 1
    elif _is_namesake(task, target):
        kind = 2
    return (kind, len(differences or ()), not part.admits(task), task.id)


def _differences(task: RecordedTask[Any], target: Target | None) -> dict[str, tuple[Any, Any]] | None:
    return target.differences(task.call) if isinstance(target, Call) else None


def _is_namesake(task: RecordedTask[Any], target: Target) -> bool:
    function = target_function(target)
    return function is not None and function_name(function) == function_name(base_function(task.call.fn))


def _hint(part: Part, tasks: Sequence[RecordedTask[Any]], target: Target | None) -> str:
    nearest = tasks[0] if tasks else None
    if nearest is None or target is None:
        return _hint_for_nothing(part.recording)
    kind = _distance(nearest, target, part)[0]
    if kind == 0:
        return _hint_for(part.recording, nearest) if part.admits(nearest) else _hint_for_outsider(part, nearest)
    if kind == 1:
        return "the arguments differ; call_like() compares only the parameters that you name"
    if kind == 2:
        recorded, wanted = base_function(nearest.call.fn), target_function(target)
        return f"another function of that name was scheduled: {_origin(recorded)}, not {_origin(wanted)}"
    return _hint_for_nothing(part.recording)


def _hint_for(recording: Recording, task: RecordedTask[Any]) -> str:
    reason = _waits_for(recording, task)
    if reason:
        return reason
    name = written(task)
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
    name = written(task)
    due = recording.queue.due_at(task.handle)
    if task.state == "held":
        return f"it is held: tasks_recorder.release({name}) starts it"
    if due is not None:
        return f"it waits for virtual time, until {due:g} s: drain() or clock.advance({due - recording.queue.now():g})"
    if task.state == "waiting" and not recording.virtual:
        return "it waits in real time; with virtual_time=True (marker) that takes none"
    if task.state == "running" and recording.virtual and task.handle.config.timeout is not None:
        return f"virtual time stands still while it runs; clock.advance({task.handle.config.timeout:g}) is its timeout"
    if task.state == "scheduled" and not task.opened:
        if task.request is None or task.request.finished:
            return f"its phase {task.phase!r} has not been opened"
        what = (
            "close the WebSocket" if task.request.method == "WEBSOCKET" else "read the response to its end, or close it"
        )
        return f"it waits for {task.phase} of {task.request}, which is still served: {what}"
    return ""


def _hint_for_outsider(part: Part, task: RecordedTask[Any]) -> str:
    if part.phase is None or task.phase == part.phase:
        return f"it is {part.why_not(task)}; scheduled at {show_where(task.where)}"
    if part.phase == PHASE:
        return "it was handed over, and has not been run: tasks_recorder.run_durable()"
    wanted = {"immediate": "tasks.schedule(...)"}.get(part.phase, f"tasks.{part.phase}.schedule(...)")
    return f"found in phase {task.phase or '-'}: use {wanted} at {show_where(task.where)}?"


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
    """Find the innermost line that is the user's own, or else the innermost."""
    traceback = None if task.error is None else task.error.__traceback__
    places = []
    while traceback is not None:
        places.append(show_where(f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"))
        traceback = traceback.tb_next
    own = [place for place in places if not Path(place).is_absolute()]
    return (own or places or ["its start"])[-1]


def _origin(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{function_name(function)}"

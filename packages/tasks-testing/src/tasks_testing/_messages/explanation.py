"""Failing assertions: what was expected, which recorded task comes closest, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks_core.testing import function_name

from tasks_testing._recording.call import Call, Target, base_function, show_difference, show_target, target_function
from tasks_testing._recording.durable_run import PHASE
from tasks_testing._recording.record import RecordedRequest, RecordedTask, code_for, is_named_by
from tasks_testing._recording.recording import Recording
from tasks_testing._recording.selection import Selection
from tasks_testing._refusals import HELD_UNTIL_TEST_END
from tasks_testing._text import number_of, show_error, show_where
from tasks_testing._time.monitor import in_event_loop

from .tables import list_unsettled, table, waits_for

DRAIN_FIRST = "'await tasks_recorder.adrain()' first"

# How far a task is from the target: the task itself (0), other arguments (1), another function of that name (2).
_UNRELATED = 3


def expected(target: Target | None, done: str, times: int | None) -> str:
    """Return what was expected: that *target* has *done* something, for example "been scheduled"."""
    subject = "one task" if target is None else show_target(target)
    if times == 0:
        return f"expected {'nothing' if target is None else subject + ' not'} to have {done}"
    return f"expected {subject} to have {done}{'' if times is None else ' ' + how_often(times)}"


def actual(target: Target | None, done: str, times: int | None, number: int) -> str:
    """Return what was the case in place of `expected(...)`: *number* tasks had done it."""
    did = "was" if done.startswith("been ") else "did"
    if target is None:
        return f"{number_of(number, 'task')} {did if number == 1 else did.replace('was', 'were')}"
    if times == 0:
        return f"it {did}, {how_often(number)}"
    return f"it {did} {'not' if number == 0 else how_often(number)}"


def how_often(times: int) -> str:
    return {0: "never", 1: "once"}.get(times, f"{times} times")


def missing(selection: Selection, claim: str, target: Target | None) -> str:
    """Return the message that tasks are missing: the closest task of the whole recording, and a hint."""
    tasks = sorted(selection.recording.tasks, key=lambda task: _distance(task, target, selection))
    near = bool(tasks) and target is not None and _distance(tasks[0], target, selection)[0] < _UNRELATED
    rows = [(task, _remark(task, target, selection)) for task in tasks]
    return _title(selection) + "\n".join(
        [claim, *table(rows, nearest=near), f"  hint: {_hint(selection, tasks, target)}"]
    )


def unwanted(selection: Selection, claim: str, found: Sequence[RecordedTask[Any]], times: int) -> str:
    """Return the message that there are tasks which the assertion does not expect: more than *times*."""
    rows = [(task, f"scheduled at {show_where(task.where)}") for task in found]
    hint = [f"  hint: {_hint_for_discarded(found)}"] if times == 0 and _are_discarded(found) else []
    return _title(selection) + "\n".join([claim, *table(rows), *hint])


def undecided(selection: Selection, claim: str, timeout: float | None) -> str:
    """Return the message that the assertion came too early: what still runs may schedule more."""
    waited = "" if in_event_loop() else f" after {timeout:g} s"
    todo = DRAIN_FIRST if in_event_loop() else "end what still runs, or exempt it with allow_running()"
    listed = list_unsettled(selection.recording, selection.unsettled())
    lines = [f"{claim}: cannot tell{waited}, {what_may_change(selection)}", listed, f"  hint: {todo}"]
    return _title(selection) + "\n".join(filter(None, lines))


def what_may_change(selection: Selection) -> str:
    """Return what goes on and may change the answer of an assertion; "" if nothing does."""
    tasks, requests = selection.unsettled(), selection.unfinished_requests()
    parts = [number_of(len(tasks), "task") + " still running"] if tasks else []
    parts += [f"request {request} still being served" for request in requests[:3]]
    return ", ".join(parts)


def no_such_request(index: int, requests: Sequence[RecordedRequest]) -> str:
    recorded = "; ".join(map(str, requests)) or "no app with tasks served a request while recording"
    return f"request({index}): {number_of(len(requests), 'request')} recorded ({recorded})"


def show_failure(error: type[BaseException] | tuple[type[BaseException], ...], match: str | None) -> str:
    """Return an expected exception as text."""
    types = error if isinstance(error, tuple) else (error,)
    names = " or ".join(each.__name__ for each in types)
    return names if match is None else f"{names} matching {match!r}"


def _title(selection: Selection) -> str:
    return f"{selection}: " if str(selection) else ""


# ---- one task, and how far it is from the target ----


def _remark(task: RecordedTask[Any], target: Target | None, selection: Selection) -> str:
    differences = _differences(task, target) or {}
    parts = [show_difference(name, *values) for name, values in differences.items()]
    if target is not None and is_named_by(task, target):
        parts.append(_why_outside(selection, task))
    match task.state:
        case "failed":
            parts.append(show_error(task.error, 60))
        case "discarded" | "cancelled":
            parts.append(task.reason or "")
    return "\n".join(filter(None, parts))


def _why_outside(selection: Selection, task: RecordedTask[Any]) -> str:
    """Return why a task is not selected; "" if it is."""
    if selection.admits(task):
        return ""
    if selection.phase is not None and task.phase != selection.phase:
        return "in another phase"
    if selection.of_request is not None and task.request is not selection.of_request:
        return f"of another request, {task.request}" if task.request else "outside of any request"
    if selection.states is not None and task.state not in selection.states:
        return f"in state {task.state}"
    return "outside of the captured block" if selection.window else "another task than the view is of"


def _distance(task: RecordedTask[Any], target: Target | None, selection: Selection) -> tuple[int, ...]:
    """Return a sort key: the closer the task is to the target, the smaller."""
    kind, differences = _UNRELATED, _differences(task, target)
    if target is None or is_named_by(task, target):
        kind = 0
    elif differences is not None:
        kind = 1
    elif _is_namesake(task, target):
        kind = 2
    return (kind, len(differences or ()), not selection.admits(task), task.id)


def _differences(task: RecordedTask[Any], target: Target | None) -> dict[str, tuple[Any, Any]] | None:
    return target.differences(task.call) if isinstance(target, Call) else None


def _is_namesake(task: RecordedTask[Any], target: Target) -> bool:
    function = target_function(target)
    return function is not None and _bare_name(function) == _bare_name(base_function(task.call.func))


def _bare_name(func: Any) -> str:
    return function_name(func).rpartition(".")[2]


# ---- hints ----


def _are_discarded(tasks: Sequence[RecordedTask[Any]]) -> bool:
    return all(task.state == "discarded" for task in tasks)


def _hint_for_discarded(tasks: Sequence[RecordedTask[Any]]) -> str:
    counts = Counter(map(code_for, tasks))
    write = [f'in_state("discarded").assert_scheduled({name}, times={count})' for name, count in counts.items()]
    reasons = "; ".join(dict.fromkeys(task.reason or "" for task in tasks))
    return f"discarded before it ran: {reasons}; if that is right, write {' and '.join(write)}"


def _hint(selection: Selection, tasks: Sequence[RecordedTask[Any]], target: Target | None) -> str:
    nearest = tasks[0] if tasks else None
    if nearest is None or target is None:
        return _hint_for_nothing(selection.recording)
    kind = _distance(nearest, target, selection)[0]
    if kind == 0:
        if selection.admits(nearest):
            return _hint_for(selection.recording, nearest)
        return _hint_for_outsider(selection, nearest)
    if kind == 1:
        return "the arguments differ; call_like() compares only the parameters that you name"
    if kind == 2:
        recorded, wanted = base_function(nearest.call.func), target_function(target)
        return f"another function of that name was scheduled: {_origin(recorded)}, not {_origin(wanted)}"
    return _hint_for_nothing(selection.recording)


def _hint_for(recording: Recording, task: RecordedTask[Any]) -> str:
    reason = waits_for(recording, task)
    if reason:
        return reason
    name = code_for(task)
    match task.state:
        case "failed":
            expectation = f"assert_failed({name}, {type(task.error).__name__})"
            return f"it failed at {_failed_at(task)}; if it should, write {expectation}"
        case "discarded" if task.reason == HELD_UNTIL_TEST_END:
            return f"release({name}) while its app runs: inside the `with TestClient(app)` block"
        case "discarded" | "cancelled":
            return f"it was {task.state}: {task.reason}"
        case "succeeded":
            return "it succeeded; see the timeline"
    return f"it still runs: {DRAIN_FIRST}" if in_event_loop() else "it still runs: tasks_recorder.drain() says more"


def _hint_for_outsider(selection: Selection, task: RecordedTask[Any]) -> str:
    if selection.phase is None or task.phase == selection.phase:
        return f"it is {_why_outside(selection, task)}; scheduled at {show_where(task.where)}"
    if selection.phase == PHASE:
        return "it was submitted, and has not been run: tasks_recorder.run_durable()"
    wanted = {"immediate": "tasks.schedule(...)"}.get(selection.phase, f"tasks.{selection.phase}.schedule(...)")
    return f"found in phase {task.phase or '-'}: use {wanted} at {show_where(task.where)}?"


def _hint_for_nothing(recording: Recording) -> str:
    live = recording.live_tasks()
    if live and in_event_loop():
        return f"{number_of(len(live), 'task')} still running, which may schedule more: {DRAIN_FIRST}"
    if recording.tasks:
        return "other tasks were scheduled, this one was not"
    if recording.periodic:
        names = ", ".join(map(repr, recording.periodic))
        how = (
            "tasks_recorder.clock.advance(seconds)" if recording.virtual else "in virtual time, clock.advance(seconds)"
        )
        return f"no run of a periodic task ({names}) was due; {how} brings runs about"
    if not recording.requests:
        return "no request was served while recording, and nothing was scheduled"
    shown = ", ".join(map(str, recording.requests[:3])) + (", ..." if len(recording.requests) > 3 else "")
    return f"no task was scheduled in {number_of(len(recording.requests), 'request')}: {shown}"


def _failed_at(task: RecordedTask[Any]) -> str:
    """Return the innermost line of the traceback that is below the current directory, or the innermost line."""
    traceback = None if task.error is None else task.error.__traceback__
    places = []
    while traceback is not None:
        places.append(show_where(f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"))
        traceback = traceback.tb_next
    own = [place for place in places if not Path(place).is_absolute()]
    return (own or places or ["its start"])[-1]


def _origin(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{function_name(function)}"

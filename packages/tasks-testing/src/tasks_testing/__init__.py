"""
Tests for background tasks: record them, drain them, move time, and say what went wrong.

Start reading at `_recorder.py` (what a test can do) and `_recording.py` (the observer that writes the record). Names
are imported when they are asked for: pytest imports this package in every run, also in those without background tasks.

```text
_show ── _call ── _delivered ── _record ── _routing
_monitor ── _live ── _sleepers ── _clock
_recording ── _control ── _filter ── _explain ── _order ── _judge ── _view
_durable ── _settings ── _timeline ── _verdict ── _virtual ── _recorder
_session ── _autouse ── _compare ── plugin
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._call import Call, Target, call, call_like
    from ._clock import VirtualClock
    from ._order import Step, finished, opened, scheduled, started
    from ._record import EventKind, Marker, Phase, RecordedRequest, RecordedTask, State, TaskEvent
    from ._recorder import TasksRecorder, record_tasks
    from ._verdict import TaskLostWarning
    from ._view import TaskView
    from ._virtual import RecorderClock

__all__ = (
    "Call",
    "EventKind",
    "Marker",
    "Phase",
    "RecordedRequest",
    "RecordedTask",
    "RecorderClock",
    "State",
    "Step",
    "Target",
    "TaskEvent",
    "TaskLostWarning",
    "TaskView",
    "TasksRecorder",
    "VirtualClock",
    "call",
    "call_like",
    "finished",
    "opened",
    "record_tasks",
    "scheduled",
    "started",
)

_HOMES = {
    "_call": ("Call", "Target", "call", "call_like"),
    "_clock": ("VirtualClock",),
    "_order": ("Step", "finished", "opened", "scheduled", "started"),
    "_record": ("EventKind", "Marker", "Phase", "RecordedRequest", "RecordedTask", "State", "TaskEvent"),
    "_recorder": ("TasksRecorder", "record_tasks"),
    "_verdict": ("TaskLostWarning",),
    "_view": ("TaskView",),
    "_virtual": ("RecorderClock",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

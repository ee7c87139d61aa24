"""
Tests for background tasks: record them, wait for them, move time, and explain what went wrong.

Start reading at `_recorder.py` (what a test can do) and `_recording/recording.py` (the observer that writes the
record). Each room has one purpose, and imports go one way:

```text
_text ── _refusals ── _sqlalchemy, _settings ── _time ── _recording ── _messages ── _assertions
_in_memory_engine ── _control, _recorder_clock, _engine, _stored_calls ── _cuts, _orders ── _recorder ── _pytest
```

The texts that a user reads are in `_messages`, and those about a wrong call, which every room may need, in
`_refusals.py`. The pytest plugin is the module `pytest_tasks_testing` next to this package: pytest imports it in every
run, and it imports this package when a test asks for the fixture.
"""

from ._assertions.end_of_test import TaskLostWarning
from ._assertions.view import TaskView
from ._in_memory_engine import InMemoryEngine
from ._orders import ExploredOrders
from ._recorder import TasksRecorder, record_tasks
from ._recorder_clock import RecorderClock
from ._recording.call import Call, Target, call, call_like
from ._recording.moment import Step, finished, opened, scheduled, started
from ._recording.record import EventKind, Phase, RecordedRequest, RecordedTask, RequestMoment, State, TaskEvent
from ._sqlalchemy import cut_connections, restore_savepoint
from ._stored_calls import check_calls, write_calls
from ._time.virtual_clock import VirtualClock

__all__ = (
    "Call",
    "EventKind",
    "ExploredOrders",
    "InMemoryEngine",
    "Phase",
    "RecordedRequest",
    "RecordedTask",
    "RecorderClock",
    "RequestMoment",
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
    "check_calls",
    "cut_connections",
    "finished",
    "opened",
    "record_tasks",
    "restore_savepoint",
    "scheduled",
    "started",
    "write_calls",
)

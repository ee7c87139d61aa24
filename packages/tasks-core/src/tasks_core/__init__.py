"""
Background tasks for asyncio and trio that are never lost without a line that says so.

Start reading at `_scheduler.py` (what is entered and left) and `_schedule.py` (the call), then go on in `_run/`, which
takes a task from there to its end. Imports go one way:

```text
exceptions ── _support ── _config ── _journal ── _task ── _observer ── _clock ── _decision ── _retry
_loop ── _run ── _schedule ── _phase, _scheduler ── _telemetry
_durable ── engines
```

Durable tasks, which another process runs, stand above that: `_durable/function.py` (the functions),
`_durable/engine.py` (the seam) and `_durable/worker.py`. The program that uses an engine imports it from `engines/`.
Types that are named rarely are in `types/`.
"""

from ._clock import Clock
from ._config import Outcome, TaskConfig, TaskErrorHandler, When
from ._decision import Cancel, Snooze
from ._durable.calls import Receipt
from ._durable.context import DurableContext, durable_context
from ._durable.function import DurableFunction, durable
from ._durable.phase import DurablePhase
from ._durable.task import DurableTask
from ._durable.worker import Worker
from ._observer import TaskObserver, observe
from ._options import SchedulerOptions, ShutdownOptions
from ._periodic import PeriodicTask, TaskRegistry
from ._phase import TaskPhase
from ._retry import Retry, RetryPolicy, by_exception, chain, retry
from ._run.shutdown import ShutdownReport
from ._schedule import ScheduleTarget, transparent
from ._scheduler import TaskScheduler, current_scheduler
from ._service import Service
from ._support.provider import Provided
from ._task import PhaseInfo, Task, TaskState, current_task, emit, report
from .exceptions import SchedulerClosedError, TaskQueueFullError, TasksError

__all__ = (
    "Cancel",
    "Clock",
    "DurableContext",
    "DurableFunction",
    "DurablePhase",
    "DurableTask",
    "Outcome",
    "PeriodicTask",
    "PhaseInfo",
    "Provided",
    "Receipt",
    "Retry",
    "RetryPolicy",
    "ScheduleTarget",
    "SchedulerClosedError",
    "SchedulerOptions",
    "Service",
    "ShutdownOptions",
    "ShutdownReport",
    "Snooze",
    "Task",
    "TaskConfig",
    "TaskErrorHandler",
    "TaskObserver",
    "TaskPhase",
    "TaskQueueFullError",
    "TaskRegistry",
    "TaskScheduler",
    "TaskState",
    "TasksError",
    "When",
    "Worker",
    "by_exception",
    "chain",
    "cron",
    "current_scheduler",
    "current_task",
    "durable",
    "durable_context",
    "emit",
    "every",
    "observe",
    "report",
    "retry",
    "transparent",
)
from .triggers import cron, every

"""
Background tasks for asyncio and trio that are never lost without a line that says so.

Start reading at `_scheduler.py` (what is entered and left), then `_runner.py` (the way of a task to its attempts) and
`_attempt.py` (one attempt, and what its end means). `_shutdown.py` is the end of a scheduler. Imports go one way:

```text
exceptions  _call  _subscription  _backend
_config ── _task ── _observer ── _clock ── _loop ── _ledger ── _admission
_retry ── _threads ── _attempt ── _runner ── _schedule ── _batch, _shutdown ── _scheduler
```
"""

from ._batch import TaskBatch
from ._clock import Clock, MonotonicClock, override_clock
from ._config import Outcome, TaskConfig, TaskErrorHandler, When
from ._ledger import LostTask, SchedulerStatistics
from ._observer import RunAttempt, TaskObserver, announce, observe
from ._retry import Retry, by_exception, chain, retry
from ._schedule import Schedulable
from ._scheduler import TaskScheduler
from ._shutdown import ShutdownReport
from ._subscription import Subscription
from ._task import Task, TaskState, current_task
from .exceptions import (
    InvalidConfigError,
    InvalidTaskError,
    SchedulerClosedError,
    SchedulerNotStartedError,
    TaskCancelledError,
    TaskDiscardedError,
    TaskNotFinishedError,
    TaskQueueFullError,
    TasksError,
)

__all__ = (
    "Clock",
    "InvalidConfigError",
    "InvalidTaskError",
    "LostTask",
    "MonotonicClock",
    "Outcome",
    "Retry",
    "RunAttempt",
    "Schedulable",
    "SchedulerClosedError",
    "SchedulerNotStartedError",
    "SchedulerStatistics",
    "ShutdownReport",
    "Subscription",
    "Task",
    "TaskBatch",
    "TaskCancelledError",
    "TaskConfig",
    "TaskDiscardedError",
    "TaskErrorHandler",
    "TaskNotFinishedError",
    "TaskObserver",
    "TaskQueueFullError",
    "TaskScheduler",
    "TaskState",
    "TasksError",
    "When",
    "announce",
    "by_exception",
    "chain",
    "current_task",
    "observe",
    "override_clock",
    "retry",
)

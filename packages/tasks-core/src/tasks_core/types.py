"""Types that applications see more often than they name them: what functions return and observers are given."""

from ._journal import EmittedEvent, TaskFollower, TaskUpdate
from ._observer import RunAttempt
from ._run.following import KeptTask
from ._run.ledger import LostTask, PeriodicStatistics, SchedulerStatistics
from ._support.overrides import Subscription

__all__ = (
    "EmittedEvent",
    "KeptTask",
    "LostTask",
    "PeriodicStatistics",
    "RunAttempt",
    "SchedulerStatistics",
    "Subscription",
    "TaskFollower",
    "TaskUpdate",
)

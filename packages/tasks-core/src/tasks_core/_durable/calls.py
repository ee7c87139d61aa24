"""A durable call as data: what is submitted, and what the engine returns for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tasks_core._config import OnConflict
from tasks_core._retry import RetryPolicy
from tasks_core._support.jsontext import Json

from .queues import DEFAULT_QUEUE


@dataclass(frozen=True, slots=True)
class DurableCall:
    """A call of a durable function, as an engine stores it. Everything in it is data."""

    name: str
    """The registered name of the function: `"app.mail:send_email"`."""
    args: Mapping[str, Json] = field(repr=False)
    """JSON values by the name of the parameter."""
    idempotency_key: str
    """Identifies the call, however often it is delivered, so that a task can find out whether it ran before."""
    dedup: bool = False
    """Whether the caller chose the key, so that a second call with it must not create a second task."""
    retry: RetryPolicy | None = None
    not_before: float | None = None
    """Seconds since the epoch before which the task must not start."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Trace context, request id."""
    queue: str = DEFAULT_QUEUE
    """The queue of the call; `"default"` is that of the engine."""
    priority: int = 0
    """-100 to 100: of the calls of a queue that wait, those with a higher one run first."""
    key: str | None = None
    """Of the calls of a function in a queue that have one key, at most one runs at a time."""
    on_conflict: OnConflict = "join"
    """What happens if a call with the same key has not ended; see `tasks_core.TaskConfig`."""


class DurableState(StrEnum):
    """The state of a durable task; the words are those of `TaskState`."""

    PENDING = "pending"
    """Stored; no worker has it. Also between two attempts."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Its last attempt failed, or its workers died too often."""
    CANCELLED = "cancelled"
    """It was cancelled in the engine."""
    UNKNOWN = "unknown"
    """The engine has no such task: it has ended and was purged, or its transaction was rolled back."""


@dataclass(frozen=True, slots=True)
class DurableStatus:
    """What `receipt.status()` returns."""

    state: DurableState
    attempts: int
    """How many deliveries have ended, whether they succeeded or not."""
    progress: Json = None
    """The last value that the task gave to `durable_context().report_progress(...)`."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The acknowledgement of an engine: the call is stored, and survives the process that made it."""

    engine: str
    id: str
    """The id of the task in the engine."""
    idempotency_key: str
    created: bool = True
    """
    False if the engine had a task already, whose receipt this is: one with this idempotency key, or one that has not
    ended and has the key of the call.
    """
    status_of: Callable[[str], Awaitable[DurableStatus]] | None = field(default=None, repr=False, compare=False)
    replaced: tuple[str, ...] = ()
    """The ids of the tasks that were cancelled because this one takes their place (`on_conflict="replace"`)."""

    async def status(self) -> DurableStatus:
        """
        Return the state of the task, from the engine.

        Raises:
            EngineUnavailableError: the engine does not answer.
        """
        if self.status_of is None:
            return DurableStatus(DurableState.UNKNOWN, 0)
        return await self.status_of(self.id)

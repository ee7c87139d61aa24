"""A durable call as data: what is submitted, and what the engine returns for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

import anyio

from tasks_core._config import OnConflict
from tasks_core._retry import RetryPolicy
from tasks_core._support.jsontext import Json
from tasks_core.exceptions import (
    DurableTaskFailedError,
    EngineCapabilityError,
    ResultNotStoredError,
    TaskCancelledError,
    UnknownReceiptError,
)

from .attempts import AttemptRecord
from .codec import StoredResult
from .queues import DEFAULT_QUEUE
from .registry import registry

R_co = TypeVar("R_co", covariant=True)

DEFAULT_RETRY = RetryPolicy(attempts=10, backoff=10.0, max_delay=3600.0, jitter=0.1)
"""
The policy of a durable function that says nothing else: ten attempts within about an hour and a half.

An engine may store it as the absence of a policy: a release with another default has to store that by its values.
"""


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
    """When it runs again after an exception; `None`: never."""
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
    """
    How many attempts have ended: because they succeeded, failed, were cancelled, or their worker died.

    The one that runs is none of them, and neither are deliveries that were put back or whose call no worker understood.
    """
    progress: Json = None
    """The last value that the task gave to `durable_context().report_progress(...)`."""
    reason: str | None = None
    """Why it was cancelled, or is not run any more, as far as that was said."""
    errors: tuple[AttemptRecord, ...] = ()
    """The attempts that have failed, the last one last; of more than ten, the first two and the last eight."""


@dataclass(frozen=True, slots=True)
class DurableEnd:
    """How a durable task has ended: what `receipt.result()` needs."""

    status: DurableStatus
    name: str = ""
    """The name of the function."""
    result: StoredResult | None = None
    """What the function returned; `None` if that was `None`, or is not stored."""


class ReceiptSource(Protocol):
    """What an engine says of a task, by the id of its receipt. An id that it has not given is unknown, and no error."""

    async def status(self, receipt_id: str, /) -> DurableStatus:
        """Return how far the task is."""
        ...

    async def ended(self, receipt_id: str, /) -> DurableEnd:
        """Return when the task has ended, or is unknown. The caller may be cancelled while it waits."""
        ...

    async def cancel(self, receipt_id: str, /) -> int:
        """
        Cancel a task, and return 1 if it was to be cancelled, 0 if not: it has ended, or is being cancelled already.

        One that waits is cancelled when this returns. One that runs is cancelled soon, wherever it runs; it is not
        delivered again.
        """
        ...


@dataclass(frozen=True, slots=True)
class Receipt(Generic[R_co]):
    """
    The acknowledgement of an engine: the call is stored, and survives the process that made it.

    What the methods raise besides: `EngineUnavailableError`, the engine does not answer.
    """

    engine: str
    id: str
    """The id of the task in the engine."""
    idempotency_key: str
    created: bool = True
    """
    False if the engine had a task already, whose receipt this is: one with this idempotency key, or one that has not
    ended and has the key of the call.
    """
    source: ReceiptSource | None = field(default=None, repr=False, compare=False)
    """The engine, if it can say more of the task."""
    replaced: tuple[str, ...] = ()
    """The ids of the tasks that were cancelled because this one takes their place (`on_conflict="replace"`)."""

    async def status(self) -> DurableStatus:
        """Return the state of the task, from the engine."""
        if self.source is None:
            return DurableStatus(DurableState.UNKNOWN, 0)
        return await self.source.status(self.id)

    async def cancel(self) -> bool:
        """
        Cancel the task, wherever it runs, and return whether it is cancelled now.

        False: it has ended, or is being cancelled already.

        A task that waits is cancelled when this returns. One that runs is cancelled within a second on its worker, as
        by `Task.cancel()`, whether it is shielded or not: a coroutine function may clean up; a plain function cannot be
        stopped, and may look at `current_task().cancel_requested`. If it ends in the meantime, it has ended as it did.
        A cancelled task is not delivered again, and keeps its idempotency key.

        Raises:
            EngineCapabilityError: the engine cannot cancel.
        """
        if self.source is None:
            raise EngineCapabilityError(f"{self.engine} cannot cancel a task that it has")
        return bool(await self.source.cancel(self.id))

    async def result(self, timeout: float | None = None) -> R_co:  # noqa: ASYNC109  a bound of this wait
        """
        Wait until the task has ended, and return what its function returned.

        ```python
        receipt = await scheduler.schedule(render, order.id)
        url = await receipt.result(timeout=10)
        ```

        The result has passed through JSON, by the return annotation of the function, and is kept for as long as the row
        of the task. It may have 64 KiB as JSON. That of a function without an annotation is not stored, and is `None`
        here. Any process that has imported the function may ask.

        Cancellation: the task goes on.

        Args:
            timeout: Seconds to wait at most. Default: no bound.

        Raises:
            TimeoutError: the task has not ended within *timeout*. It goes on.
            DurableTaskFailedError: the task has failed.
            TaskCancelledError: the task was cancelled.
            ResultNotStoredError: the task has succeeded, and its result cannot be stored.
            UnknownReceiptError: the engine has no such task: its row was deleted after its time, or its transaction is
                not committed, or was rolled back.
            UnknownTaskError: this process has not imported the function.
            EngineCapabilityError: the engine stores no results.
        """
        if self.source is None:
            raise EngineCapabilityError(f"{self.engine} does not say how a task has ended, and stores no results")
        with anyio.fail_after(timeout):
            end = await self.source.ended(self.id)
        title = f"Durable task {end.name!r} (id {self.id})"
        match end.status.state:
            case DurableState.SUCCEEDED:
                if end.result is None:
                    return None  # type: ignore[return-value]  # what the function returned
                if end.result.problem is None:
                    result: R_co = registry.get(end.name).result_codec.decode(end.result)
                    return result
                raise ResultNotStoredError(f"{title} has succeeded, and its result is not stored: {end.result.problem}")
            case DurableState.CANCELLED:
                raise TaskCancelledError(f"{title} was cancelled: {end.status.reason or 'cancel() was called'}")
            case DurableState.UNKNOWN:
                raise UnknownReceiptError(
                    f"{self.engine} has no task with the id {self.id!r}: it was deleted when it had been kept for its "
                    "time, or its transaction is not committed, or was rolled back"
                )
        errors = end.status.errors
        why = end.status.reason or (errors[-1].error if errors else "its engine does not say why")
        where = f" in attempt {end.status.attempts}" if end.status.attempts else ""  # no worker may have understood it
        raise DurableTaskFailedError(f"{title} has failed{where}: {why}")

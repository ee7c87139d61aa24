"""The seam to an engine, which stores calls, acknowledges them, and delivers them to workers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias, runtime_checkable

import anyio

from tasks_core._journal import EmittedEvent
from tasks_core._support.jsontext import Json

from .calls import DurableCall, DurableState, DurableStatus, Receipt
from .codec import StoredResult
from .completion import Completion
from .queues import Slots

if TYPE_CHECKING:
    from types import TracebackType

Capability: TypeAlias = Literal["transaction", "delay", "dedup", "queues", "priority", "key", "complete"]
"""
What an engine may be able to do: join a transaction of the caller, delay a task, accept an idempotency key only
once, keep calls in several queues, deliver those with a higher priority first, run one task of a key at a time, and
store the end of a task in a transaction of the task.
"""

EngineFallback: TypeAlias = Literal["error", "memory"]
"""What happens to a durable task that its engine does not acknowledge: it fails, or it runs in this process."""


class EventSink(Protocol):
    """Where a delivery writes what it emits and reports: from any thread, without waiting."""

    def emit(self, text: bytes, /) -> None:
        """Store an event, JSON in one line, after those before it."""
        ...

    def report(self, progress: bytes, /) -> None:
        """Store the progress, JSON, as that of the status; of several values, the last one is enough."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """A call that an engine delivers to a worker."""

    call: DurableCall
    attempt: int
    """1 for the first run; deliveries that were put back do not count."""
    failures: int
    """How many attempts before this one have ended in an exception."""
    report_progress: Callable[[Json], Awaitable[None]]
    give_up: str | None = None
    """Why the engine does not have the call run any more. The worker reports it to `on_error`, and runs nothing."""
    id: str = ""
    """The id of the receipt of the call."""
    open_events: Callable[[], EventSink] | None = None
    """
    Returns where the delivery writes what it emits and reports; called when it does so for the first time. `None`: the
    engine stores no events.
    """
    progress: Json = None
    """What earlier deliveries have reported last."""
    completion: Completion | None = None
    """
    Stores the end of the call in a transaction of its task. Where it was used, `Completion.outcome()` decides what the
    engine does when the `RunDelivery` returns or raises. `None`: the engine cannot do it.
    """


class Redeliver(Exception):  # noqa: N818  a request, not an error
    """
    Raised by a `RunDelivery`: the engine keeps the call, and delivers it again after *delay* seconds.

    If the attempt has *failed*, `__cause__` is what it raised: `AttemptRecord.of()` makes what `status()` shows of it.
    """

    def __init__(self, delay: float, *, failed: bool) -> None:
        self.delay = delay
        self.failed = failed
        super().__init__(f"deliver again in {delay:g} s")


class NotUnderstood(Redeliver):
    """
    Raised to an engine, like `Redeliver`, for a call whose name or arguments this worker does not understand.

    Another worker may run another release, so an engine keeps the call for a while. In the end it delivers the call
    with `Delivery.give_up`.
    """


RunDelivery: TypeAlias = Callable[[Delivery], Awaitable[StoredResult | None]]
"""
What an engine calls: returns when the task has succeeded, with the result that is to be stored, if there is one; raises
`Redeliver`, or `tasks_core.Cancel` if the task ends as cancelled, with a reason, or the error of the last attempt. If
the attempt before the `Cancel` has failed, `__cause__` is what it raised.
"""


@runtime_checkable
class Engine(Protocol):
    """
    What tasks-core needs from an engine. A second engine is one module with these methods.

    `async with` may be entered more than once, also at the same time; it is entered and left in the same task.
    """

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

    def join(self, transaction: Any, call: DurableCall, wanted: Callable[[], bool], /) -> Any:
        """
        Validate *transaction*, and return the object that is passed to `submit(transaction=...)`.

        `schedule()` calls this. An engine that is notified of the commit stores the call right before it, if `submit()`
        has not been called yet and `wanted()` returns true. The returned object then has a true attribute `stored`. It
        has a true attribute `dropped` once a part of the transaction was rolled back that the call belongs to.

        Raises:
            EngineCapabilityError: the engine cannot join a transaction of this type.
        """
        ...

    async def submit(self, call: DurableCall, /, *, transaction: Any = None) -> Receipt[Any]:
        """
        Store the call, so that it survives a crash of this process and, as far as possible, of the engine.

        Raises:
            EngineUnavailableError: the engine did not acknowledge. It is not known whether it has stored the call.
        """
        ...

    async def work(self, run: RunDelivery, /, *, concurrency: Slots, stopping: anyio.Event) -> None:
        """
        Deliver calls, up to *concurrency* at once; return when *stopping* is set and all of them have ended.

        A number is for the queue of the engine and all that `registered_queues()` returns, together. With the
        capability `"queues"` it may be a mapping, which has a number for each queue that is served.

        A call whose worker dies is delivered again. While the engine is unavailable, wait for it, and do not return.
        """
        ...


@runtime_checkable
class BatchEngine(Protocol):
    """What an `Engine` may have besides: the durable tasks of a phase become one submit."""

    async def submit_many(self, calls: Sequence[DurableCall], /) -> Sequence[Receipt[Any]]:
        """
        Store all calls, or none of them; the receipts have the order of *calls*.

        Raises:
            EngineUnavailableError: as for `Engine.submit()`.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredEvents:
    """What an engine has for a follower of a call."""

    events: tuple[EmittedEvent, ...]
    """The first kept events after the number that was asked for, `EVENTS_AT_ONCE` at most."""
    status: DurableStatus
    """The status at the time of these events, so that after the last event of a call that has ended there is none."""

    @property
    def ended(self) -> bool:
        """Whether the call has ended and there are no further events."""
        ended = self.status.state not in (DurableState.PENDING, DurableState.RUNNING)
        return ended and len(self.events) < EVENTS_AT_ONCE


@dataclass(frozen=True, slots=True)
class FollowedCall:
    """A call that clients follow."""

    receipt: Receipt[Any]
    owner: str | None
    """Whose it is, as the caller of `job()` said."""


EVENTS_AT_ONCE = 500
"""How many events `read_events()` returns at most for one call."""


@runtime_checkable
class EventEngine(Protocol):
    """
    What an `Engine` may have besides: it stores what calls emit, for followers in any process.

    Its deliveries have `open_events`. The events of a call are numbered from 1, also over several deliveries. It keeps
    the last 10,000, and at most 1 MiB of them, about, as long as the call. All of them are stored before the end of
    the delivery is. What a worker emits that has lost the call to another worker is not stored.
    """

    async def find_followed(self, token: str, /) -> FollowedCall | None:
        """
        Return the call whose header `follow` is *token*; its header `follow-owner` is the owner.

        The token of a call that made no new task, because of its key or its idempotency key, is a further token of the
        task that there was. The owner is that of the first call that had a token.

        Raises:
            EngineUnavailableError: the engine does not answer.
        """
        ...

    async def read_events(self, wanted: Collection[tuple[str, int]], /) -> Mapping[tuple[str, int], StoredEvents]:
        """
        Return what there is for each pair of the id of a receipt and the number of an event, after that event.

        Raises:
            EngineUnavailableError: the engine does not answer.
        """
        ...


@runtime_checkable
class PeriodicEngine(Protocol):
    """What an `Engine` may have besides: it runs periodic functions once for all workers."""

    async def occurrences(self, names: Sequence[str], /) -> tuple[datetime, Sequence[datetime]]:
        """
        Return the time by a clock that all processes share, and for each function when its last occurrence was.

        For a function that the engine does not know yet, that is the present, which is stored.

        Raises:
            EngineUnavailableError: as for `Engine.submit()`.
        """
        ...

    async def submit_occurrence(self, call: DurableCall, at: datetime, /) -> Receipt[Any] | None:
        """
        Store *at* as the last occurrence of the function and submit the call, in one step.

        Returns `None`, and does nothing, if the last occurrence is that one already, or a later one.

        Raises:
            EngineUnavailableError: as for `Engine.submit()`.
        """
        ...

    async def skip_occurrences(self, name: str, until: datetime, /) -> bool:
        """
        Store *until* as the last occurrence of a function; return whether it was an earlier one before.

        Raises:
            EngineUnavailableError: as for `Engine.submit()`.
        """
        ...

"""The end of a durable task as a part of a transaction of its own: what `DurableContext.complete()` does."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Coroutine
from enum import Enum
from typing import Any, Protocol

from anyio import from_thread

from tasks_core._loop.backend import is_on_a_loop
from tasks_core._run.ledger import log_fields, title
from tasks_core._support.log import logger, message_of
from tasks_core._task import Task
from tasks_core.exceptions import ArgumentCodecError, EngineCapabilityError

from .codec import ResultCodec, StoredResult


class AsyncTransaction(Protocol):
    """An `AsyncSession` or `AsyncConnection` of SQLAlchemy, or an `AsyncConnection` of psycopg."""

    def commit(self) -> Coroutine[Any, Any, None]:
        """Commit the transaction."""
        ...


class SyncTransaction(Protocol):
    """A `Session` or `Connection` of SQLAlchemy, or a `Connection` of psycopg."""

    def commit(self) -> None:
        """Commit the transaction."""
        ...


class CompletionOutcome(Enum):
    """What became of a delivery whose task has called `complete()`."""

    ROLLED_BACK = "rolled back"
    """The call is still that of this delivery, and has not ended: what its function did counts."""
    ENDED = "ended"
    """The transaction was committed: the call has succeeded, whatever its function did afterwards."""
    LOST = "lost"
    """Another delivery has the call, or it was ended by something else: what the function did does not count."""
    OPEN = "open"
    """The transaction is still open, and the engine waits no longer: another delivery will show what became of it."""


class Completion(Protocol):
    """What a delivery of an engine with the capability `"complete"` has. It is used on the event loop of the worker."""

    @property
    def used(self) -> bool:
        """Whether `store()` was called, so that `outcome()` is to be asked when the attempt is over."""
        ...

    async def store(self, transaction: Any, result: StoredResult | None, /) -> None:
        """
        Make the success of the call a part of the transaction, with the result if there is one.

        The call ends with the commit. Nothing that the worker writes besides may wait for the transaction.

        Raises:
            EngineCapabilityError: the engine cannot use a transaction of this type.
            DurableTaskTakenOverError: the call is no longer that of this delivery.
        """
        ...

    async def outcome(self) -> CompletionOutcome:
        """
        Return what became of the call; `store()` raises from now on.

        While a transaction that `store()` was called with is open, wait for its end.
        """
        ...


class Completing:
    """What the context of one attempt needs for `complete()`."""

    __slots__ = ("_codec", "_completion", "_name", "gave_result")

    def __init__(self, name: str, codec: ResultCodec, completion: Completion) -> None:
        self._name = name
        self._codec = codec
        self._completion = completion
        self.gave_result: bool = False
        """Whether `complete()` was given a result."""

    async def complete(self, transaction: Any, result: object) -> None:
        """Store the end of the task in a transaction of any kind."""
        stored = self._codec.encode(result)
        if result is not None and (stored is None or stored.problem is not None):
            why = "the function has no return annotation" if stored is None else stored.problem
            raise ArgumentCodecError(f"complete(result=...): the result of {self._name!r} cannot be stored: {why}")
        self.gave_result = result is not None
        await self._completion.store(transaction, stored)


_LOGGED = {
    CompletionOutcome.ENDED: (
        logging.ERROR,
        "raised after complete() had stored its end: it has succeeded, and is not run again",
    ),
    CompletionOutcome.LOST: (
        logging.WARNING,
        "ends without effect: the call is that of another worker, or has ended",
    ),
    CompletionOutcome.OPEN: (
        logging.WARNING,
        "has ended in a transaction that is still open: another worker will see what became of it",
    ),
}


def log_uncounted(task: Task[Any], exception: Exception, outcome: CompletionOutcome) -> None:
    """Log an exception that decides nothing, because `complete()` was called."""
    level, text = _LOGGED[outcome]
    whole = exception if outcome is CompletionOutcome.ENDED else None
    logger.log(level, "%s %s (%s)", title(task), text, message_of(exception), exc_info=whole, extra=log_fields(task))


def complete(completing: Completing, transaction: Any, result: object) -> Coroutine[Any, Any, None] | None:
    """Return what is to be awaited for an asynchronous transaction; do it now for another, in a worker thread."""
    commit = getattr(transaction, "commit", None)
    kind = f"{type(transaction).__module__}.{type(transaction).__qualname__}"
    if not callable(commit):
        raise EngineCapabilityError(
            f"complete() was given a {kind}. Pass the session or connection in whose transaction the task is to end"
        )
    if inspect.iscoroutinefunction(commit):
        if not is_on_a_loop():
            raise EngineCapabilityError(
                f"complete() was given a {kind} in a plain function, which cannot await it. Pass one that is not "
                "asynchronous, or make the task a coroutine function"
            )
        return completing.complete(transaction, result)
    if is_on_a_loop():
        raise EngineCapabilityError(
            f"complete() was given a {kind} on the event loop, which its statement would block. Pass an asynchronous "
            "one, or write: await anyio.to_thread.run_sync(lambda: durable_context().complete(session))"
        )
    from_thread.run(completing.complete, transaction, result)
    return None

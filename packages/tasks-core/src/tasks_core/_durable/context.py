"""What a durable task can know about its own call."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import anyio.from_thread
import anyio.lowlevel

from tasks_core._decision import AttemptEnded
from tasks_core._loop.backend import is_on_a_loop
from tasks_core._support.jsontext import Json
from tasks_core._task import current_task
from tasks_core.exceptions import EngineCapabilityError

from .codec import check_json
from .completion import AsyncTransaction, Completing, SyncTransaction, complete
from .queues import DEFAULT_QUEUE

if TYPE_CHECKING:
    from tasks_core._scheduler import TaskScheduler


@dataclass(frozen=True, slots=True)
class DurableContext:
    """What a durable task can know about its call; see `durable_context()`."""

    name: str
    idempotency_key: str
    """The same for each run of this call: pass it to a payment provider, or look it up before doing the work again."""
    attempt: int
    """1 for the first run; more if it failed, or if the worker that ran it died."""
    headers: Mapping[str, str]
    """The headers that were stored with the call: `traceparent`, `x-request-id`."""
    find_scheduler: Callable[[], TaskScheduler | None] = field(repr=False)
    save_progress: Callable[[Json], Awaitable[None]] | None = field(default=None, repr=False)
    read_progress: Callable[[], Json] | None = field(default=None, repr=False)
    task_id: int | None = field(default=None, repr=False)
    """The id of the task that counts the attempts, where no engine counts them."""
    queue: str = DEFAULT_QUEUE
    """The queue of the call."""
    receipt_id: str = ""
    """The id of the receipt of the call, by which operators find it; empty where no engine has the call."""
    continues: bool = field(default=False, repr=False)
    """Whether an engine delivers the call again, so that the attempt may end at a checkpoint."""
    completing: Completing | None = field(default=None, repr=False)

    @property
    def scheduler(self) -> TaskScheduler:
        """
        The scheduler that runs the task, for follow-up tasks; it submits to the engine that delivered this one.

        ```python
        context = durable_context()
        receipt = send_receipt.configure(idempotency_key=f"{context.idempotency_key}-receipt")
        await context.scheduler.schedule(receipt, order_id)
        ```

        If the caller awaits a durable task, that is stored before this one has succeeded, and with the key there is
        one even if this one runs again. Functions that are not durable run in this process, and are lost with it.
        `scheduler.stopping` is set when the worker is stopped.

        Raises:
            LookupError: the scheduler has ended.
        """
        scheduler = self.find_scheduler()
        if scheduler is None:
            raise LookupError(f"The scheduler that ran {self.name!r} has ended")
        return scheduler

    @property
    def progress(self) -> Any:
        """
        The last JSON value that the task has reported, in this attempt or an earlier one; `None` before the first.

        ```python
        for page in range(durable_context().progress or 0, pages):
            await export(page)
            await durable_context().report_progress(page + 1)
        ```

        At the start of an attempt it is what the attempt before has stored, whether that failed, was put back, or its
        worker died.
        """
        return None if self.read_progress is None else self.read_progress()

    async def report_progress(self, progress: Json) -> None:
        """
        Store any JSON value as `receipt.status().progress`, and for the next attempt as `progress`.

        In memory, it is kept for as long as the task. The value of a worker that has lost the task to another one is
        not stored.

        Raises:
            ArgumentCodecError: *progress* is not JSON of at most 1 MiB.
        """
        await self._save(progress, "report_progress()")

    async def checkpoint(self, progress: Json) -> None:
        """
        Store any JSON value as `report_progress()` does, and end the attempt here if the worker is stopping.

        ```python
        context = durable_context()
        for page in range(context.progress or 0, pages):
            await export(page)
            await context.checkpoint(page + 1)
        ```

        The attempt ends after the value is stored, whether the task is shielded or not. That is no failure: the task
        is back in the queue at once, and the next worker begins the same attempt with this `progress`. So a long task
        does not keep a deploy waiting, and loses nothing that it has done. If the worker dies, the next attempt has the
        value of the last checkpoint too. In memory, the value is stored, and the task goes on.

        The attempt ends by an exception that is no `Exception`, as by a cancellation: `finally` blocks run, and a
        transaction that is open is rolled back. So commit before a checkpoint what it says is done.

        Raises:
            ArgumentCodecError: *progress* is not JSON of at most 1 MiB.
        """
        await self._save(progress, "checkpoint()")
        await anyio.lowlevel.checkpoint()
        if self.continues and self.scheduler.stopping.is_set():
            raise AttemptEnded("the worker is stopping, and the task goes on after its checkpoint")

    def checkpoint_from_thread(self, progress: Json) -> None:
        """
        Do what `checkpoint()` does, and block until it is done: for plain functions, and functions in other threads.

        A plain function cannot be cancelled. If it was cancelled all the same, or took longer than `timeout`, it ends
        here, and nothing is stored.

        Raises:
            ArgumentCodecError: *progress* is not JSON of at most 1 MiB.
            RuntimeError: the caller runs on an event loop, which this would block, or in a thread that neither the
                scheduler nor anyio has started.
        """
        if is_on_a_loop():
            raise RuntimeError(
                "checkpoint_from_thread() would block the event loop. In a coroutine function, write: "
                "await durable_context().checkpoint(...)"
            )
        task = current_task()
        if task is not None and task.cancel_requested:
            raise AttemptEnded("the task was cancelled, or took longer than its timeout")
        anyio.from_thread.run(self.checkpoint, progress)

    async def _save(self, progress: Json, where: str) -> None:
        text = check_json(progress, where)
        if self.save_progress is not None:
            # Not the object of the caller, which may change it later.
            await self.save_progress(json.loads(text))

    @overload
    def complete(self, transaction: SyncTransaction, /, *, result: object = None) -> None: ...

    @overload
    def complete(self, transaction: AsyncTransaction, /, *, result: object = None) -> Coroutine[Any, Any, None]: ...

    def complete(self, transaction: Any, /, *, result: object = None) -> Coroutine[Any, Any, None] | None:
        """
        Store the success of the task within *transaction*, so that its end and its rows are committed together.

        ```python
        async with make_session() as session, session.begin():
            session.add(Invoice(order_id=order_id))
            await durable_context().complete(session)
        ```

        Whenever the worker is killed, the rows are written exactly once: either both are committed, and the task has
        succeeded, or neither is, and the task is delivered again. What the function does after the commit, or raises,
        changes nothing: it is not run again. If the transaction is rolled back, or a savepoint in which this was
        called, the attempt is what its function does, as without this call; it may be called again then.

        Call it last in the transaction: until that ends, `receipt.cancel()` waits for it, and so do submits with the
        `key` of the task. What the task emits and reports after this call is stored only if it is rolled back.

        Args:
            transaction: The `AsyncSession` or `AsyncConnection` of SQLAlchemy (sqlmodel), or the `AsyncConnection` of
                psycopg, connected to the database of the engine. In a plain function (`def`), the `Session`,
                `Connection`, or `Connection` of psycopg: then there is nothing to await.

            result: What `receipt.result()` returns, by the return annotation of the function. What the function
                returns after the commit is not stored.

        Raises:
            DurableTaskTakenOverError: this attempt does not have the task any more, because another worker has it, or
                because its end is stored already. Let it pass, so that the transaction is rolled back; the worker
                reports nothing then, and calls no error handler.
            EngineCapabilityError: the engine cannot do it (that for PostgreSQL cannot on trio), or not with this
                transaction. In memory (`without_engine="memory"`) it has to be a session of SQLAlchemy.
            ArgumentCodecError: *result* cannot be stored.
        """
        if self.completing is None:
            raise EngineCapabilityError(
                f"complete(): what runs {self.name!r} cannot store its end in a transaction. ProcrastinateEngine can, "
                "on asyncio"
            )
        return complete(self.completing, transaction, result)


_context: ContextVar[DurableContext | None] = ContextVar("tasks_core_context", default=None)


def durable_context() -> DurableContext:
    """
    Return the context of the durable task that runs the caller.

    Raises:
        LookupError: the caller is not run by a durable task.
    """
    context = _context.get()
    if context is None:
        raise LookupError(
            "durable_context() is for durable tasks: no durable task runs this code. Call it in a function with "
            "@durable that was scheduled"
        )
    task = current_task()
    if task is not None and task.id == context.task_id:
        return replace(context, attempt=task.attempts)
    return context


def set_context(context: DurableContext) -> None:
    _context.set(context)

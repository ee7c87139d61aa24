"""What `without_engine="memory"` puts in place of an engine: durable tasks run in the process that calls them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, runtime_checkable
from weakref import WeakKeyDictionary, ref

import anyio

from tasks_core._task import Task, TaskState, current_task
from tasks_core.exceptions import DurableTaskTakenOverError, EngineCapabilityError, EngineNotConfiguredError

from .calls import DurableCall, DurableEnd, DurableState, DurableStatus, Receipt
from .codec import StoredResult
from .commit import SessionCommit, commit_of
from .completion import CompletionOutcome
from .engine import Capability, RunDelivery
from .queues import Slots
from .registry import registry

# Beyond this many, the idempotency keys of the oldest calls are forgotten.
_KEYS_KEPT = 10_000

_OVER = (
    "transaction=: the transaction in which the task was scheduled is over, so that the task cannot wait for its "
    "commit. Schedule it before you commit"
)

Admit: TypeAlias = Callable[[Task[Any], bool], "str | None"]
"""
Takes a task, and whether its transaction was committed; returns why it does not run, or `None`. Called on the loop.
"""


@runtime_checkable
class RunsInMemory(Protocol):
    """A task that submits a call, and that can run the function in this process."""

    def _run_in_memory(self, commit: SessionCommit | None, admit: Admit) -> Task[Any]:
        """Schedule the function; it starts after *commit*, if *admit* allows it."""
        ...

    def _let_follow(self, task: Task[Any]) -> None:
        """Let the clients that follow the call follow *task*."""
        ...


class MemoryEngine:
    """
    Runs each durable call as a task of the scheduler that it was scheduled on, and loses it with the process.

    No call waits for a slot of its queue, so that each runs at once, whatever its priority.

    A call with an idempotency key of a call before it makes no second task. In a transaction of SQLAlchemy, the task
    starts after the commit, and is discarded by a rollback. A task that calls `complete()` with a session is not
    retried after its commit.
    """

    name = "memory"
    capabilities: frozenset[Capability] = frozenset(
        ("transaction", "delay", "dedup", "queues", "priority", "key", "complete")
    )

    def __init__(self) -> None:
        self._accepted: OrderedDict[tuple[str, str, str], Receipt[Any]] = OrderedDict()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self._accepted.clear()

    def join(self, transaction: Any, call: DurableCall, wanted: Callable[[], bool], /) -> SessionCommit:
        """Return the commit that the task will wait for."""
        return commit_of(transaction)

    async def submit(self, call: DurableCall, /, *, transaction: SessionCommit | None = None) -> Receipt[Any]:
        """Schedule the function of the task that submits the call."""
        submitting = current_task()
        if not isinstance(submitting, RunsInMemory):
            raise EngineNotConfiguredError("Without an engine, schedule() takes durable calls, and nothing else does")
        key = (call.queue, call.name, call.idempotency_key) if call.dedup else None
        if key is not None and (known := self._accepted.get(key)) is not None:
            if isinstance(known.source, OneTask) and (task := known.source.find()) is not None:
                submitting._let_follow(task)
            return known
        if transaction is not None and transaction.over:
            raise EngineCapabilityError(_OVER)
        task = submitting._run_in_memory(transaction, partial(self._admit, key))
        return Receipt(self.name, str(task.id), call.idempotency_key, True, OneTask(call.name, lambda: task))

    def _admit(self, key: tuple[str, str, str] | None, task: Task[Any], committed: bool) -> str | None:
        if not committed:
            return "the transaction that it was scheduled in was rolled back"
        if key is None:
            return None
        if (known := self._accepted.get(key)) is not None:  # two transactions at the same time
            return f"task #{known.id} has its idempotency key {key[2]!r}"
        find = ref(task)
        self._accepted[key] = Receipt(self.name, str(task.id), key[2], False, OneTask(key[1], find))
        if len(self._accepted) > _KEYS_KEPT:
            self._accepted.popitem(last=False)
        return None

    async def work(self, run: RunDelivery, /, *, concurrency: Slots, stopping: anyio.Event) -> None:
        """Deliver nothing, because the calls run where they are scheduled."""
        await stopping.wait()


# The results of tasks that have ended with the commit of a session, whatever their functions did afterwards.
_ended: WeakKeyDictionary[Task[Any], StoredResult | None] = WeakKeyDictionary()


class MemoryCompletion:
    """The end of a task in memory, which comes with the commit of a session of SQLAlchemy."""

    def __init__(self) -> None:
        self.used: bool = False
        self.find_task: Callable[[], Task[Any] | None] = _no_task
        """Returns the task whose receipt shows the end, if it is one of this process."""
        self.result: StoredResult | None = None
        """What `complete()` was given last."""
        self._commit: SessionCommit | None = None

    @property
    def committed(self) -> bool:
        """Whether the task has ended with the transaction."""
        return self._commit is not None and self._commit.stored

    @property
    def committing(self) -> bool:
        """Whether the transaction is being committed, so that it is not known whether the task has ended."""
        return self._commit is not None and self._commit.committing

    async def store(self, transaction: Any, result: StoredResult | None) -> None:
        """End the task when the session is committed."""
        if self._commit is not None and not self._commit.over:
            raise DurableTaskTakenOverError("complete(): the end of the task is stored already")
        self._commit = commit = commit_of(transaction, "complete()")
        self.used = True
        self.result = result
        commit.when_ended(self._note)

    def _note(self, committed: bool) -> None:
        task = self.find_task()
        if committed and task is not None:
            _ended[task] = self.result

    async def outcome(self) -> CompletionOutcome:
        """Return what became of the call. A transaction that is still open counts as rolled back."""
        return CompletionOutcome.ENDED if self.committed else CompletionOutcome.ROLLED_BACK


def _no_task() -> None: ...


_STATES = {state: DurableState(state.value) for state in TaskState if state.value in set(DurableState)}


class OneTask:
    """What receipts say of a task of this process, whatever id they ask for: it is that of the receipt."""

    def __init__(self, name: str, find: Callable[[], Task[Any] | None]) -> None:
        self._name = name
        self.find = find

    async def status(self, receipt_id: str, /) -> DurableStatus:
        """Return the state of the task, as long as there is a reference to it."""
        task = self.find()
        if task is None:
            return DurableStatus(DurableState.UNKNOWN, 0)
        if task in _ended:
            return DurableStatus(DurableState.SUCCEEDED, task.attempts, task.progress)
        between = DurableState.PENDING if task.state is TaskState.RETRYING else DurableState.UNKNOWN
        ended = task.attempts - (task.state is TaskState.RUNNING)
        state = _STATES.get(task.state, between)
        reason = task.reason if state is DurableState.CANCELLED else None
        return DurableStatus(state, ended, task.progress, reason)

    async def ended(self, receipt_id: str, /) -> DurableEnd:
        """Wait for the task. Its result is restored from JSON, as with every engine."""
        task = self.find()
        if task is None:
            return DurableEnd(DurableStatus(DurableState.UNKNOWN, 0))
        await task.wait()
        status = await self.status(receipt_id)
        if task in _ended:
            return DurableEnd(status, self._name, _ended[task])
        if status.reason is None:
            why = task.reason if task.exception is None else type(task.exception).__qualname__
            status = replace(status, reason=why)
        if task.state is not TaskState.SUCCEEDED:
            return DurableEnd(status, self._name)
        return DurableEnd(status, self._name, registry.get(self._name).result_codec.encode(task.result()))

    async def cancel(self, receipt_id: str, /) -> bool:
        """Cancel the task."""
        task = self.find()
        return task is not None and task.cancel()

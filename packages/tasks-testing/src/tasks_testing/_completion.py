"""`durable_context().complete(session)` without a database of the engine: the commit of the session is watched."""

from __future__ import annotations

from typing import Any

from tasks_core.engines import (
    CompletionOutcome,
    Delivery,
    DurableTaskTakenOverError,
    EngineCapabilityError,
    RunDelivery,
    StoredResult,
)
from tasks_core.testing import MemoryCompletion

from . import _refusals


class WatchedCompletion(MemoryCompletion):
    """The `Completion` of one delivery of an engine in memory. A fake of a session ends the task at once."""

    def __init__(self) -> None:
        super().__init__()
        self._at_once = False
        self._closed = False

    @property
    def committed(self) -> bool:
        """Whether the task has ended with the transaction."""
        return self._at_once or super().committed

    async def store(self, transaction: Any, result: StoredResult | None) -> None:
        """End the task when the session is committed."""
        if self._closed or self._at_once:
            raise DurableTaskTakenOverError(_refusals.attempt_is_over())
        try:
            await super().store(transaction, result)
        except EngineCapabilityError:
            modules = {cls.__module__.partition(".")[0] for cls in type(transaction).__mro__}
            if not modules.isdisjoint(("psycopg", "sqlalchemy")):
                raise EngineCapabilityError(_refusals.commit_is_not_announced(transaction)) from None
            self.used = self._at_once = True
            self.result = result

    async def outcome(self) -> CompletionOutcome:
        """Return what became of the call. A transaction that is still open counts as rolled back."""
        self._closed = True
        return await super().outcome()

    async def run(self, run: RunDelivery, delivery: Delivery) -> StoredResult | None:
        """Have the call run. What it raises does not count if the task has ended with the transaction."""
        try:
            return await run(delivery)
        except Exception:
            if not self.committed:
                raise
            return None
        finally:
            self._closed = True

"""The commit of a session of SQLAlchemy, which a durable task waits for that no engine stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tasks_core.exceptions import EngineCapabilityError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction


def commit_of(transaction: Any, parameter: str = "transaction=") -> SessionCommit:
    """
    Return the commit of a `Session` or an `AsyncSession`; no library is imported that the caller has not imported.

    Args:
        transaction: The session.

        parameter: What an error calls it.

    Raises:
        EngineCapabilityError: *transaction* is neither.
    """
    for cls in type(transaction).__mro__:
        match f"{cls.__module__}.{cls.__qualname__}":
            case "sqlalchemy.ext.asyncio.session.AsyncSession":
                return SessionCommit(transaction.sync_session)
            case "sqlalchemy.orm.session.Session":
                return SessionCommit(transaction)
    raise EngineCapabilityError(
        f"{parameter} was given a {type(transaction).__module__}.{type(transaction).__qualname__}, for whose commit a "
        "task in memory cannot wait. Pass the SQLAlchemy Session or AsyncSession, or give the scheduler an engine"
    )


class SessionCommit:
    """
    The end of the transaction that a session is in now; of the next one, if it is in none.

    A rollback of a savepoint that is open now counts as the rollback of the transaction.
    """

    __slots__ = ("_begun", "_callbacks", "_committed", "_root", "_savepoints", "_session", "dropped")

    dropped: bool
    """Whether a savepoint was rolled back that was open at the beginning."""

    def __init__(self, session: Session) -> None:
        from sqlalchemy import event

        self._session = session
        self._callbacks: list[Callable[[bool], object]] = []
        self._begun = False
        self._committed: bool | None = None
        self.dropped = False
        self._root: SessionTransaction | None = session.get_transaction()
        self._savepoints: list[SessionTransaction] = []
        savepoint = session.get_nested_transaction()
        while savepoint is not None and savepoint.nested:
            self._savepoints.append(savepoint)
            savepoint = savepoint.parent
        event.listen(session, "before_commit", self._before_commit)
        event.listen(session, "after_commit", self._after_commit)
        event.listen(session, "after_soft_rollback", self._after_rollback)

    @property
    def stored(self) -> bool:
        """Whether the transaction is committed, so that the task runs whatever becomes of its phase."""
        return bool(self._committed)

    @property
    def committing(self) -> bool:
        """Whether the commit has begun, and not ended."""
        return self._begun and self._committed is None

    @property
    def over(self) -> bool:
        """Whether the transaction has ended without a commit, or was followed by another one."""
        if self._committed is None and self._root is not None:
            return self._root is not self._session.get_transaction()
        return self._committed is False

    def when_ended(self, callback: Callable[[bool], object]) -> None:
        """Call *callback* with whether the transaction was committed, on the thread that ends it; or now."""
        if self._committed is None:
            self._callbacks.append(callback)
        else:
            callback(self._committed)

    # ---- what the session reports; also for each savepoint ----

    def _before_commit(self, session: Session) -> None:
        if session.get_nested_transaction() is None:
            self._begun = True

    def _after_commit(self, session: Session) -> None:
        if session.get_nested_transaction() is None:
            self._end(True)

    def _after_rollback(self, _session: Session, ended: SessionTransaction) -> None:
        if self._committed is None and ended in self._savepoints:
            self.dropped = True
        if self.dropped or not ended.nested:
            self._end(False)

    def _end(self, committed: bool) -> None:
        if self._committed is not None:
            return
        self._committed = committed
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(committed)

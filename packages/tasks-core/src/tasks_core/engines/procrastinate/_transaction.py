"""What `transaction=` takes: a call becomes part of a transaction that belongs to the caller."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tasks_core.engines import EngineCapabilityError

from ._ways import ConnectionWay, SessionWay, Statement, execute, way_into

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

logger = logging.getLogger("tasks_core")


class Row(NamedTuple):
    """What a statement that stores a call returns."""

    id: int
    created: bool
    """Whether the row is new."""
    same: bool
    """Whether its arguments are those of the call."""
    key: str
    """The idempotency key of the row."""
    replaced: Sequence[int]
    """The rows that were cancelled because this one takes their place."""


_OVER = (
    "transaction=: the transaction in which the task was scheduled is over, so that the task cannot become part of it. "
    "Let the transaction end after the response has begun, or submit the task before you commit: "
    "await tasks.after_response.submit()"
)


class Transaction(Protocol):
    """A transaction that the caller has begun, and will commit or roll back."""

    @property
    def stored(self) -> bool:
        """Whether the call became part of the transaction before `store()` was called."""
        ...

    @property
    def dropped(self) -> bool:
        """Whether the call was scheduled within a savepoint that was rolled back, so that it must not be stored."""
        ...

    async def store(self) -> Row:
        """Store the call in the transaction, or return the row that is there."""
        ...


def join_transaction(transaction: Any, statement: Statement, wanted: Callable[[], bool], name: str) -> Transaction:
    """
    Find out what kind of transaction this is.

    Raises:
        EngineCapabilityError: it is none that is known.
    """
    way = way_into(transaction, "transaction=")
    if isinstance(way, SessionWay):
        return _SessionTransaction(way, statement, wanted, name)
    return _ConnectionTransaction(way, statement)


class _ConnectionTransaction:
    """A connection, which does not announce that it is about to be committed."""

    __slots__ = ("_statement", "_way")

    stored = False
    dropped = False

    def __init__(self, way: ConnectionWay, statement: Statement) -> None:
        self._way = way
        self._statement = statement

    async def store(self) -> Row:
        if self._way.is_over():
            raise EngineCapabilityError(_OVER)
        return Row(*await self._way.fetch(self._statement))


class _SessionTransaction:
    """
    A session of SQLAlchemy.

    The call becomes part of the root transaction, whatever savepoints do: it is stored by `store()`, or else right
    before the root transaction is committed. A row that was stored within a savepoint which is rolled back is stored
    again. A call that was scheduled within such a savepoint is dropped with it.

    A session that has been closed would begin a new transaction, which nothing commits, and the task would be gone: so
    the transaction has to be the one of the time of the call, or the first one if there was none.
    """

    __slots__ = (
        "_acknowledged",
        "_committed",
        "_name",
        "_over",
        "_root",
        "_row",
        "_savepoints",
        "_session",
        "_statement",
        "_stored_in",
        "_wanted",
        "_way",
        "dropped",
    )

    def __init__(self, way: SessionWay, statement: Statement, wanted: Callable[[], bool], name: str) -> None:
        from sqlalchemy import event

        self._way = way
        self._session = session = way.session
        self._statement = statement
        self._wanted = wanted
        self._name = name
        self._row: Row | None = None
        self._acknowledged = False
        self._committed = False
        self._over = False
        self.dropped = False
        self._root: SessionTransaction | None = session.get_transaction()
        self._savepoints = _savepoints(session)  # those of the call
        self._stored_in: list[SessionTransaction] = []  # those of the row
        event.listen(session, "before_commit", self._before_commit)
        event.listen(session, "after_commit", self._after_commit)
        event.listen(session, "after_soft_rollback", self._after_rollback)

    @property
    def stored(self) -> bool:
        return self._row is not None

    async def store(self) -> Row:
        if self._row is None:
            if not self._is_current():
                raise EngineCapabilityError(_OVER)
            self._row = await self._way.run(self._store)
            self._acknowledged = True
        return self._row

    def _store(self) -> Row:
        self._row = Row(*execute(self._session.connection(), self._statement))
        self._stored_in = _savepoints(self._session)
        return self._row

    def _is_current(self) -> bool:
        if self._over or self.dropped:
            return False
        return self._root is None or self._root is self._session.get_transaction()

    # ---- what the session reports; also for each savepoint ----

    def _before_commit(self, session: Session) -> None:
        if session.get_nested_transaction() is not None or self._row is not None or not self._is_current():
            return
        if self._acknowledged or self._wanted():
            self._store()

    def _after_commit(self, session: Session) -> None:
        if session.get_nested_transaction() is None:
            self._committed = self._row is not None
            self._over = True

    def _after_rollback(self, _session: Session, ended: SessionTransaction) -> None:
        if self._over:
            return
        if ended in self._stored_in or not ended.nested:
            self._row = None
        if ended in self._savepoints:
            self.dropped = True
            logger.info(
                "Durable task %r is dropped: the savepoint that it was scheduled in was rolled back", self._name
            )
        elif not ended.nested:
            self._over = True


def _savepoints(session: Session) -> list[SessionTransaction]:
    """Return the savepoints that are open, from the inner to the outer."""
    found = []
    transaction = session.get_nested_transaction()
    while transaction is not None and transaction.nested:
        found.append(transaction)
        transaction = transaction.parent
    return found

"""`run_durable(cut="everywhere")`: each durable task, cut off once at each of its suspensions."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import anyio

from . import _refusals
from ._assertions.end_of_test import add_findings
from ._engine import EngineSnapshot, RecordedEngine
from ._messages import cuts
from ._recording.cut import Cut

Action: TypeAlias = tuple[Literal["restore", "run", "check"], Callable[[], Any]]


@dataclass(frozen=True)
class Round:
    """One run of every submitted task, with a cut."""

    name: str
    """The task that is cut off."""
    cut: Cut
    last: int
    """The number of the last place of that task."""


class CutEverywhere:
    """
    Runs the submitted tasks once without a cut, then once for each place of each of them.

    Args:
        engine: Stores the submitted calls.

        run: Runs the waiting calls.

        restore: Brings back the state before the first run; called before each run.

        check: Asserts the outcome of a run; its result has to be the same after each run.

        on_cut: Closes what the death of the process would close; called between a cut and the next attempt.

        limit: The largest number of suspensions of one task.
    """

    def __init__(
        self,
        engine: RecordedEngine,
        run: Callable[[], Awaitable[None]],
        restore: Callable[[], object],
        check: Callable[[], object],
        on_cut: Callable[[], object] | None,
        limit: int,
    ) -> None:
        self._engine = engine
        self._run = run
        self._restore = restore
        self._check = check
        self._on_cut = on_cut
        self._limit = limit
        self._round: Round | None = None

    def all(self) -> None:
        """Make every run, each on an event loop of its own."""
        __tracebackhide__ = True
        actions = self._actions()
        result: Any = None
        while True:
            try:
                kind, action = actions.send(result)
            except StopIteration:
                return
            try:
                result = anyio.run(self._run) if kind == "run" else action()
            except BaseException as error:
                self._note_cut(error)
                raise
            if inspect.isawaitable(result):
                getattr(result, "close", lambda: None)()  # otherwise a warning that it was never awaited
                raise TypeError(_refusals.awaitable_in_sync(kind))

    async def aall(self) -> None:
        """Make every run on the running event loop."""
        __tracebackhide__ = True
        actions = self._actions()
        result: Any = None
        while True:
            try:
                _, action = actions.send(result)
            except StopIteration:
                return
            try:
                result = action()
                if inspect.isawaitable(result):
                    result = await result
            except BaseException as error:
                self._note_cut(error)
                raise

    def _note_cut(self, error: BaseException) -> None:
        if self._round is not None:
            add_findings(error, [cuts.place_of(self._round.name, self._round.cut, self._round.last)])

    def _actions(self) -> Generator[Action, Any, None]:
        before = self._engine.snapshot()
        counted: list[Cut] = []

        def count(_: int) -> Cut:
            counted.append(Cut(None))
            return counted[-1]

        reference = yield from self._one_run(before, count)
        names = [name for name, _ in reference.states]
        if not names:
            raise AssertionError(cuts.nothing_to_cut())
        for delivery, (name, uncut) in enumerate(zip(names, counted, strict=True)):
            if uncut.suspensions > self._limit:
                raise ValueError(cuts.too_many_places(name, uncut.suspensions, self._limit))
            for at in range(uncut.suspensions + 2):
                cut = Cut(at)
                self._round = Round(name, cut, uncut.suspensions + 1)
                outcome = yield from self._one_run(before, _only(delivery, cut))
                if outcome != reference:
                    raise AssertionError(cuts.different(name, cut, uncut.suspensions + 1, reference, outcome))

    def _one_run(
        self, before: EngineSnapshot, cut_for: Callable[[int], Cut | None]
    ) -> Generator[Action, Any, cuts.Outcome]:
        yield "restore", self._restore
        self._engine.rewind(before)
        self._engine.cut_for = cut_for
        if self._on_cut is not None:
            self._engine.on_cut = self._on_cut
        yield "run", self._run
        result = yield "check", self._check
        tasks = [run.task for run in self._engine.deliveries if run.task is not None]
        return cuts.Outcome(result, tuple((task.name, task.state) for task in tasks))


def _only(delivery: int, cut: Cut) -> Callable[[int], Cut | None]:
    return lambda number: cut if number == delivery else None


def restore_savepoint(connection: Any) -> Callable[[], None]:
    """
    Return a `restore` for `run_durable(cut="everywhere")` that rolls a SQLAlchemy connection back.

    The first call sets a savepoint, each further call rolls back to it. Bind the sessions of the tasks to the
    connection so that a commit ends a savepoint and not the transaction:
    `sessionmaker(connection, join_transaction_mode="create_savepoint")`.

    Args:
        connection: A `sqlalchemy.Connection` that is in a transaction. For tasks with asyncio drivers, give each
            attempt a connection of its own and use `cut_connections()`: a cut may leave such a connection in the middle
            of a statement.

    Raises:
        TypeError: *connection* is no such connection.
    """
    if hasattr(connection, "sync_connection") or not hasattr(connection, "begin_nested"):
        raise TypeError(_refusals.not_a_connection(connection))
    savepoint: Any = None

    def restore() -> None:
        nonlocal savepoint
        if savepoint is not None:
            savepoint.rollback()
        savepoint = connection.begin_nested()

    return restore


def cut_connections(engine: Any) -> Callable[[], None]:
    """
    Return an `on_cut` for `run_durable(cut="everywhere")` that closes the connections of a SQLAlchemy engine.

    The death of a process closes its connections, and the database rolls their transactions back. A cut alone does not:
    the next attempt would wait for the locks of the attempt before.

    Args:
        engine: An `Engine` or an `AsyncEngine` of SQLAlchemy that has no connection yet. Its database must outlive its
            connections, which that of `sqlite://` does not.
    """
    from sqlalchemy import event

    sync_engine = getattr(engine, "sync_engine", engine)
    open_connections: dict[int, Any] = {}

    @event.listens_for(sync_engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        open_connections[id(connection)] = connection

    @event.listens_for(sync_engine, "close")
    def close(connection: Any, _record: object) -> None:
        open_connections.pop(id(connection), None)

    def cut() -> None:
        while open_connections:
            _, connection = open_connections.popitem()
            _terminate(sync_engine.dialect, connection)
        sync_engine.dispose(close=False)

    return cut


def _terminate(dialect: Any, connection: Any) -> None:
    """Close a connection of a driver at once, in the middle of a statement too."""
    psycopg = getattr(getattr(connection, "driver_connection", connection), "pgconn", None)
    if psycopg is None:
        dialect.do_terminate(connection)
        return
    # SQLAlchemy closes it with an `await`, which waits for the statement. The event loop has to forget the socket
    # first, because the next connection may get its number.
    loop = asyncio.get_running_loop()
    loop.remove_reader(psycopg.socket)
    loop.remove_writer(psycopg.socket)
    psycopg.finish()

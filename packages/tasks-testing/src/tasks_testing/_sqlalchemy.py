"""What `run_durable(cut="everywhere")` needs for a database behind SQLAlchemy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from . import _refusals


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

"""Sessions of SQLAlchemy that a request had closed and that a task uses again, which SQLAlchemy allows."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any
from weakref import WeakKeyDictionary, ref

from tasks_core import Task, current_task


class SessionWatch:
    """Notes which tasks use a session that the request which scheduled them had closed."""

    def __init__(self) -> None:
        self.found: list[Task[Any]] = []
        self._closed_by: MutableMapping[Any, ref[Any]] = WeakKeyDictionary()

    def start(self) -> None:
        """Begin, if the program has imported the sessions of SQLAlchemy."""
        if "sqlalchemy.orm" in sys.modules:
            _install()
            _watches.append(self)

    def stop(self) -> None:
        """End."""
        if self in _watches:
            _watches.remove(self)

    def closed(self, session: Any, caller: Any) -> None:
        """Note that a session was closed by *caller*; only a request counts."""
        if hasattr(caller, "method") and hasattr(caller, "path"):
            self._closed_by[session] = ref(caller)

    def used(self, session: Any) -> None:
        """Note that a session begins a transaction."""
        closed_by = self._closed_by.get(session)
        if closed_by is None:
            return
        task = current_task()
        if task is None:
            del self._closed_by[session]  # by the request itself, which closes it again
        elif task.phase is not None and task.phase.origin is closed_by() and task not in self.found:
            self.found.append(task)


_watches: list[SessionWatch] = []
_installed: list[bool] = []


def _install() -> None:
    """Watch all sessions of the process, once. There is no event for the end of a session, so its method is wrapped."""
    if _installed:
        return
    _installed.append(True)
    from sqlalchemy import event
    from sqlalchemy.orm import Session
    from tasks_core.frameworks import current

    close = Session.close

    def close_and_note(self: Any) -> None:
        close(self)
        for watch in _watches:
            watch.closed(self, current())

    Session.close = close_and_note  # type: ignore[method-assign]  # an AsyncSession calls it too

    @event.listens_for(Session, "after_begin")
    def after_begin(session: Any, _transaction: object, _connection: object) -> None:
        for watch in _watches:
            watch.used(session)

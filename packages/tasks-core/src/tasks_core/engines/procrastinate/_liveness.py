"""The sign of life of a worker, from a thread of its own, and the search for workers that give none."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, LiteralString, Protocol

import psycopg

from tasks_core.engines import CallLabel

from ._connection import set_up
from ._errors import is_outage
from ._options import WorkOptions
from ._rows import attempt_of
from ._sql import ABORTED, BEAT, RECOVER

logger = logging.getLogger("tasks_core")

# A worker that misses this many heartbeats is dead.
MISSED = 4
# Seconds after which the death of a worker is no longer held against a call.
_FORGET_AFTER = 72 * 3600.0
# Seconds that a call is delayed after the first death; four times as long after each further one.
SUSPECT_PAUSE = 1.0


class Registration(Protocol):
    """What the thread needs to know of the worker, and reports to it."""

    def registered(self) -> tuple[int | None, list[int]]:
        """Return the number under which the worker claims, and those under which it claimed before."""
        ...

    def queues(self) -> list[str]:
        """Return the queues that the worker serves."""
        ...

    def held(self) -> list[int]:
        """Return the jobs whose end is not stored yet."""
        ...

    def abort(self, ids: list[int]) -> None:
        """Cancel jobs."""
        ...

    def forget_registration(self, number: int) -> None:
        """Register anew before the next claim: the database does not know this number."""
        ...

    def wake(self) -> None:
        """Look for calls."""
        ...


class Liveness:
    """
    Beats, whether the event loop of the worker runs or is blocked by a task.

    Only a process that is dead, stopped, or without the database is silent. A blocked event loop is a warning that
    names what blocks it, and no death.
    """

    def __init__(
        self, conninfo: str, options: WorkOptions, registration: Registration, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._conninfo = conninfo
        self._options = options
        self._registration = registration
        self._loop = loop
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tasks heartbeat", daemon=True)
        self._silence = options.heartbeat * MISSED
        # Workers that were without the database, as this one may have been, get the time to show that they live.
        self._judges_from = monotonic() + self._silence
        self._answered = True
        self._asked_at = 0.0
        self._warned = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; wait for `join()` in another thread."""
        self._stop.set()

    def join(self) -> None:
        self._thread.join()
        self._options.beats.at = None

    def _run(self) -> None:
        failing = False
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._conninfo, autocommit=True) as connection:
                    set_up(connection)
                    while not self._stop.is_set():
                        self._beat(connection)
                        failing = False
                        self._pause()
            except (psycopg.Error, OSError) as error:
                self._judges_from = monotonic() + self._silence
                if is_outage(error):
                    logger.debug("The heartbeat of the worker fails (%s)", type(error).__name__)
                elif not failing:
                    logger.exception("The heartbeat of the worker fails, and is tried again")
                failing = True
                self._pause()

    def _pause(self) -> None:
        """Wait for the next heartbeat, and notice if this process, and perhaps all, did not run meanwhile."""
        began = monotonic()
        self._watch_loop()
        self._stop.wait(self._options.heartbeat)
        if monotonic() - began > 2 * self._options.heartbeat:  # pragma: no cover  # the process was stopped
            self._judges_from = monotonic() + self._silence

    # ---- one beat ----

    def _beat(self, connection: psycopg.Connection[Any]) -> None:
        registration = self._registration
        current, former = registration.registered()
        numbers = former if current is None else [*former, current]
        known = {row[0] for row in _fetch(connection, BEAT, {"ids": numbers})} if numbers else set()
        if current is not None and current not in known:
            self._call(registration.forget_registration, current)
        held = registration.held()
        if held and (aborted := [row[0] for row in _fetch(connection, ABORTED, {"held": held})]):
            self._call(registration.abort, aborted)
        self._recover(connection, former, held)
        self._options.beats.note()

    def _recover(self, connection: psycopg.Connection[Any], former: list[int], held: list[int]) -> None:
        rows = _fetch(
            connection,
            RECOVER,
            {
                "queues": self._registration.queues(),
                "silence": self._silence if monotonic() >= self._judges_from else None,
                "former": former,
                "held": held,
                "max_deaths": self._options.max_deaths,
                "forget_after": _FORGET_AFTER,
                "pause": SUSPECT_PAUSE,
            },
        )
        for row in rows:
            id_, name, key, queue, attempts, returns, *outcome = row
            attempt = attempt_of(attempts, returns) - 1  # the row counts the death as a delivery that has ended
            queue = self._options.queue_of(queue)
            _log_recovery(CallLabel(str(name), str(key), str(id_), queue, max(1, attempt)), *outcome)
        if rows:
            self._call(self._registration.wake)

    def _call(self, func: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(func, *args)
        except RuntimeError:  # pragma: no cover  # at the end of a process
            self._stop.set()  # the event loop is closed: the worker was not stopped, but its program has ended

    # ---- the event loop ----

    def _watch_loop(self) -> None:
        """Warn once for each time that the event loop does not run between two heartbeats."""
        if self._answered:
            self._answered, self._asked_at, self._warned = False, monotonic(), False
            self._call(self._answer)
        elif not self._warned:
            self._warned = True
            task = asyncio.current_task(self._loop)
            logger.warning(
                "The event loop of the worker has been blocked for %.1f s by %s: no task starts or ends meanwhile",
                monotonic() - self._asked_at,
                "a callback" if task is None else repr(task.get_name()),
            )

    def _answer(self) -> None:
        self._answered = True


def _fetch(connection: psycopg.Connection[Any], query: LiteralString, parameters: Mapping[str, Any]) -> list[Any]:
    return connection.execute(query, parameters).fetchall()


def _log_recovery(label: CallLabel, state: str, unheard: bool, deaths: int, given_up: bool) -> None:
    if state == "aborted":
        level, text = logging.WARNING, "is cancelled, as was asked for: the worker that ran it died"
    elif unheard:
        level, text = logging.INFO, "is back in the queue: the answer that gave it to this worker was lost"
    elif given_up:
        level, text = logging.ERROR, f"is given up: {deaths} workers died while they ran it"
    else:
        level = logging.WARNING
        text = f"is back in the queue, to run alone among such tasks: the worker that ran it died ({deaths})"
    logger.log(level, "%s %s", label, text, extra=label.fields)

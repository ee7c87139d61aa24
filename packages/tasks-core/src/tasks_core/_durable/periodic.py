"""
Periodic durable functions: each occurrence is one durable task, however many workers there are.

Each worker that knows a function looks when its next occurrence is due, by the clock of the engine, and submits it. The
engine stores which occurrence was the last one together with the task, so that one of them wins, and none is lost.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import random
from typing import Any, NamedTuple

import anyio

from tasks_core._support.log import logger
from tasks_core.exceptions import EngineCapabilityError, EngineUnavailableError, InvalidConfigError
from tasks_core.triggers import Every, Trigger

from .calls import DurableCall
from .engine import Engine, PeriodicEngine
from .function import DurableFunction, periodic_functions

# Seconds after which a worker asks again for the time at the latest: the process may have been suspended.
_LOOK_AGAIN = 60.0
# Seconds between two looks at least, and after an error.
_PAUSE, _PAUSE_AFTER_ERROR = 0.05, 5.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# One run at a time: an occurrence joins the run before it if that has not ended.
_KEY = "tasks_core.periodic"


class Due(NamedTuple):
    """What is to be done about the occurrences of a function after its last one."""

    run: datetime | None
    """The occurrence that is run now."""
    since: datetime | None
    """The first of those before it, or before now, that are not run any more; `None` if there are none."""
    next_at: datetime | None
    """When to look again."""


def next_occurrence(trigger: Trigger, after: datetime) -> datetime | None:
    """
    Return the first occurrence after a moment; it does not depend on when a process has started.

    Raises:
        InvalidConfigError: the trigger returned a moment that is not after *after*.
    """
    # An interval is counted from a moment that is the same for all processes.
    previous = _EPOCH if isinstance(trigger, Every) and trigger.first is None else None
    found = trigger.next_after(previous, after)
    if found is not None and found <= after:
        if isinstance(trigger, Every):  # its `first` may be the moment itself
            return trigger.next_after(found, after)
        raise InvalidConfigError(
            f"{type(trigger).__qualname__}.next_after() returned {found}, which is not after {after}"
        )
    return found


def find_due(trigger: Trigger, last: datetime, now: datetime, catch_up: float) -> Due:
    """Return what is due: of the occurrences that were missed by less than *catch_up* seconds, the latest."""
    first = at = next_occurrence(trigger, last)
    if first is None or first > now:
        return Due(None, None, first)
    if first <= (bound := now - timedelta(seconds=catch_up)):
        at = next_occurrence(trigger, bound)
    run: datetime | None = None
    while at is not None and at <= now:
        run, at = at, next_occurrence(trigger, at)
    return Due(run, None if run == first else first, at)


def occurrence_call(function: DurableFunction[..., Any, Any], at: datetime) -> DurableCall:
    """Return the call that a worker submits for an occurrence; its idempotency key has the moment, in UTC."""
    trigger = function.periodic
    jitter = float(getattr(trigger, "jitter", 0.0))
    delay = random() * jitter if jitter else 0.0
    return DurableCall(
        name=function.name,
        args={},
        idempotency_key=f"{function.name} {at.astimezone(UTC).isoformat()}",
        retry=function.retry,
        not_before=datetime.now(UTC).timestamp() + delay if delay else None,
        queue=function.queue,
        priority=function.priority,
        key=_KEY,
    )


class Occurrences:
    """Submits the occurrences of the periodic functions of this process, until it is stopped."""

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine) -> None:
        if periodic_functions() and not isinstance(engine, PeriodicEngine):
            name = periodic_functions()[0].name
            raise EngineCapabilityError(
                f"{name!r} has periodic=, and {engine.name} has no periodic tasks: an engine needs the methods of "
                "PeriodicEngine for them"
            )
        self._engine = engine

    async def run(self, stopping: anyio.Event) -> None:
        """Run until *stopping* is set. Errors are logged, and end nothing."""
        engine = self._engine
        if not isinstance(engine, PeriodicEngine):
            return
        while not stopping.is_set():
            try:
                pause = await self._submit_due(engine)
            except EngineUnavailableError as error:
                logger.debug("Periodic durable tasks wait for the engine (%s)", type(error).__name__)
                pause = _PAUSE_AFTER_ERROR
            except Exception:
                logger.exception("Periodic durable tasks could not be submitted, and are tried again")
                pause = _PAUSE_AFTER_ERROR
            with anyio.move_on_after(max(pause, _PAUSE)):
                await stopping.wait()

    async def _submit_due(self, engine: PeriodicEngine) -> float:
        """Submit what is due, and return the seconds until the next look."""
        functions = periodic_functions()
        if not functions:
            return _LOOK_AGAIN
        now, last = await engine.occurrences([function.name for function in functions])
        next_look = now + timedelta(seconds=_LOOK_AGAIN)
        for function, last_of_it in zip(functions, last, strict=True):
            assert function.periodic is not None
            try:
                due = find_due(function.periodic, last_of_it, now, function.catch_up)
            except Exception:
                logger.exception("The trigger of the periodic durable task %r failed", function.name)
                continue
            await self._deal_with(engine, function, due, now)
            if due.next_at is not None:
                next_look = min(next_look, due.next_at)
        return (next_look - now).total_seconds()

    async def _deal_with(
        self, engine: PeriodicEngine, function: DurableFunction[..., Any, Any], due: Due, now: datetime
    ) -> None:
        if due.run is not None:
            receipt = await engine.submit_occurrence(occurrence_call(function, due.run), due.run)
            if receipt is None:
                return  # another worker was faster
            if not receipt.created:
                logger.info(
                    "The occurrence of the periodic durable task %r at %s is skipped, because task %s has not ended",
                    function.name,
                    due.run,
                    receipt.id,
                )
            elif due.since is not None:
                logger.info(
                    "The periodic durable task %r is %.1f s late and runs once for all occurrences since %s",
                    function.name,
                    (now - due.run).total_seconds(),
                    due.since,
                )
        elif due.since is not None:
            # The same moment for each worker that finds this, so that one of them writes the line.
            until = now if due.next_at is None else due.next_at - timedelta(microseconds=1)
            if not await engine.skip_occurrences(function.name, until):
                return
            logger.warning(
                "The periodic durable task %r is not run for its occurrences since %s: no worker ran then, and they "
                "are more than %g s late",
                function.name,
                due.since,
                function.catch_up,
            )

"""Where the waits of tasks come from: delays, pauses before a retry, timeouts."""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import anyio.lowlevel

from ._support.log import logger
from ._support.overrides import OverrideStack, Subscription


@runtime_checkable
class Clock(Protocol):
    """
    A source of time. `TaskScheduler(clock=...)` takes any object with these two methods.

    `now()` is called from any thread; `sleep_until()` only on the event loop of the scheduler.
    """

    def now(self) -> float:
        """Return the time in seconds, which never goes back; only differences mean something."""
        ...

    async def sleep_until(self, deadline: float) -> None:
        """Return when `now()` is *deadline* or more; at once (but after a checkpoint) if it is already."""
        ...


class MonotonicClock:
    """
    The real time, from `time.monotonic()`.

    Libraries that freeze the time for a test do not freeze this clock, also if they replace `time.monotonic`.
    """

    __slots__ = ()

    # An attribute of the class, because freezegun replaces what it finds in modules: half of a clock that is replaced
    # ends a timeout at once, or never ends a wait.
    if TYPE_CHECKING:

        def now(self) -> float:
            """Return the seconds of `time.monotonic()`."""
            ...
    else:
        now = staticmethod(time.monotonic)

    async def sleep_until(self, deadline: float) -> None:
        """Wait with `anyio.sleep()`."""
        await anyio.lowlevel.checkpoint()
        # Event loops may wake a sleeper a little early.
        while (left := deadline - self.now()) > 0:  # noqa: ASYNC110  time makes no events
            await anyio.sleep(left)


_REAL = MonotonicClock()
# Seconds by which two threads that ask at the same moment may get their answers in the wrong order.
_TOLERANCE = 1.0


class SteadyClock:
    """
    Another clock; or the real time, from the moment at which that clock raises, goes back or wakes a sleeper early.

    For what has to end whatever a clock of the application does, such as a shutdown.
    """

    __slots__ = ("_broken", "_clock", "_latest", "_real")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._broken = False
        self._latest = -inf  # the latest time of the clock, and the real time at that moment
        self._real = _REAL.now()

    def now(self) -> float:
        """Return the time of the clock, continued by the real time once it is broken."""
        if not self._broken:
            try:
                now = self._clock.now()
            except Exception as error:
                self._give_up(f"raised {type(error).__name__}", error)
            else:
                if now >= self._latest - _TOLERANCE:
                    self._latest, self._real = max(self._latest, now), _REAL.now()
                    return now
                self._give_up(f"went back by {self._latest - now:g} s")
        return self._latest + (_REAL.now() - self._real)

    async def sleep_until(self, deadline: float) -> None:
        """Wait by the clock as long as it keeps its contract, and for the rest by the real time."""
        if not self._broken:
            try:
                await self._clock.sleep_until(deadline)
            except Exception as error:
                self._give_up(f"raised {type(error).__name__}", error)
            else:
                if self.now() < deadline and not self._broken:
                    self._give_up("woke a sleeper early")
        while self._broken and (left := deadline - self.now()) > 0:  # noqa: ASYNC110  time makes no events
            await anyio.sleep(left)

    def _give_up(self, why: str, error: Exception | None = None) -> None:
        self._broken = True
        if self._latest == -inf:
            self._latest = 0.0
        name = type(self._clock).__qualname__
        logger.error(
            "The clock %s %s: timeouts and shutdown follow the real time from now on", name, why, exc_info=error
        )


def steady(clock: Clock) -> Clock:
    """Return a clock for waits that have to end."""
    return clock if type(clock) is MonotonicClock else SteadyClock(clock)


_overrides: OverrideStack[Clock] = OverrideStack()


def override_clock(clock: Clock) -> Subscription:
    """
    Take the delays, retry pauses and timeouts of all schedulers in this process from *clock*.

    In force for every wait that begins until the returned subscription is closed; the latest override wins. A wait that
    has begun stays with its clock. The bounds of shutdown stay with the clock that each scheduler was made with, so
    that a test with a virtual clock still ends.
    """
    return _overrides.add(clock)


def clock_in_force(own: Clock) -> Clock:
    """Return the clock for the next wait of a task on a scheduler whose own clock is *own*."""
    return _overrides.items[-1] if _overrides.items else own

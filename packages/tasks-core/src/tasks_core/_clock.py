"""Where the waits of tasks come from: delays, pauses before a retry, timeouts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import anyio.lowlevel

from ._support.overrides import OverrideStack, Subscription


@runtime_checkable
class Clock(Protocol):
    """
    A source of time. `TaskScheduler(clock=...)` takes any object with these two methods.

    `now()` is called from any thread; `sleep_until()` only on the event loop of the scheduler.
    """

    def now(self) -> float:
        """Return the time in seconds; only differences mean something."""
        ...

    async def sleep_until(self, deadline: float) -> None:
        """Return when `now()` is *deadline* or more; at once (but after a checkpoint) if it is already."""
        ...


class MonotonicClock:
    """The real time, from `time.monotonic()`."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now: Callable[[], float] = time.monotonic

    async def sleep_until(self, deadline: float) -> None:
        """Wait with `anyio.sleep()`."""
        await anyio.lowlevel.checkpoint()
        # Event loops may wake a sleeper a little early.
        while (left := deadline - time.monotonic()) > 0:  # noqa: ASYNC110  time makes no events
            await anyio.sleep(left)


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

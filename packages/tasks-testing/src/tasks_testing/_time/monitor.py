"""Waiting for something to become true, in any thread and on any event loop, while other threads make it true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, RLock
from typing import TypeAlias, TypeVar

import anyio

T = TypeVar("T")


class Wakeup:
    """An event of the running event loop that may be set from any thread."""

    __slots__ = ("_event", "_post")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._post = _poster()

    def set(self) -> None:
        """Wake whoever waits, soon. Never blocks; does nothing when the loop is gone."""
        with suppress(RuntimeError):  # the loop is closed, and who waited on it with it
            self._post(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()


def _poster() -> Callable[[Callable[[], object]], object]:
    """Find out how other threads hand something to the running loop."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon


def in_event_loop() -> bool:
    """Whether an event loop runs in this thread, so that blocking would stop it."""
    try:
        anyio.lowlevel.current_token()
    except RuntimeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Wait:
    """One step of a procedure that has to wait: until a condition is true, for at most some seconds of real time."""

    until: Callable[[], bool]
    timeout: float | None


Steps: TypeAlias = Generator[Wait, bool, T]
"""
A procedure that yields each wait and is told whether it ended in time.

Written once, it serves both the blocking and the `await` form of a method: see `Monitor.run()` and `Monitor.arun()`.
"""


class Monitor:
    """
    A lock around some state, and the means to wait for changes of it.

    Conditions are evaluated under the lock, in the thread of whoever waits.
    """

    def __init__(self) -> None:
        self.lock: RLock = RLock()
        self.version: int = 0
        """Counts the changes."""
        self._condition = Condition(self.lock)
        self._wakeups: list[Wakeup] = []

    def changed(self) -> None:
        """Have everybody look at their condition again."""
        with self.lock:
            self.version += 1
            self._condition.notify_all()
            wakeups, self._wakeups = self._wakeups, []
        for wakeup in wakeups:
            wakeup.set()

    def run(self, steps: Steps[T]) -> T:
        """Take the steps of a procedure, blocking the thread."""
        __tracebackhide__ = True
        try:
            wait = next(steps)
            while True:
                with self.lock:
                    reached = self._condition.wait_for(wait.until, wait.timeout)
                wait = steps.send(reached)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # the type of StopIteration.value is Any

    async def arun(self, steps: Steps[T]) -> T:
        """Take the steps of a procedure on the running event loop."""
        __tracebackhide__ = True
        await anyio.lowlevel.checkpoint()
        try:
            wait = next(steps)
            while True:
                wait = steps.send(await self._await(wait))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # the type of StopIteration.value is Any

    async def _await(self, wait: Wait) -> bool:
        deadline = None if wait.timeout is None else time.monotonic() + wait.timeout
        while True:
            with self.lock:
                if wait.until():
                    return True
                wakeup = Wakeup()
                self._wakeups.append(wakeup)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            with anyio.move_on_after(left) as scope:
                await wakeup.wait()
            if scope.cancelled_caught:
                return False

"""Waiting until a condition becomes true, on any thread and any event loop, while other threads change the state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, RLock
from typing import TypeAlias, TypeVar

import anyio

from .real_time import monotonic

T = TypeVar("T")


class Wakeup:
    """An event of the running event loop that any thread may set."""

    __slots__ = ("_event", "_post")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._post = _poster()

    def set(self) -> None:
        """Wake the waiting coroutine at the next turn of its loop. Never blocks; does nothing on a closed loop."""
        with suppress(RuntimeError):  # the loop is closed, so no coroutine waits on it
            self._post(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()


def _poster() -> Callable[[Callable[[], object]], object]:
    """Return the function by which other threads run a callback on the running event loop."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon


def in_event_loop() -> bool:
    """Return whether an event loop runs in this thread, so that blocking the thread would stop the loop."""
    try:
        anyio.lowlevel.current_token()
    except RuntimeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait of a procedure: until a condition is true, for at most *timeout* seconds of real time."""

    until: Callable[[], bool]
    timeout: float | None


Steps: TypeAlias = Generator[Wait, bool, T]
"""
A procedure that yields each of its waits, and receives whether the condition became true in time.

One procedure serves the blocking and the `await` form of a method: see `Monitor.run()` and `Monitor.arun()`.
"""


class Monitor:
    """
    A lock around some state, and a way to wait for changes of the state.

    Conditions are evaluated under the lock, in the thread that waits.
    """

    def __init__(self) -> None:
        self.lock: RLock = RLock()
        self.version: int = 0
        """The number of changes."""
        self._condition = Condition(self.lock)
        self._wakeups: list[Wakeup] = []

    def changed(self) -> None:
        """Evaluate the condition of every waiter again."""
        with self.lock:
            self.version += 1
            self._condition.notify_all()
            wakeups, self._wakeups = self._wakeups, []
        for wakeup in wakeups:
            wakeup.set()

    def run(self, steps: Steps[T]) -> T:
        """Run a procedure, and block the thread during its waits."""
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
        """Run a procedure, and await its waits on the running event loop."""
        __tracebackhide__ = True
        await anyio.lowlevel.checkpoint()
        try:
            wait = next(steps)
            while True:
                wait = steps.send(await self._await(wait))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # the type of StopIteration.value is Any

    async def _await(self, wait: Wait) -> bool:
        deadline = None if wait.timeout is None else monotonic() + wait.timeout
        while True:
            with self.lock:
                if wait.until():
                    return True
                wakeup = Wakeup()
                self._wakeups.append(wakeup)
            left = None if deadline is None else max(0.0, deadline - monotonic())
            with anyio.move_on_after(left) as scope:
                await wakeup.wait()
            if scope.cancelled_caught:
                return False

"""Waiting for the end of tasks: all callers that wait in a process share one statement."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio

from tasks_core.engines import DurableEnd

# Seconds between two looks: at first, and at most. There is no notification of the end of a task, because that would
# cost every task, also those that no caller waits for.
_PAUSE, _PAUSE_MAX = 0.02, 0.5


@dataclass(eq=False, slots=True)
class _Waiter:
    number: int
    end: DurableEnd | None = None
    error: Exception | None = None


class Waits:
    """
    The callers of one event loop that wait; one of them looks for all.

    Args:
        look: Returns how those of the given tasks have ended that have.
    """

    def __init__(self, look: Callable[[Sequence[int]], Awaitable[dict[int, DurableEnd]]]) -> None:
        self._look = look
        self._waiters: list[_Waiter] = []
        self._turn = anyio.Lock()  # of the caller that looks
        self._came = anyio.Event()
        self._pause = 0.0

    async def end_of(self, number: int) -> DurableEnd:
        """Return when a task has ended; raise what a look raises."""
        waiter = _Waiter(number)
        self._waiters.append(waiter)
        self._pause = 0.0
        self._came.set()
        try:
            while waiter.end is None and waiter.error is None:
                async with self._turn:
                    if waiter.end is None and waiter.error is None:
                        await self._look_once()
        finally:
            self._waiters.remove(waiter)
        if waiter.end is None:
            assert waiter.error is not None
            raise type(waiter.error)(*waiter.error.args) from waiter.error  # each caller has a traceback of its own
        return waiter.end

    async def _look_once(self) -> None:
        self._came = anyio.Event()
        with anyio.move_on_after(self._pause):
            await self._came.wait()
        self._pause = min(_PAUSE_MAX, max(_PAUSE, self._pause * 1.5))
        waiters = list(self._waiters)
        try:
            ends = await self._look(list({waiter.number for waiter in waiters}))
        except Exception as error:
            for waiter in waiters:
                waiter.error = error
            return
        for waiter in waiters:
            waiter.end = ends.get(waiter.number)

"""The event loop of a scheduler, and how other threads get something done on it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import ParamSpec

import anyio

from tasks_core._clock import Clock
from tasks_core._support.log import logger

from .backend import Backend, Spawn, current_backend

P = ParamSpec("P")


class Loop:
    """
    A backend, and a mailbox in front of it.

    What is posted is done in the order of posting; one wake-up of the loop serves all that has arrived by then.
    """

    __slots__ = ("_backend", "_posts", "_woken", "spawn", "thread_id")

    spawn: Spawn
    """`Backend.spawn` of the loop; there when it is open."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._posts: deque[Callable[[], object]] = deque()
        self._woken = False
        self.thread_id = -1

    async def open(self) -> None:
        """Bind to the running event loop."""
        self._backend = current_backend()
        await self._backend.open()
        self.spawn = self._backend.spawn
        self.thread_id = self._backend.thread_id

    async def close(self) -> None:
        """Let go of the event loop. Posting and spawning have no effect any more."""
        assert self._backend is not None
        await self._backend.close()

    def runs(self) -> bool:
        """Return whether the event loop runs, in any thread; false if it was never opened."""
        return self._backend is not None and self._backend.runs()

    def here(self) -> bool:
        """Whether the caller is on the thread of the loop."""
        return threading.get_ident() == self.thread_id

    def runs_caller(self) -> bool:
        """Return whether this event loop runs the caller; another one may run on the same thread."""
        return self._backend is not None and self._backend.runs_caller()

    def interrupt(self, error: KeyboardInterrupt) -> None:
        """Have the process interrupted, as Ctrl-C does."""
        assert self._backend is not None
        self._backend.interrupt(error)

    def deadline(self, clock: Clock, at: float) -> Deadline:
        """Cancel the block when *clock* says *at*; go on behind the block."""
        return Deadline(self, clock, at)

    def call(self, func: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call on the thread of the loop: at once if this is it, else soon."""
        if self.here():
            func(*args, **kwargs)
        else:
            self.post(partial(func, *args, **kwargs))

    def post(self, callback: Callable[[], object]) -> bool:
        """
        Have *callback* called on the loop; from any thread, without waiting for it.

        Return false where that cannot be, because there is no loop any more.
        """
        self._posts.append(callback)
        if self._woken or self._backend is None:
            return True
        self._woken = True
        try:
            self._backend.call_soon_threadsafe(self._take_posts)
        except RuntimeError:
            # A loop that was closed under a scheduler that was not left, or a thread that outlived both.
            self._woken = False
            self._posts.clear()
            logger.debug("The event loop is closed: a thread's request to the scheduler is dropped")
            return False
        return True

    def _take_posts(self) -> None:
        self._woken = False  # first: what is appended from here on wakes the loop again
        while self._posts:
            self._posts.popleft()()


class Deadline:
    """
    What `Loop.deadline()` returns: a cancel scope, and a timer for it.

    Not a `contextlib.contextmanager`: from Python 3.12 on, what is thrown into a generator is in a cycle afterwards.
    """

    __slots__ = ("_at", "_clock", "_loop", "_scope", "_timer")

    def __init__(self, loop: Loop, clock: Clock, at: float) -> None:
        self._loop = loop
        self._clock = clock
        self._at = at

    def __enter__(self) -> anyio.CancelScope:
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        self._timer = self._loop.spawn(None, "deadline", _cancel_at(self._clock, self._at, self._scope))
        return self._scope

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._timer.cancel()
        return bool(self._scope.__exit__(exc_type, exc, traceback))


async def _cancel_at(clock: Clock, deadline: float, scope: anyio.CancelScope) -> None:
    await clock.sleep_until(deadline)
    scope.cancel()

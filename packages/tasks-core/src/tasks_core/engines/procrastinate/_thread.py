"""An asyncio event loop in a thread, for those who run trio: procrastinate and psycopg know asyncio only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

P = ParamSpec("P")
T = TypeVar("T")


def runs_asyncio() -> bool:
    """Whether the caller is run by asyncio, and not by trio."""
    return anyio.get_cancelled_exc_class() is asyncio.CancelledError


class AsyncioThread:
    """The thread, from `start()` to `stop()`; all calls come from one event loop."""

    __slots__ = ("_limiter", "_portal", "_stack")

    def __init__(self, calls: int) -> None:
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        # Each call has a thread that waits for it; not one of those that serve others.
        self._limiter = anyio.CapacityLimiter(calls)

    async def start(self) -> None:
        """Start the thread, and return when its event loop runs."""
        self._portal = await anyio.to_thread.run_sync(self._stack.enter_context, start_blocking_portal("asyncio"))

    async def call(self, func: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `func(...)` in the thread. Cancellation reaches it, and does not wait for its end."""

        async def run() -> T:
            return await func(*args, **kwargs)

        assert self._portal is not None
        future = self._portal.start_task_soon(run)
        try:
            return await anyio.to_thread.run_sync(future.result, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            future.cancel()

    async def stop(self) -> None:
        """End the thread, as soon as what was called has ended."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._stack.close)

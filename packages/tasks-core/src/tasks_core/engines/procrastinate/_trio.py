"""Durable tasks on trio: psycopg knows asyncio only, so that an event loop of asyncio runs in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tasks_core.engines import Delivery, Json, RunDelivery, Slots, StoredResult

from ._options import WorkOptions
from ._work import work

P = ParamSpec("P")
T = TypeVar("T")


def runs_asyncio() -> bool:
    """Return whether asyncio runs the caller, and not trio."""
    return anyio.get_cancelled_exc_class() is asyncio.CancelledError


class AsyncioThread:
    """The thread, from `start()` to `stop()`; all calls come from one event loop."""

    __slots__ = ("_limiter", "_portal", "_stack")

    def __init__(self, calls: int) -> None:
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        # Each call has a thread that waits for it, which is none of the threads of tasks.
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


async def work_in_thread(
    conninfo: str, options: WorkOptions, run: RunDelivery, concurrency: Slots, stopping: anyio.Event
) -> None:
    """Do what `work()` does. *run* is awaited here, on the event loop of the caller."""
    thread = AsyncioThread(
        (concurrency if isinstance(concurrency, int) else sum(concurrency.values())) + 2
    )  # what is called below, and the reports of progress
    await thread.start()
    async with BlockingPortal() as portal, anyio.create_task_group() as group:
        try:
            bridge = await thread.call(_Bridge.make, thread, portal, run)
            group.start_soon(bridge.stop_when, stopping)
            await thread.call(work, conninfo, options, bridge.run, concurrency, bridge.stopping)
        finally:
            await thread.stop()  # while the tasks that still run can report their end


class _Bridge:
    """
    Between the two event loops.

    A call from trio blocks its thread for a turn of asyncio. So asyncio never blocks for trio, because each could wait
    for the other: what would block has a thread of its own.
    """

    def __init__(self, thread: AsyncioThread, portal: BlockingPortal, run: RunDelivery) -> None:
        self._thread = thread
        self._portal = portal
        self._run = run
        self.stopping = anyio.Event()

    @classmethod
    async def make(cls, thread: AsyncioThread, portal: BlockingPortal, run: RunDelivery) -> _Bridge:
        """Make it on the event loop of the worker, to which its event belongs."""
        return cls(thread, portal, run)

    # ---- on trio ----

    async def stop_when(self, stopping: anyio.Event) -> None:
        await stopping.wait()
        await self._thread.call(self._stop)

    async def _run_here(self, delivery: Delivery) -> StoredResult | None:
        async def report_progress(progress: Json) -> None:
            await self._thread.call(delivery.report_progress, progress)

        # The transactions of tasks that run on trio are not those of the event loop of the worker.
        return await self._run(replace(delivery, report_progress=report_progress, completion=None))

    # ---- on asyncio ----

    async def _stop(self) -> None:
        self.stopping.set()

    async def run(self, delivery: Delivery) -> StoredResult | None:
        start = asyncio.to_thread(self._portal.start_task_soon, self._run_here, delivery)
        starting = asyncio.ensure_future(start)
        try:
            return await asyncio.shield(asyncio.wrap_future(await asyncio.shield(starting)))
        except asyncio.CancelledError:
            # Also before the thread has returned: the task on trio starts then all the same.
            future = await starting
            await asyncio.to_thread(future.cancel)
            raise

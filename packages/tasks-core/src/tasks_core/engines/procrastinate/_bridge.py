"""A worker for those who run trio: it takes tasks on an event loop of asyncio, in a thread, and trio runs them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import anyio
from anyio.from_thread import BlockingPortal

from tasks_core.engines import Delivery, Json, RunDelivery

from ._thread import AsyncioThread
from ._work import WorkOptions, work


async def work_in_thread(
    conninfo: str, options: WorkOptions, run: RunDelivery, concurrency: int, stopping: anyio.Event
) -> None:
    """Do what `work()` does. *run* is awaited here, on the event loop of the caller."""
    thread = AsyncioThread(concurrency + 2)  # what is called below, and the reports of progress
    await thread.start()
    async with BlockingPortal() as portal, anyio.create_task_group() as group:
        try:
            bridge = await thread.call(_Bridge.make, thread, portal, run)
            group.start_soon(bridge.stop_when, stopping)
            await thread.call(work, conninfo, options, bridge.run, concurrency, bridge.stopping)
        finally:
            await thread.stop()  # while there is a way back for those that still run


class _Bridge:
    """
    Between the two event loops.

    A call from trio blocks its thread for a turn of asyncio. So asyncio never blocks for trio, or each could wait for
    the other: what would do so has a thread of its own.
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

    async def _run_here(self, delivery: Delivery) -> None:
        async def report_progress(progress: Json) -> None:
            await self._thread.call(delivery.report_progress, progress)

        await self._run(replace(delivery, report_progress=report_progress))

    # ---- on asyncio ----

    async def _stop(self) -> None:
        self.stopping.set()

    async def run(self, delivery: Delivery) -> None:
        future = await asyncio.to_thread(self._portal.start_task_soon, self._run_here, delivery)
        try:
            await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            await asyncio.to_thread(future.cancel)
            raise

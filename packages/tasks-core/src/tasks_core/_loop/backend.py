"""The seam to the event loop: all that this package needs of asyncio and trio, and the only place that names them."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from tasks_core._support.log import logger
from tasks_core._task import NativeTask

if TYPE_CHECKING:
    import trio


class Spawn(Protocol):
    """The type of `Backend.spawn`."""

    def __call__(self, context: Context | None, name: str, coroutine: Coroutine[Any, Any, None]) -> NativeTask: ...


class Backend(Protocol):
    """An event loop that runs. Tasks belong to the loop, not to whoever happens to run the scheduler."""

    thread_id: int
    """Identifies the thread of the loop, as `threading.get_ident()` does."""

    def spawn(self, context: Context | None, name: str, coroutine: Coroutine[Any, Any, None]) -> NativeTask:
        """Start *coroutine* at the next turn of the loop; it must not raise. Call on the thread of the loop."""
        ...

    def runs_caller(self) -> bool:
        """Return whether this event loop runs the caller."""
        ...

    def runs(self) -> bool:
        """Return whether this event loop runs at all, in any thread."""
        ...

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        """Run *callback* on the loop; call from any thread. Raises `RuntimeError` when the loop is gone."""
        ...

    def interrupt(self, error: KeyboardInterrupt) -> None:
        """Raise *error*, or one like it, where Ctrl-C would raise it: no task may, being nobody's child."""
        ...

    async def open(self) -> None:
        """Get ready to spawn."""
        ...

    async def close(self) -> None:
        """Release the event loop. Call it when nothing that was spawned runs, or when what runs is abandoned."""
        ...


class AsyncioBackend:
    """Native tasks: a third of the price of an anyio task group, and no parent whose cancellation they share."""

    __slots__ = ("_loop", "thread_id")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.thread_id = threading.get_ident()

    def spawn(self, context: Context | None, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # Not loop.create_task(): with an eager task factory that would run the task inside of schedule().
        return asyncio.Task(coroutine, loop=self._loop, name=name, context=context)

    def runs_caller(self) -> bool:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return False
        return running is self._loop and not _in_trio()

    def runs(self) -> bool:
        return self._loop.is_running()

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(callback, context=for_another_thread(copy_context()))

    def interrupt(self, error: KeyboardInterrupt) -> None:
        self._loop.call_soon(_raise, error)

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass


class TrioBackend:
    """
    A nursery that a system task holds open.

    It ends when the scheduler closes it, or together with the event loop, but not when the task that entered the
    scheduler is cancelled.
    """

    __slots__ = ("_host", "_nursery", "_token", "_trio", "thread_id")

    def __init__(self) -> None:
        import trio

        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._host: trio.CancelScope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self.thread_id = threading.get_ident()

    def spawn(self, context: Context | None, name: str, coroutine: Coroutine[Any, Any, None]) -> TrioTask:
        assert self._nursery is not None
        task = TrioTask(self._trio.CancelScope(), self.interrupt)
        # trio copies the context of whoever calls start_soon()
        start = self._nursery.start_soon if context is None else _in_context(context, self._nursery.start_soon)
        start(task.run, coroutine, name=name)
        return task

    def runs_caller(self) -> bool:
        return _in_trio() and self._trio.lowlevel.current_trio_token() is self._token

    def runs(self) -> bool:
        try:
            self._token.run_sync_soon(_do_nothing, idempotent=True)
        except RuntimeError:  # it has ended
            return False
        return True

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        self._token.run_sync_soon(callback)

    def interrupt(self, error: KeyboardInterrupt) -> None:
        # From a protected function, so that trio hands the signal to its main task.
        self._trio.lowlevel.enable_ki_protection(_raise_signal)()

    async def open(self) -> None:
        opened = self._trio.Event()
        self._trio.lowlevel.spawn_system_task(self._hold_nursery, opened, name="tasks nursery")
        try:
            await opened.wait()
        except BaseException:
            self._host.cancel()
            raise

    async def _hold_nursery(self, opened: trio.Event) -> None:
        with self._host:
            async with self._trio.open_nursery() as self._nursery:
                opened.set()
                await self._trio.sleep_forever()

    async def close(self) -> None:
        self._host.cancel()


class TrioTask:
    """What `TrioBackend.spawn()` returns: a scope, and whether the coroutine has left it."""

    __slots__ = ("_done", "_interrupt", "_scope")

    def __init__(self, scope: trio.CancelScope, interrupt: Callable[[KeyboardInterrupt], None]) -> None:
        self._scope = scope
        self._interrupt = interrupt
        self._done = False

    async def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            with self._scope:
                await coroutine
        except KeyboardInterrupt as error:  # Ctrl-C, between two lines of this package
            self._interrupt(error)
        except Exception:  # would cancel the nursery, and every task with it
            logger.exception("Something that must not raise did so; other tasks are not affected")
        finally:
            self._done = True
            del coroutine  # the task is in it, and the frame of a function that failed keeps this one: a cycle

    def cancel(self) -> None:
        self._scope.cancel()

    def done(self) -> bool:
        return self._done


def _in_trio() -> bool:
    """Return whether trio runs the caller; it can be a guest on the event loop of asyncio."""
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_run()


def _in_context(context: Context, start: Callable[..., None]) -> Callable[..., None]:
    def start_in_context(*args: object, name: str) -> None:
        context.run(start, *args, name=name)

    return start_in_context


def _do_nothing() -> None: ...


def _raise_signal() -> None:
    signal.raise_signal(signal.SIGINT)


def _raise(error: BaseException) -> None:
    raise error


def current_backend() -> Backend:
    """Return a backend for the loop that runs the caller."""
    # Not whether a loop of asyncio runs in this thread: trio can be a guest on one.
    return AsyncioBackend() if anyio.get_cancelled_exc_class() is asyncio.CancelledError else TrioBackend()


def for_another_thread(context: Context) -> Context:
    """
    Have anyio find out anew, in a copy of a context, which event loop runs.

    It notes the answer in a context variable, and would believe the note in the other thread as well.
    """
    sniffio = sys.modules.get("sniffio")  # where the variable is; anyio does without it if it is not installed
    if sniffio is not None:
        context.run(sniffio.current_async_library_cvar.set, None)
    return context

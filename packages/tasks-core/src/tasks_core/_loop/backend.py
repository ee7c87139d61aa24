"""All that this package needs of an event loop; the only module that imports asyncio or trio."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import anyio

from tasks_core._support.log import logger
from tasks_core._task import NativeTask

if TYPE_CHECKING:
    import trio


class Spawn(Protocol):
    """The type of `Backend.spawn`."""

    def __call__(self, context: Context | None, name: str, coroutine: Coroutine[Any, Any, None]) -> NativeTask: ...


class Interruption(Protocol):
    """A block that can be cancelled, so that the program goes on behind it."""

    @property
    def cancel_called(self) -> bool: ...

    def cancel(self) -> object: ...
    def __enter__(self) -> object: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool: ...


class Backend(Protocol):
    """An event loop. Tasks belong to the loop, and not to the task that entered the scheduler."""

    thread_id: int
    """Identifies the thread of the loop, as `threading.get_ident()` does."""
    native: object
    """What `running()` returns while the loop runs the caller."""

    def running(self) -> object:
        """Return the loop that runs the caller. Raises `RuntimeError` if none does."""
        ...

    def spawn(self, context: Context | None, name: str, coroutine: Coroutine[Any, Any, None]) -> NativeTask:
        """
        Start *coroutine* at the next turn of the loop; it must not raise. Call on the loop.

        With a *context*, it is a task of the application, for the task factory of the loop to see.
        """
        ...

    def look_for_task_factory(self) -> None:
        """Note whether the loop has a task factory now; to look for each task would cost each task."""
        ...

    def interruption(self) -> Interruption:
        """Return a block for the running coroutine."""
        ...

    def cancels_behind_shields(self, native: NativeTask) -> object:
        """Return the coroutine of *native* if a cancellation also reaches what it awaits behind shields of anyio."""
        ...

    can_be_cancelled_singly: ClassVar[bool]
    """Whether code that knows nothing of a task can cancel it: by `asyncio.all_tasks()`."""

    def runs_caller(self) -> bool:
        """Return whether this event loop runs the caller."""
        ...

    def runs(self) -> bool:
        """Return whether this event loop runs at all, in any thread."""
        ...

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        """Run *callback* on the loop; call from any thread. Raises `RuntimeError` when the loop is closed."""
        ...

    def interrupt(self, error: KeyboardInterrupt) -> None:
        """Raise *error*, or one like it, where Ctrl-C would raise it, because no task of a scheduler may raise it."""
        ...

    async def open(self) -> None:
        """Get ready to spawn."""
        ...

    async def close(self) -> None:
        """Release the event loop. Call it when nothing that was spawned runs, or when what runs is abandoned."""
        ...


class AsyncioBackend:
    """
    Starts native tasks.

    They cost a third of what the tasks of an anyio task group cost, and have no parent whose cancellation they share.
    """

    __slots__ = ("_by_factory", "_creating", "_loop", "native", "running", "thread_id")
    can_be_cancelled_singly: ClassVar[bool] = True

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._by_factory = False
        self._creating = False
        self.thread_id = threading.get_ident()
        self.native: object = self._loop
        self.running: Callable[[], object] = asyncio.get_running_loop
        self.look_for_task_factory()

    def look_for_task_factory(self) -> None:
        self._by_factory = self._loop.get_task_factory() is not None

    def spawn(self, context: Context | None, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._by_factory and context is not None:
            return self._create_task(context, name, coroutine)
        return asyncio.Task(coroutine, loop=self._loop, name=name, context=context)

    def _create_task(self, context: Context, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # By the factory, because that is where error trackers give each task a scope of its own.
        later = self._not_at_once(coroutine)
        self._creating = True
        try:
            return context.run(self._loop.create_task, later, name=name)
        except BaseException:
            later.close()
            raise
        finally:
            self._creating = False

    async def _not_at_once(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            if self._creating:  # an eager factory: the task would run inside schedule()
                await asyncio.sleep(0)
            await coroutine
        finally:
            coroutine.close()  # if it has not begun
            del coroutine  # the task is in it, and the frame of a function that failed keeps this one: a cycle

    def interruption(self) -> Interruption:
        return AsyncioInterruption()

    def cancels_behind_shields(self, native: NativeTask) -> object:
        return native.get_coro() if isinstance(native, asyncio.Task) else None

    def runs_caller(self) -> bool:
        try:
            if asyncio.get_running_loop() is not self._loop:
                return False
        except RuntimeError:
            return False
        # No task of asyncio runs inside of trio that is a guest on the loop; trio itself takes long to answer.
        return "trio" not in sys.modules or asyncio.current_task() is not None or not _in_trio()

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


class AsyncioInterruption:
    """
    Cancels the block once, as `asyncio.timeout()` does.

    Not an anyio scope, which cancels every wait of the block until it is left: no clean-up that waits would complete.
    """

    __slots__ = ("_before", "_task", "cancel_called")

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._before = 0
        self.cancel_called = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._before = self._task.cancelling()

    def cancel(self) -> None:
        if self._task is not None and not self.cancel_called:
            self.cancel_called = True
            self._task.cancel()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        task, self._task = self._task, None
        assert task is not None
        if not self.cancel_called or task.uncancel() > self._before:
            return False  # also the task itself was cancelled, which goes on
        return exc is not None and _is_cancellation(exc)


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_cancellation, error.exceptions))
    return isinstance(error, asyncio.CancelledError)


class TrioBackend:
    """
    A nursery that a system task holds open.

    It ends when the scheduler closes it, or together with the event loop, but not when the task that entered the
    scheduler is cancelled.
    """

    __slots__ = ("_host", "_nursery", "_token", "_trio", "native", "thread_id")
    can_be_cancelled_singly: ClassVar[bool] = False

    def __init__(self) -> None:
        import trio

        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._host: trio.CancelScope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self.thread_id = threading.get_ident()
        self.native: object = self._token

    def running(self) -> object:
        self._trio.lowlevel.current_task()  # raises between the turns of a guest, when its host runs the caller
        return self._trio.lowlevel.current_trio_token()

    def look_for_task_factory(self) -> None:
        pass  # trio has none

    def interruption(self) -> Interruption:
        return self._trio.CancelScope()

    def cancels_behind_shields(self, native: NativeTask) -> object:
        return None  # trio waits for the threads of what it cancels

    def spawn(self, context: Context | None, name: str, coroutine: Coroutine[Any, Any, None]) -> TrioTask:
        assert self._nursery is not None
        task = TrioTask(self._trio.CancelScope(), self.interrupt)
        # trio copies the context of the caller of start_soon()
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
        except (
            Exception
        ):  # pragma: no cover  # a fault of this package would cancel the nursery, and every task with it
            logger.exception("The machinery of a task raised; other tasks are not affected")
        finally:
            self._done = True
            del coroutine  # the task is in it, and the frame of a function that failed keeps this one: a cycle

    def cancel(self) -> None:
        self._scope.cancel()

    def done(self) -> bool:
        return self._done


def _in_trio() -> bool:
    """Return whether a task of trio runs the caller; trio can be a guest on the event loop of asyncio."""
    trio = sys.modules.get("trio")
    if trio is not None:
        with suppress(RuntimeError):
            trio.lowlevel.current_task()
            return True
    return False


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
    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        return AsyncioBackend()
    return TrioBackend()


def is_on_a_loop() -> bool:
    """Return whether any event loop runs the caller."""
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return _in_trio()


def for_another_thread(context: Context) -> Context:
    """
    Have anyio find out anew, in a copy of a context, which event loop runs.

    It notes the answer in a context variable, and would believe the note in the other thread as well.
    """
    sniffio = sys.modules.get("sniffio")  # where the variable is; anyio does without it if it is not installed
    if sniffio is not None:
        context.run(sniffio.current_async_library_cvar.set, None)
    return context

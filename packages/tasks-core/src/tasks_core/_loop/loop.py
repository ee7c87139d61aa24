"""The event loop of a scheduler, and how other threads get something done on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import ParamSpec

from tasks_core._clock import Clock
from tasks_core._support.log import logger
from tasks_core._task import NativeTask

from .backend import Backend, Interruption, Spawn, current_backend, is_on_a_loop

P = ParamSpec("P")


class Loop:
    """
    A backend, and a mailbox in front of it.

    What is posted is done in the order of posting; one wake-up of the loop serves all that has arrived by then.
    """

    __slots__ = ("_backend", "_posts", "_woken", "native", "running", "runs_caller", "spawn", "thread_id")

    spawn: Spawn
    """`Backend.spawn` of the loop; there when it is open."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._posts: deque[Callable[[], object]] = deque()
        self._woken = False
        self.thread_id: int = -1
        self.native: object = None
        self.running: Callable[[], object] = _no_loop
        self.runs_caller: Callable[[], bool] = _is_not_open
        """Returns whether the caller may wait on this loop: also not as a guest of it, in a task of trio."""

    async def open(self) -> None:
        """Bind to the running event loop."""
        self._backend = current_backend()
        await self._backend.open()
        self.spawn = self._backend.spawn
        self.thread_id = self._backend.thread_id
        self.native, self.running = self._backend.native, self._backend.running
        self.runs_caller = self._backend.runs_caller

    async def close(self) -> None:
        """Release the event loop. Posting and spawning have no effect any more."""
        assert self._backend is not None
        await self._backend.close()

    def runs(self) -> bool:
        """Return whether the event loop runs, in any thread; false if it was never opened."""
        return self._backend is not None and self._backend.runs()

    def here(self) -> bool:
        """Return whether a call from here reaches the loop at once: a thread may have several loops, one at a time."""
        try:
            return self.running() is self.native
        except RuntimeError:
            return False

    def stands_still(self) -> bool:
        """Return whether the loop does not run while another one runs the caller, which may go on for as long."""
        assert self._backend is not None
        return is_on_a_loop() and not self._backend.runs()

    def interrupt(self, error: KeyboardInterrupt) -> None:
        """Interrupt the process, as Ctrl-C does."""
        assert self._backend is not None
        self._backend.interrupt(error)

    def look_for_task_factory(self) -> None:
        """Call the method of `Backend`."""
        assert self._backend is not None
        self._backend.look_for_task_factory()

    def cancels_behind_shields(self, native: NativeTask) -> object:
        """Return what the method of `Backend` returns."""
        assert self._backend is not None
        return self._backend.cancels_behind_shields(native)

    def deadline(self, clock: Clock, at: float, before: Callable[[], object] | None = None) -> Deadline:
        """Cancel the block when *clock* says *at*, after a call of *before*; go on behind the block."""
        assert self._backend is not None
        return Deadline(self._backend, clock, at, before)

    def call(self, func: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call on the loop: at once if it runs the caller, else soon."""
        if self.here():
            func(*args, **kwargs)
        else:
            self.post(partial(func, *args, **kwargs))

    def post(self, callback: Callable[[], object]) -> bool:
        """
        Call *callback* on the loop soon; from any thread, without waiting for it.

        Return whether that is possible: false if the loop is closed.
        """
        self._posts.append(callback)
        if self._woken or self._backend is None:
            return True
        return self._wake(self._backend)

    def _wake(self, backend: Backend) -> bool:
        self._woken = True
        try:
            backend.call_soon_threadsafe(self._take_posts)
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
            try:
                self._posts.popleft()()
            except KeyboardInterrupt as error:
                self.interrupt(error)  # not from here, where trio takes it for a fault of its own
            except BaseException:  # pragma: no cover  # a fault of this package must not lose the requests behind it
                logger.exception("A request of another thread to the scheduler raised; the others are not affected")


def _is_not_open() -> bool:
    return False


def _no_loop() -> object:
    raise RuntimeError("the scheduler was not started")


class Deadline:
    """
    What `Loop.deadline()` returns: an interruption, and a timer for it.

    Not a `contextlib.contextmanager`: from Python 3.12 on, what is thrown into a generator is in a cycle afterwards.
    """

    __slots__ = ("_at", "_backend", "_before", "_clock", "_interruption", "_open", "_timer")

    def __init__(self, backend: Backend, clock: Clock, at: float, before: Callable[[], object] | None) -> None:
        self._backend = backend
        self._clock = clock
        self._at = at
        self._before = before
        self._open = False

    def __enter__(self) -> Interruption:
        self._interruption = self._backend.interruption()
        self._interruption.__enter__()
        self._open = True
        self._start_timer()
        return self._interruption

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._open = False
        self._timer.cancel()
        del self._timer  # a cycle: the timer keeps its cancellation, and that the frames which lead back to here
        self._before = None
        return bool(self._interruption.__exit__(exc_type, exc, traceback))

    def _start_timer(self) -> None:
        self._timer = self._backend.spawn(None, "deadline", self._wait())

    async def _wait(self) -> None:
        try:
            await self._clock.sleep_until(self._at)
        except BaseException:
            if self._open and self._backend.can_be_cancelled_singly:
                # Cancelled through the event loop, with all its tasks: the block still needs its bound.
                self._start_timer()
            raise
        if self._open:
            if self._before is not None:
                self._before()
            self._interruption.cancel()

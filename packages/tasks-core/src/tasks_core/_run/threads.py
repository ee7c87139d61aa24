"""Worker threads that a plain function may block, or never leave."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from threading import Lock, RLock, Thread
from typing import Any

import anyio

from tasks_core._loop.backend import for_another_thread
from tasks_core._loop.from_thread import use_in_thread, way_to_loop
from tasks_core._loop.loop import Loop
from tasks_core._support.log import traceback_of
from tasks_core._task import THREAD, Task

# Seconds an idle thread waits for its next call before it ends.
_IDLE = 10.0


class WorkerThreads:
    """
    Threads that are started when there is work and no idle one, and end when idle or closed.

    They are daemons, so that a function that never returns does not keep the process from exiting. That rules out
    `concurrent.futures`, whose threads are joined at exit. The caller limits how many run at once.
    """

    __slots__ = ("_closed", "_idle", "_lock")

    def __init__(self) -> None:
        self._lock = RLock()  # reentrant, because a finalizer may use the scheduler while the lock is held
        self._idle: list[_Worker] = []  # the last to become idle is the first to be used, so that the others may end
        self._closed = False

    async def run(self, call: ThreadCall) -> Any:
        """
        Run the call on a thread and return its result, or raise its exception.

        Cancellation: the thread runs on; the `ended` of the call is called when the function has returned.
        """
        try:
            self._submit(call)
        except BaseException:  # the system has no more threads to give
            call.finish()
            raise
        await call.finished.wait()
        return call.take()

    def _submit(self, call: ThreadCall) -> None:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            _Worker(self, call).start()
        else:
            worker.hand(call)

    def close(self) -> None:
        """End the threads and wait for those that are not inside a function; the others end when they leave it."""
        with self._lock:
            self._closed = True
            ending, self._idle = self._idle, []
        for worker in ending:
            worker.hand(None)
        for worker in ending:
            worker.join()

    def rest(self, worker: _Worker) -> bool:
        """Keep a worker that has nothing to do; return false if it is to end instead."""
        with self._lock:
            if not self._closed:
                self._idle.append(worker)
            return not self._closed

    def retire(self, worker: _Worker) -> bool:
        """Remove an idle worker, which may then end; return false if it has just been given a call."""
        with self._lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            return True


class _Worker(Thread):
    """A thread, and the call that it was given last."""

    def __init__(self, pool: WorkerThreads, call: ThreadCall) -> None:
        super().__init__(name="tasks worker thread", daemon=True)
        self._pool = pool
        self._way = way_to_loop()
        self._call: ThreadCall | None = call
        self._handed = Lock()  # locked while there is nothing to take

    def hand(self, call: ThreadCall | None) -> None:
        """Give the idle worker a call, or `None` to end it."""
        self._call = call
        self._handed.release()

    def run(self) -> None:
        use_in_thread(self._way)
        self._handed.acquire()  # for the call that it was made with
        resting = True
        while resting and (call := self._take()) is not None:
            call.run()
            # Idle before the result is known, so that what is called because of it needs no other thread.
            resting = self._pool.rest(self)
            call.report()
            del call  # an idle thread must not keep the arguments of the last call alive
            if resting:
                resting = self._wait()

    def _take(self) -> ThreadCall | None:
        call, self._call = self._call, None
        return call

    def _wait(self) -> bool:
        """Wait until there is something to take; return false if that took too long."""
        while not self._handed.acquire(timeout=_IDLE):
            if self._pool.retire(self):
                return False
        return True


class ThreadCall:
    """
    A plain function on its way through a thread, in a copy of the context that this is made in, for a task.

    *ended* is called on the event loop, with the call, when the thread has left the function.
    """

    __slots__ = ("_context", "_ended", "_error", "_func", "_loop", "_result", "finished", "given_up", "task")

    def __init__(
        self, loop: Loop, task: Task[Any], func: Callable[[], object], ended: Callable[[ThreadCall], object]
    ) -> None:
        self.task = task
        self.given_up = False
        self._loop = loop
        self._context = for_another_thread(copy_context())
        self._func = func
        self._ended = ended
        self._result: object = None
        self._error: BaseException | None = None
        self.finished = anyio.Event()

    def run(self) -> None:
        """Call the function; on the thread."""
        THREAD.attempt = self
        try:
            self._result = self._context.run(self._func)
        except BaseException as error:
            self._error = _without_first_frame(error)  # that of this method, which would make a cycle with the call
        finally:
            THREAD.attempt = None
            del self  # those that are left lead back to it, by f_back

    def report(self) -> None:
        """Have the event loop call `finish()`; on the thread."""
        self._loop.post(self.finish)

    def finish(self) -> None:
        """Wake the coroutine that waits for the call; on the event loop."""
        self.finished.set()
        self._ended(self)

    def take(self) -> Any:
        """Return the result, or raise the exception."""
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error, self  # the traceback has this frame: a cycle


def _without_first_frame(error: BaseException) -> BaseException:
    traceback = traceback_of(error)
    return BaseException.with_traceback(error, traceback and traceback.tb_next)

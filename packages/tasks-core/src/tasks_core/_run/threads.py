"""Worker threads that a plain function may block, or never leave."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from threading import Lock, Thread
from typing import Any

import anyio

from tasks_core._loop.backend import for_another_thread
from tasks_core._loop.loop import Loop
from tasks_core._task import THREAD, Task

# Seconds an idle thread waits for its next call before it ends.
_IDLE = 10.0


class WorkerThreads:
    """
    Threads that are started when there is work and no idle one, and end when idle or closed.

    They are daemons: a function that hangs for ever does not keep the process from exiting. That rules out
    `concurrent.futures`, whose threads are joined at exit. How many run at once is for the caller to limit.
    """

    __slots__ = ("_closed", "_idle", "_lock")

    def __init__(self) -> None:
        self._lock = Lock()
        self._idle: list[_Worker] = []  # the last to become idle is the first to be used, so that the others may end
        self._closed = False

    async def run(self, call: ThreadCall) -> Any:
        """
        Run the call on a thread and return its result, or raise its exception.

        Cancellation: the thread is left to itself; `call.ended` is called when it leaves the function.
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
        """Take back a worker that has nothing to do; false if there will be nothing more."""
        with self._lock:
            if not self._closed:
                self._idle.append(worker)
            return not self._closed

    def retire(self, worker: _Worker) -> bool:
        """Let an idle worker end; false if it has been handed something at this very moment."""
        with self._lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            return True


class _Worker(Thread):
    """A thread and the call that it was handed last."""

    def __init__(self, pool: WorkerThreads, call: ThreadCall) -> None:
        super().__init__(name="tasks worker thread", daemon=True)
        self._pool = pool
        self._call: ThreadCall | None = call
        self._handed = Lock()  # locked while there is nothing to take

    def hand(self, call: ThreadCall | None) -> None:
        """Give the idle worker something to do, or `None`: the end."""
        self._call = call
        self._handed.release()

    def run(self) -> None:
        self._handed.acquire()  # for the call that it was made with
        resting = True
        while resting and (call := self._take()) is not None:
            call.run()
            # Idle before anybody hears of the result, so that whoever comes next needs no other thread.
            resting = self._pool.rest(self)
            call.report()
            del call  # an idle thread must not keep the arguments of the last call alive
            if resting:
                resting = self._wait()

    def _take(self) -> ThreadCall | None:
        call, self._call = self._call, None
        return call

    def _wait(self) -> bool:
        """Wait until there is something to take; false if it has been too long."""
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
            # Without this frame, which would make a cycle of the error and the call.
            self._error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        finally:
            THREAD.attempt = None
            del self  # those that are left lead back to it, by f_back

    def report(self) -> None:
        """Tell the event loop; on the thread."""
        self._loop.post(self.finish)

    def finish(self) -> None:
        """Wake whoever waits; on the event loop."""
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

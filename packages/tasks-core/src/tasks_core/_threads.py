"""Worker threads that a plain function may block, or never leave."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from threading import Lock, Thread, current_thread
from typing import Any, TypeAlias

import anyio

from ._loop import Loop

Done: TypeAlias = "Callable[[object, BaseException | None], None]"
Job: TypeAlias = "tuple[Context, Callable[[], object], Done]"

# Seconds an idle thread waits for its next job before it ends.
_IDLE = 10.0


class WorkerThreads:
    """
    Threads that are started when there is work and no idle one, and end when idle or closed.

    They are daemons: a function that hangs for ever does not keep the process from exiting. That rules out
    `concurrent.futures`, whose threads are joined at exit. How many run at once is for the caller to limit.
    """

    __slots__ = ("_busy", "_closed", "_idle", "_jobs", "_lock", "_loop", "_threads")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._lock = Lock()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle = 0  # Invariant: threads that wait in get(), less the items in the queue
        self._threads: set[Thread] = set()
        self._busy: set[Thread] = set()
        self._closed = False

    async def run(self, call: ThreadCall) -> Any:
        """
        Run the call on a thread, in a copy of the current context, and return its result or raise its exception.

        Cancellation: the thread is left to itself; `call.ended` is called when it leaves the function.
        """
        self._submit((copy_context(), call.func, lambda *outcome: self._loop.post(lambda: call.finish(*outcome))))
        await call.finished.wait()
        return call.take()

    def _submit(self, job: Job) -> None:
        with self._lock:
            self._jobs.put(job)
            if self._idle:
                self._idle -= 1
                return
            thread = Thread(target=self._work, name="tasks worker thread", daemon=True)
            self._threads.add(thread)
        thread.start()

    def close(self) -> None:
        """End the threads and wait for those that are not inside a function; the others end when they leave it."""
        with self._lock:
            self._closed = True
            for _ in range(self._idle):
                self._jobs.put(None)
            self._idle = 0
            ending = self._threads - self._busy
        for thread in ending:
            thread.join()

    def _work(self) -> None:
        thread = current_thread()
        while (job := self._next_job()) is not None:
            with self._lock:
                self._busy.add(thread)
            self._run(thread, *job)
            del job  # an idle thread must not keep the arguments of the last task alive
            with self._lock:
                if self._closed:
                    break
                self._idle += 1
        with self._lock:
            self._threads.discard(thread)

    def _next_job(self) -> Job | None:
        try:
            return self._jobs.get(timeout=_IDLE)
        except Empty:
            with self._lock:
                if self._idle:
                    self._idle -= 1
                    return None
        # Every waiting thread was promised an item while this one gave up waiting: it is there, or about to be.
        return self._jobs.get()

    def _run(self, thread: Thread, context: Context, call: Callable[[], object], done: Done) -> None:
        result, error = None, None
        try:
            result = context.run(call)
        except BaseException as raised:
            error = raised
        with self._lock:
            self._busy.discard(thread)
        try:
            done(result, error)
        finally:
            del error  # the traceback has this frame: a cycle


class ThreadCall:
    """A plain function on its way through a thread; belongs to the event loop."""

    __slots__ = ("_error", "_result", "ended", "finished", "func")

    def __init__(self, func: Callable[[], object], ended: Callable[[], object]) -> None:
        self.func = func
        self.ended = ended
        self.finished = anyio.Event()
        self._result: object = None
        self._error: BaseException | None = None

    def finish(self, result: object, error: BaseException | None) -> None:
        self._result, self._error = result, error
        self.finished.set()
        self.ended()

    def take(self) -> Any:
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error, self  # the traceback has this frame: a cycle

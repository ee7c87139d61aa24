"""Which code keeps the event loop from turning."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping
from threading import Event, RLock, Thread
from types import FrameType
from typing import Any

from tasks_core._loop.loop import Loop
from tasks_core._support.log import logger
from tasks_core._task import Task

from .attempt import CALLERS, Attempts
from .ledger import log_fields, title

# How often the loop is asked for an answer, and after how long code that still blocks it is logged, in `duration`s.
_PAUSE = 0.2
_LOG_AFTER = 10.0
# A thread that wakes so much too late, in `duration`s, was kept from running: by code that holds the interpreter, or,
# if the process had less than this part of a processor meanwhile, because it was stopped.
_OVERSLEPT = 0.5
_IDLE = 0.1
# Where the innermost frame of a loop is that has nothing to do, or gets no time of the processor.
_LOOPS = frozenset(("asyncio", "selectors", "uvloop", "trio", "anyio"))

_clock = time.monotonic


class LoopWatch:
    """
    A thread that asks an event loop for an answer from time to time, and looks at its stack when none comes.

    Nothing is done for a task. A pause of the garbage collector, and a process that was stopped or got no time of the
    processor, are not the fault of the code that the loop happens to be at.
    """

    __slots__ = ("_answered", "_collecting", "_duration", "_loop", "_pauses", "_stop", "_thread")

    def __init__(self, loop: Loop, duration: float) -> None:
        self._loop = loop
        self._duration = duration
        self._answered = Event()
        self._stop = Event()
        self._collecting: float | None = None  # when the collection began that runs
        self._pauses = 0.0  # seconds of all collections
        self._thread = Thread(target=self._run, name="tasks event loop watch", daemon=True)

    def start(self) -> None:
        gc.callbacks.append(self._note_collection)
        self._thread.start()

    def stop(self) -> None:
        gc.callbacks.remove(self._note_collection)
        self._stop.set()
        self._answered.set()
        self._thread.join(1.0)

    def _note_collection(self, phase: str, info: Mapping[str, int]) -> None:
        now = _clock()
        if phase == "start":
            self._collecting = now
        elif self._collecting is not None:  # pragma: no branch  # of a collection that ran when the watch began
            self._pauses += now - self._collecting
            self._collecting = None

    def _run(self) -> None:
        while not self._stop.wait(self._duration * _PAUSE):
            if not self._ask():
                return

    def _ask(self) -> bool:
        """Ask the loop for an answer, and log what it is busy with if none comes; return false if it is closed."""
        self._answered.clear()
        began, processor, pauses = _clock(), time.process_time(), self._pauses
        if self._stop.is_set() or not self._loop.post(self._answered.set):
            return False
        if self._answered.wait(self._duration) or not self._loop.runs():
            self._answered.wait()  # of a loop that stands still: until it runs again
            return True
        waited = _clock() - began
        if waited - (self._pauses - pauses) < self._duration:
            return True
        if waited > self._duration * (1 + _OVERSLEPT) and time.process_time() - processor < waited * _IDLE:
            return True
        found = self._look()
        if found is not None:
            self._answered.wait(self._duration * (_LOG_AFTER - 1))
            self._log(_clock() - began, not self._answered.is_set(), *found)
        self._answered.wait()
        return True

    def _look(self) -> tuple[Task[Any] | None, str] | None:
        """Return the task that the loop is at, if any, and the line; `None` if the loop is not kept by any code."""
        frame = sys._current_frames().get(self._loop.thread_id)
        if frame is None or self._answered.is_set() or _package(frame) in _LOOPS:
            return None
        if frame.f_code is LoopWatch._note_collection.__code__:  # a collection begins or ends at this moment
            return None  # pragma: no cover  # which takes microseconds
        line = own_line = _line(frame)
        current: FrameType | None = frame
        while current is not None:
            if current.f_code is Attempts.run.__code__:
                task: Task[Any] | None = current.f_locals.get("task")
                return task, line if line == own_line else f"{line}, called at {own_line}"
            if current.f_code not in CALLERS:
                own_line = _line(current)
            current = current.f_back
        return None, line

    def _log(self, seconds: float, still: bool, task: Task[Any] | None, line: str) -> None:
        what = "Code that is no task" if task is None else title(task)
        logger.warning(
            "%s kept the event loop from turning for %s%.2f s, at %s. Write it as a plain function, which runs in a "
            "thread, or let it await now and then",
            what,
            "more than " if still else "",
            seconds,
            line,
            extra=None if task is None else log_fields(task),
        )


def _package(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


class SlowCallbacks:
    """The extension of a scheduler that asks for `slow_callback_duration`; schedulers of one loop share a watch."""

    __slots__ = ("_duration", "_key")

    def __init__(self, duration: float) -> None:
        self._duration = duration
        self._key: tuple[object, float] | None = None

    async def open(self, loop: Loop, brief: bool) -> None:
        self._key = key = loop.native, self._duration
        with _lock:
            watch, users = _watches.get(key) or (LoopWatch(loop, self._duration), 0)
            _watches[key] = watch, users + 1
        if not users:
            watch.start()

    async def close(self) -> None:
        assert self._key is not None
        with _lock:
            watch, users = _watches.pop(self._key)
            if users > 1:
                _watches[self._key] = watch, users - 1
        self._key = None
        if users == 1:
            watch.stop()


_lock = RLock()  # reentrant, because a finalizer may use a scheduler while the lock is held
_watches: dict[tuple[object, float], tuple[LoopWatch, int]] = {}


def make_slow_callbacks(options: Mapping[str, Any]) -> SlowCallbacks | None:
    """Return the extension for the options of a scheduler; `None` if it asks for none."""
    duration = options["slow_callback_duration"]
    return None if duration is None else SlowCallbacks(duration)

"""Cutting an attempt of a durable task off, as the death of its worker does."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import inspect
import linecache
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import coroutine
from typing import Any, TypeVar

from tasks_core.testing import function_name

from tasks_testing._text import show_where

R = TypeVar("R")

# Seconds that the operation which the function was waiting for may take to end after the cut. It goes on outside of the
# worker, as in a database or a gateway, and the next run must not meet the half of it.
_LAST_OPERATION = 1.0

_planned: ContextVar[Cut | None] = ContextVar("tasks_testing_planned_cut", default=None)
_running: ContextVar[Cut | None] = ContextVar("tasks_testing_running_cut", default=None)


class WorkerKilled(BaseException):
    """Ends an attempt whose worker is cut off; no error handler and no retry policy gets it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a function at which it was cut off."""

    function: str
    where: str
    source: str


class Cut:
    """
    One attempt of a durable task, and the place at which it is cut off.

    The places are numbered: 0 is before the first line, 1 and up are the suspensions of the coroutine in the order in
    which they come, and the last one is after the end of the function, before the engine hears of it.

    Args:
        at: The number of the place; `None`: do not cut, but count the suspensions.
    """

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.suspensions = 0
        """How many suspensions the coroutine has had."""
        self.places: tuple[Place, ...] = ()
        """Where it was cut off: the line of the function itself, then the lines of what it called."""
        self.made = False
        """Whether the attempt was cut off."""
        self.is_in_commit: Callable[[], bool] = bool  # which returns False
        """Whether the task is ending with a commit: a database does that as a whole, so the cut is put off."""

    @contextmanager
    def planned(self) -> Generator[None]:
        """Cut the first task that starts in the context of the block."""
        token = _planned.set(self)
        try:
            yield
        finally:
            _planned.reset(token)

    def applied_to(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that runs *func* as far as the cut."""
        # Of the function itself, for a plain function must not run on the event loop.
        run = self._coroutine_function(func) if inspect.iscoroutinefunction(func) else self._plain_function(func)
        functools.update_wrapper(run, func)
        with suppress(TypeError, ValueError):  # some builtins have no signature
            # A provider supplies to a function what its own signature says.
            run.__signature__ = inspect.signature(func, follow_wrapped=False)  # type: ignore[attr-defined]
        return run

    def _coroutine_function(self, func: Callable[..., Any]) -> Callable[..., Any]:
        async def run(*args: Any, **kwargs: Any) -> Any:
            self._cut_at(0, func)
            # In a native task of its own: what the function has entered and never leaves, such as a cancel scope, must
            # not stay behind in the task of the scheduler.
            loop = asyncio.get_running_loop()
            before = loop.get_task_factory()
            loop.set_task_factory(_task_factory(before))
            token = _running.set(self)
            try:
                body = asyncio.Task(_until_cut(func(*args, **kwargs), self, is_body=True), loop=loop)
                result = await body
            finally:
                _running.reset(token)
                loop.set_task_factory(before)
            self._cut_at(self.suspensions + 1, func)
            return result

        return run

    def _plain_function(self, func: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._cut_at(0, func)
            result = func(*args, **kwargs)
            self._cut_at(1, func)
            return result

        return run

    def _cut_at(self, number: int, func: Callable[..., Any]) -> None:
        if number == self.at:
            code = getattr(inspect.unwrap(func), "__code__", None)
            where = "" if code is None else show_where(f"{code.co_filename}:{code.co_firstlineno}")
            at = "before its first line" if number == 0 else "after its end"
            self.places = (Place(function_name(func), where, at),)
            self.made = True
            raise WorkerKilled(at)


def take_planned_cut() -> Cut | None:
    """Return the cut of the attempt that starts, and reset it: tasks that the attempt schedules are not cut."""
    cut = _planned.get()
    _planned.set(None)
    return cut


async def _until_cut(running: Coroutine[Any, Any, R], cut: Cut, *, is_body: bool) -> R | None:
    """Run a coroutine until the cut; from then on nothing of it runs, not even its `finally` blocks."""
    return await _steps_until_cut(running, cut, is_body=is_body)  # since Python 3.12, a task refuses a generator


@coroutine
def _steps_until_cut(running: Coroutine[Any, Any, R], cut: Cut, *, is_body: bool) -> Generator[Any, Any, R | None]:
    result: Any = None
    error: BaseException | None = None
    while True:
        if cut.made:  # a coroutine that the function has started as a task
            _abandon(running)
            return None
        try:
            waits_for = running.send(result) if error is None else running.throw(error)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # the type of StopIteration.value is Any
        if is_body:
            cut.suspensions += 1
            if cut.suspensions == cut.at and cut.is_in_commit():
                cut.at += 1
            if cut.suspensions == cut.at:
                cut.places = tuple(_places(running))
                cut.made = True
                _abandon(running)
                if asyncio.isfuture(waits_for):
                    # A timeout that the function has set still cancels this task; that must not replace the cut.
                    with suppress(asyncio.CancelledError):
                        yield from asyncio.wait([waits_for], timeout=_LAST_OPERATION).__await__()
                raise WorkerKilled(cut.places[0].source)
        try:
            result, error = (yield waits_for), None
        except BaseException as thrown:
            result, error = None, thrown


def _task_factory(before: Any) -> Any:
    """Return a factory that cuts off, together with the function, the tasks that the function has started."""

    def make(loop: asyncio.AbstractEventLoop, body: Any, **options: Any) -> Any:
        context = options.get("context")
        cut = _running.get() if context is None else context.get(_running)
        if cut is not None:
            body = _until_cut(body, cut, is_body=False)
        return asyncio.Task(body, loop=loop, **options) if before is None else before(loop, body, **options)

    return make


def _abandon(running: object) -> None:
    # Kept alive for the rest of the process: the destructor of a coroutine runs its `finally` blocks.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(running))


def _places(running: Any) -> Generator[Place]:
    """List the lines at which a coroutine is suspended, from the outermost function to the innermost."""
    while running is not None:
        frame = next((f for name in ("cr_frame", "gi_frame", "ag_frame") if (f := getattr(running, name, None))), None)
        if frame is None:
            return
        filename, line = frame.f_code.co_filename, frame.f_lineno
        source = linecache.getline(filename, line).strip()
        yield Place(frame.f_code.co_name, show_where(f"{filename}:{line}"), source)
        running = next(
            (r for name in ("cr_await", "gi_yieldfrom", "ag_await") if (r := getattr(running, name, None))), None
        )

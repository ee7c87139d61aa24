"""One attempt of a task: calling the function, and deciding what its end means."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from types import CodeType, FrameType, TracebackType
from typing import Any, Protocol
from weakref import ref

import anyio

from tasks_core._clock import Clock, clock_in_force
from tasks_core._current import CURRENT
from tasks_core._loop.loop import Loop
from tasks_core._observer import RunAttempt, hooks, notify
from tasks_core._retry import Retry, ask
from tasks_core._support.call import check_provided_call
from tasks_core._support.log import logger
from tasks_core._support.provider import ProvidedCall, Provisions
from tasks_core._task import RUNNING, SUCCEEDED, Task, TaskState

from .ledger import Ledger, LostTask, describe_loss, log_fields, title
from .limits import Limits
from .threads import ThreadCall, WorkerThreads


class AttemptOwner(Protocol):
    """What attempts need from the runner."""

    clock: Clock
    loop: Loop
    ledger: Ledger
    limits: Limits
    provisions: Provisions | None

    def start_all(self, tasks: list[Task[Any]]) -> None: ...
    def release_limits(self, task: Task[Any]) -> None: ...
    def run_again(self, task: Task[Any], error: BaseException, delay: float) -> bool: ...


class Attempts:
    """Runs attempts, each in a native task of its own, and decides what the end of one means."""

    __slots__ = ("_cancelled", "_handler_limiter", "_no_stray", "_runner", "_threads", "stray")

    def __init__(self, runner: AttemptOwner, max_threads: int) -> None:
        self._runner = runner
        self._threads = WorkerThreads()
        self._handler_limiter = anyio.CapacityLimiter(max_threads)
        self._cancelled: type[BaseException] = GeneratorExit  # until open()
        self._no_stray: anyio.Event | None = None
        self.stray: dict[ThreadCall, LostTask] = {}
        """The threads that still run what a task has given up waiting for."""

    def open(self) -> None:
        """Learn how the running event loop spells cancellation."""
        self._cancelled = anyio.get_cancelled_exc_class()

    def close(self) -> None:
        """End the idle threads."""
        self._threads.close()

    async def run(self, task: Task[Any]) -> None:
        """Run one attempt to its end; raises nothing."""
        if task._cancel_reason is not None or task._state.finished:
            # Cancelled before its first step: trio takes that all the same, and so does the loop before it hears of
            # a cancellation by another thread.
            self._cancel(task)
            return
        CURRENT.set(ref(task))
        task._state = RUNNING
        task.attempts += 1
        if task._started is not None:
            task._started.set()
        if hooks.task_started:
            notify(hooks.task_started, task)
        try:
            if task._is_async and task.config.timeout is None and not hooks.around_attempt:
                task._result = await task.func(*task.args, **task.kwargs)
            else:
                task._result = await self._call_in_time(task)
        except BaseException as error:
            # A task is nobody's child: whatever it raises, SystemExit included, has to end here.
            await self._end_badly(task, error)
        else:
            self._end(task, SUCCEEDED)
        finally:
            del task  # the frame is kept, through `f_back`, by that of a function that failed: a cycle

    # ---- calling the function ----

    async def _call_in_time(self, task: Task[Any]) -> Any:
        timeout = task.config.timeout
        if timeout is None or timeout == inf:
            return await self._call_observed(task)
        clock = clock_in_force(self._runner.clock)
        with self._runner.loop.deadline(clock, clock.now() + timeout):
            return await self._call_observed(task)
        raise TimeoutError(f"attempt {task.attempts} of {task.name!r} took longer than timeout={timeout:g} seconds")

    async def _call_observed(self, task: Task[Any]) -> Any:
        run: RunAttempt = partial(self._call, task)
        for around in reversed(hooks.around_attempt):
            run = _surround(around, task, run)
        return await run()

    async def _call(self, task: Task[Any], func: Callable[..., Any] | None = None, /) -> Any:
        if func is None:
            if task._perform is not None:
                return await task._perform()
            func, kind = task.func, task._provided or task._is_async
        else:
            kind = check_provided_call(func, task.args, task.kwargs, self._runner.provisions)
        if isinstance(kind, ProvidedCall):
            return await kind.run(func, partial(self._call_function, task, func, kind.is_async))
        return await self._call_function(task, func, kind, {})

    async def _call_function(
        self, task: Task[Any], func: Callable[..., Any], is_async: bool, provided: Mapping[str, Any], /
    ) -> Any:
        if is_async:
            return await func(*task.args, **task.kwargs, **provided)
        result = await self._call_in_thread(task, partial(func, *task.args, **task.kwargs, **provided))
        return await result if isinstance(result, Coroutine) else result

    async def _call_in_thread(self, task: Task[Any], func: Callable[[], object]) -> Any:
        # The place that the thread takes is given back when the thread is free, however the task ends.
        ended = self._counted_thread_ended if self._runner.limits.detach_thread(task) else self._thread_ended
        return await self._run_in_thread(task, ThreadCall(self._runner.loop, task, func, ended), "a plain function")

    async def _run_in_thread(self, task: Task[Any], call: ThreadCall, what: str) -> Any:
        try:
            return await self._threads.run(call)
        finally:
            if not call.finished.is_set():
                call.given_up = True
                reason = f"{what} cannot be cancelled: it still runs in its thread"
                self.stray[call] = describe_loss(task, TaskState.CANCELLED, reason)

    def _thread_ended(self, call: ThreadCall) -> None:
        self.stray.pop(call, None)
        if self._no_stray is not None and not self.stray:
            self._no_stray.set()

    def _counted_thread_ended(self, call: ThreadCall) -> None:
        self._thread_ended(call)
        self._runner.start_all(self._runner.limits.release_thread())

    async def wait_no_stray(self) -> None:
        """Return when no thread runs any more what a task has given up waiting for."""
        if self.stray:
            self._no_stray = anyio.Event()
            await self._no_stray.wait()

    # ---- what the end means ----

    async def _end_badly(self, task: Task[Any], error: BaseException) -> None:
        failure = _failure_in(error, self._cancelled)
        if failure is None:
            self._cancel(task)
        else:
            failure.__traceback__ = _without_own_frames(failure)
            await self._fail(task, failure)
        if isinstance(error, KeyboardInterrupt):
            self._runner.loop.interrupt(error)

    def _cancel(self, task: Task[Any]) -> None:
        reason = task._cancel_reason or "what it waited for was cancelled, or somebody cancelled it from outside"
        self._runner.release_limits(task)
        if not task._state.finished:
            self._runner.ledger.record_loss(task, TaskState.CANCELLED, reason)

    def _end(self, task: Task[Any], state: TaskState) -> None:
        if task._tickets:
            self._runner.release_limits(task)
        if not task._state.finished:  # shutdown may have abandoned it meanwhile
            self._runner.ledger.settle(task, state)

    async def _fail(self, task: Task[Any], error: BaseException) -> None:
        task.exception = error
        task._traceback = error.__traceback__
        try:
            answer = await self._ask_handler(task, error)
        except self._cancelled:
            self._cancel(task)
            return
        if isinstance(answer, Retry) and self._runner.run_again(task, error, answer.delay):
            return
        if answer is not True:
            logger.error("%s failed in attempt %d", title(task), task.attempts, exc_info=error, extra=log_fields(task))
        self._end(task, TaskState.FAILED)

    async def _ask_handler(self, task: Task[Any], error: BaseException) -> object:
        if task.config.on_error is None or not isinstance(error, Exception):
            return None
        if task._cancel_reason is not None:
            return None  # trio would cancel the handler at its first wait; what asyncio allows, it allows here alone
        try:
            return await ask(task.config.on_error, task, error)
        except self._cancelled:
            raise
        except BaseException as handler_error:
            logger.error("The error handler of %s raised", title(task), exc_info=handler_error, extra=log_fields(task))
            return None

    async def call_in_thread(self, task: Task[Any], func: Callable[[], object]) -> Any:
        """Run a plain error handler of the task."""
        async with self._handler_limiter:  # not max_threads: hanging tasks must not keep failures from being handled
            call = ThreadCall(self._runner.loop, task, func, self._thread_ended)
            return await self._run_in_thread(task, call, "its error handler, a plain function,")


def _surround(
    around: Callable[[Task[Any], RunAttempt], Awaitable[Any]], task: Task[Any], inner: RunAttempt
) -> RunAttempt:
    """Put an observer around an attempt; what an outer observer puts in place of the function reaches the inner one."""

    def run(func: Callable[..., Any] | None = None, /) -> Awaitable[Any]:
        return around(task, lambda replacement=None, /: inner(replacement or func))

    return run


def _failure_in(error: BaseException, cancelled: type[BaseException]) -> BaseException | None:
    """Return what *error* says besides "cancelled": nothing, itself, or what is left of a group."""
    if isinstance(error, (cancelled, GeneratorExit)):
        return None
    if isinstance(error, BaseExceptionGroup):
        cancellations, rest = error.split(cancelled)
        return error if cancellations is None else rest
    return error


def _without_own_frames(error: BaseException) -> TracebackType | None:
    """
    Cut the frames of this package off the outer end of a traceback.

    They tell the reader nothing, and they hold the task: a cycle, through `task.exception`. Since Python 3.12 the frame
    of the function keeps those of its callers by itself, so that they have to be emptied as well.
    """
    frames: list[FrameType] = []
    own = 0
    rest = traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
        if frames[-1].f_code in _CALLERS:
            own, rest = len(frames), traceback
    for frame in frames[:own]:
        with suppress(RuntimeError):  # it still runs
            frame.clear()
    return rest


_CALLERS: frozenset[CodeType] = frozenset(
    function.__code__
    for function in (
        Attempts.run,
        Attempts._call_in_time,
        Attempts._call_observed,
        Attempts._call,
        Attempts._call_function,
        Attempts._call_in_thread,
        Attempts._run_in_thread,
        WorkerThreads.run,
        ThreadCall.take,
    )
)

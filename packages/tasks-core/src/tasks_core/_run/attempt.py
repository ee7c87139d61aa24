"""One attempt of a task: the call of the function, and what the end of the call means."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from math import inf
from types import AsyncGeneratorType, CodeType, FrameType, GeneratorType, TracebackType
from typing import Any, NoReturn, Protocol
from weakref import ref

import anyio

from tasks_core._clock import Clock, clock_in_force, steady
from tasks_core._current import CURRENT
from tasks_core._decision import AttemptEnded, Cancel, Decision, Snooze, decision_in
from tasks_core._loop.awaits import function_in_thread
from tasks_core._loop.loop import Loop
from tasks_core._observer import RunAttempt, hooks, notify
from tasks_core._retry import Retry, ask
from tasks_core._support.call import check_provided_call, function_name
from tasks_core._support.log import logger, message_of, traceback_of
from tasks_core._support.provider import ProvidedCall, Provisions
from tasks_core._task import RUNNING, SUCCEEDED, Task, TaskState
from tasks_core.exceptions import InvalidTaskError

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
    def run_again(self, task: Task[Any], error: BaseException | None, answer: Retry | Snooze) -> bool: ...
    def too_late(self, task: Task[Any]) -> str | None: ...
    def end_anyhow(self, task: Task[Any], error: BaseException) -> None: ...


# Seconds that an error handler may take; longer if the task has a longer `timeout`.
HANDLER_TIMEOUT = 60.0

_CANCELLED_OUTSIDE = "what it waited for was cancelled, or it was cancelled through the event loop"


class Attempts:
    """Runs attempts, each in a native task of its own, and decides what the end of one means."""

    __slots__ = ("_cancelled", "_handler_limiter", "_max_threads", "_no_stray", "_runner", "_threads", "left", "stray")

    def __init__(self, runner: AttemptOwner, max_threads: int) -> None:
        self._runner = runner
        self._threads = WorkerThreads()
        self._max_threads = max_threads
        self._handler_limiter = anyio.CapacityLimiter(max_threads)
        self._cancelled: type[BaseException] = GeneratorExit  # until open()
        self._no_stray: anyio.Event | None = None
        self.stray: dict[ThreadCall, LostTask] = {}
        """The threads of the scheduler that still run the function of a task that has ended, or is about to."""
        self.left: dict[tuple[int, int], tuple[LostTask, Callable[..., object]]] = {}
        """The functions that cancelled coroutines had given to other threads, as far as that is known."""

    def open(self) -> None:
        """Learn the exception by which the running event loop cancels."""
        self._cancelled = anyio.get_cancelled_exc_class()

    def close(self) -> None:
        """End the idle threads."""
        self._threads.close()

    async def run(self, task: Task[Any]) -> None:
        """Run one attempt to its end; raises nothing."""
        try:
            if task._cancel_reason is not None or task._state.finished:
                # Cancelled before its first step: trio takes that step all the same, and so does asyncio until the
                # cancellation by another thread has reached the loop.
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
                # The native task has no parent: whatever the function raises, SystemExit included, has to end here.
                await self._end_badly(task, error)
            else:
                # Not isinstance(), which asks the object for its class: a proxy may raise anything.
                if task._result is not None and issubclass(type(task._result), Decision):
                    self._decide(task, task._result)
                else:
                    self._end(task, SUCCEEDED)
        except BaseException as error:
            # A step on the way to the end has raised: without this, the task would be running for as long as the
            # process does.
            self._end_anyhow(task, error)
        finally:
            del task  # the frame is kept, through `f_back`, by that of a function that failed: a cycle

    # ---- calling the function ----

    async def _call_in_time(self, task: Task[Any]) -> Any:
        timeout = task.config.timeout
        if timeout is None or timeout == inf:
            return await (self._call_observed(task) if hooks.around_attempt else self._call(task))
        clock = steady(clock_in_force(self._runner.clock))
        name_thread = partial(self.name_thread_left, task, "its timeout")
        with self._runner.loop.deadline(clock, clock.now() + timeout, name_thread):
            return await self._call_observed(task)
        raise TimeoutError(f"attempt {task.attempts} of {task.name!r} took longer than timeout={timeout:g} seconds")

    async def _call_observed(self, task: Task[Any]) -> Any:
        run: RunAttempt = partial(self._call_inside if hooks.around_attempt else self._call, task)
        for around in reversed(hooks.around_attempt):
            run = _surround(around, task, run)
        return await run()

    async def _call_inside(self, task: Task[Any], func: Callable[..., Any] | None = None, /) -> Any:
        try:
            return await self._call(task, func)
        except BaseException:
            # The line about the failure belongs inside of what observers have put around the attempt.
            task._failed_in = copy_context()
            raise

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
        if isinstance(result, Task):
            return result  # the handle of another task, which runs by itself
        if inspect.isawaitable(result):
            return await result  # a coroutine, the query of an ORM: nothing has run so far
        if isinstance(result, _RUN_NOTHING):
            _refuse_result(func, result)
        return result

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
                if len(self.stray) == self._max_threads:
                    self._name_threads_occupied()

    def _name_threads_occupied(self) -> None:
        functions = ", ".join(map(str, self.stray.values()))
        logger.warning(
            "All max_threads=%d threads run functions whose tasks have ended, and plain functions wait until one of "
            "them returns: %s",
            self._max_threads,
            functions,
        )

    def _thread_ended(self, call: ThreadCall) -> None:
        self.stray.pop(call, None)
        if self._no_stray is not None and not self.stray:
            self._no_stray.set()

    def _counted_thread_ended(self, call: ThreadCall) -> None:
        self._thread_ended(call)
        self._runner.start_all(self._runner.limits.release_thread())

    async def wait_no_stray(self) -> None:
        """Return when no thread runs the function of a task that has ended."""
        if self.stray:
            self._no_stray = anyio.Event()
            await self._no_stray.wait()

    def name_thread_left(self, task: Task[Any], cause: str) -> None:
        """Log that a coroutine which is about to be cancelled, by *cause*, waits for a thread that will run on."""
        native = task._native
        func = None if native is None else function_in_thread(self._runner.loop.cancels_behind_shields(native))
        attempt = task.id, task.attempts
        if func is None or attempt in self.left:
            return
        name = function_name(func)
        reason = f"it waited for a thread, which still runs {name}"
        self.left[attempt] = describe_loss(task, TaskState.CANCELLED, reason), func
        logger.warning(
            "%s is cancelled (%s) while a thread runs %s for it: a thread cannot be cancelled, and runs on. Schedule "
            "the plain function itself, so that the scheduler accounts for the thread",
            title(task),
            cause,
            name,
            extra=log_fields(task),
        )

    # ---- what the end means ----

    async def _end_badly(self, task: Task[Any], error: BaseException) -> None:
        failure = _failure_in(error, (self._cancelled, AttemptEnded))
        if failure is None:
            self._cancel(task, str(error) if isinstance(error, AttemptEnded) else None)
        elif (decision := decision_in(failure)) is not None:
            self._decide(task, decision)
        else:
            # Not `failure.__traceback__ = ...`, which asks the class of the exception: a frozen dataclass refuses.
            BaseException.with_traceback(failure, _without_own_frames(failure, task._traceback))
            await self._fail(task, failure)
        if isinstance(error, KeyboardInterrupt):
            self._runner.loop.interrupt(error)

    def _end_anyhow(self, task: Task[Any], error: BaseException) -> None:
        self._runner.end_anyhow(task, error)
        if isinstance(error, KeyboardInterrupt):
            self._runner.loop.interrupt(error)

    def _decide(self, task: Task[Any], decision: Decision, error: BaseException | None = None) -> None:
        """Do what an attempt, or the error handler that was given *error*, has decided."""
        runner, elsewhere = self._runner, hasattr(task, "_label")
        task._result = None
        if isinstance(decision, Snooze) and not elsewhere:
            if not runner.run_again(task, error, decision):
                self._cancel(task, runner.too_late(task))
            return
        runner.release_limits(task)
        if task._state.finished:  # shutdown may have abandoned it meanwhile
            return
        if isinstance(decision, Snooze):
            announce_snooze(task, decision, error)
            # Read by the code that has set the label. A new object, because the other one has frames in its traceback.
            task._result = Snooze(decision.delay)
            runner.ledger.settle(task, TaskState.CANCELLED, str(decision))
        else:
            assert isinstance(decision, Cancel)
            if elsewhere:
                task._result = Cancel(decision.reason)
            runner.ledger.settle(task, TaskState.CANCELLED, decision.reason)
            _log_decision(task, f"has cancelled itself in attempt {task.attempts}", decision.reason, error)

    def _cancel(self, task: Task[Any], reason: str | None = None) -> None:
        reason = task._cancel_reason or reason or _CANCELLED_OUTSIDE
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
        task._traceback = traceback_of(error)
        try:
            answer = await self._ask_handler(task, error)
        except self._cancelled:
            self._cancel(task)
            return
        if isinstance(answer, Decision):
            self._decide(task, answer, error)
            return
        if isinstance(answer, Retry) and self._runner.run_again(task, error, answer):
            return
        if answer is not True:
            self._log_failure(task, error)
        self._end(task, TaskState.FAILED)

    def _log_failure(self, task: Task[Any], error: BaseException) -> None:
        log = partial(logger.error, "%s failed in attempt %d", title(task), task.attempts)
        inside = getattr(task, "_failed_in", None)
        if inside is None:
            log(exc_info=error, extra=log_fields(task))
        else:
            del task._failed_in
            inside.run(log, exc_info=error, extra=log_fields(task))

    async def _ask_handler(self, task: Task[Any], error: BaseException) -> object:
        if task.config.on_error is None or not isinstance(error, Exception):
            return None
        if task._cancel_reason is not None:
            return None  # trio would cancel the handler at its first wait, and asyncio would not
        try:
            return await self._ask_in_time(task, error)
        except self._cancelled:
            raise
        except Decision as decision:
            return decision
        except BaseException as handler_error:
            logger.error("The error handler of %s raised", title(task), exc_info=handler_error, extra=log_fields(task))
            if isinstance(handler_error, KeyboardInterrupt):
                self._runner.loop.interrupt(handler_error)
            return None

    async def _ask_in_time(self, task: Task[Any], error: Exception) -> object:
        assert task.config.on_error is not None
        bound = max(HANDLER_TIMEOUT, task.config.timeout or 0.0)
        if bound == inf:
            return await ask(task.config.on_error, task, error)
        clock = steady(clock_in_force(self._runner.clock))
        with self._runner.loop.deadline(clock, clock.now() + bound):
            return await ask(task.config.on_error, task, error)
        raise TimeoutError(f"the error handler of {task.name!r} took longer than {bound:g} seconds")

    async def call_in_thread(self, task: Task[Any], func: Callable[[], object]) -> Any:
        """Run a plain error handler of the task."""
        async with self._handler_limiter:  # not max_threads: hanging tasks must not keep failures from being handled
            call = ThreadCall(self._runner.loop, task, func, self._thread_ended)
            return await self._run_in_thread(task, call, "its error handler, a plain function,")


def announce_snooze(task: Task[Any], snooze: Snooze, error: BaseException | None) -> None:
    """Log, and tell observers, that an attempt is followed by another one, although it has not failed."""
    _log_decision(task, f"is snoozed in attempt {task.attempts}", str(snooze), error)
    if hooks.task_retrying:
        notify(hooks.task_retrying, task, snooze, snooze.delay)


def _log_decision(task: Task[Any], what: str, why: str, error: BaseException | None) -> None:
    after = "" if error is None else f" (after {message_of(error)})"
    logger.info("%s %s%s: %s", title(task), what, after, why, extra=log_fields(task))


def _surround(
    around: Callable[[Task[Any], RunAttempt], Awaitable[Any]], task: Task[Any], inner: RunAttempt
) -> RunAttempt:
    """Put an observer around an attempt; the inner one gets the function by which the outer one replaced it."""

    def run(func: Callable[..., Any] | None = None, /) -> Awaitable[Any]:
        # Not `replacement or func`: a stub that collects calls in a list is false while it is empty.
        return around(task, lambda replacement=None, /: inner(func if replacement is None else replacement))

    return run


def _failure_in(error: BaseException, cancelled: tuple[type[BaseException], ...]) -> BaseException | None:
    """Return the failure that *error* is besides a cancellation: itself, what is left of a group, or `None`."""
    if isinstance(error, (*cancelled, GeneratorExit)):
        return None
    if isinstance(error, BaseExceptionGroup):
        try:
            cancellations, rest = error.split(cancelled)
        except Exception:  # `derive()` is the class's own
            return error
        return error if cancellations is None else rest
    if type(error) is RuntimeError and isinstance(error.__cause__, StopIteration) and error.args == _STOPPED:
        return error.__cause__  # what the function raised, before a coroutine replaced it
    return error


_STOPPED = ("coroutine raised StopIteration",)


@contextmanager
def _manager() -> Any:
    yield  # pragma: no cover  # it is not entered: its type is what counts


@asynccontextmanager
async def _async_manager() -> Any:
    yield  # pragma: no cover  # nor is this


# Results of functions whose body has not run: behind a decorator, such a function looks like any other.
_RUN_NOTHING = (GeneratorType, AsyncGeneratorType, type(_manager()), type(_async_manager()))


def _refuse_result(func: Callable[..., Any], result: object) -> NoReturn:
    kind = "a generator" if isinstance(result, (GeneratorType, AsyncGeneratorType)) else "a context manager"
    raise InvalidTaskError(
        f"{function_name(func)} returned {kind}, so that none of its body has run. "
        "Pass a function without `yield`, which enters the context manager or loops over the generator itself"
    )


def _without_own_frames(error: BaseException, earlier: TracebackType | None) -> TracebackType | None:
    """
    Cut the frames of this package off the outer end of a traceback.

    *earlier* is the traceback of the attempt before. If each attempt raises the same exception object, Python puts the
    frames of all of them into one traceback, so that the inner end, which belongs to that attempt, is cut as well.

    They are of no use to the reader, and they hold the task: a cycle, through `task.exception`. Since Python 3.12 the
    frame of the function keeps those of its callers by itself, so that they have to be emptied as well.
    """
    frames: list[FrameType] = []
    own = 0
    rest = traceback = traceback_of(error)
    last: TracebackType | None = None
    while traceback is not None:
        if traceback is earlier and last is not None:
            last.tb_next = None
            break
        frames.append(traceback.tb_frame)
        last, traceback = traceback, traceback.tb_next
        if frames[-1].f_code in CALLERS:
            own, rest = len(frames), traceback
    for frame in frames[:own]:
        with suppress(RuntimeError):  # it still runs
            frame.clear()
    return rest


CALLERS: frozenset[CodeType] = frozenset(
    function.__code__
    for function in (
        Attempts.run,
        Attempts._call_in_time,
        Attempts._call_observed,
        Attempts._call_inside,
        Attempts._call,
        Attempts._call_function,
        Attempts._call_in_thread,
        Attempts._run_in_thread,
        WorkerThreads.run,
        ThreadCall.take,
    )
)

"""Handing a call over to an engine: a task that has succeeded when the engine has acknowledged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import uuid4

import anyio

from tasks_core._config import Outcome, TaskConfig
from tasks_core._loop.loop import Loop
from tasks_core._retry import Retry, ask
from tasks_core._run.ledger import title
from tasks_core._support.log import logger
from tasks_core._task import NativeTask, Task, TaskState
from tasks_core.exceptions import (
    EngineCapabilityError,
    EngineNotConfiguredError,
    EngineUnavailableError,
    InvalidConfigError,
    NotAddressableError,
)

from .engine import DurableCall, Engine, Receipt, RetryPolicy, engine_in_force, engine_overridden
from .function import DurableContext, DurableFunction, set_context
from .trace import trace_headers

if TYPE_CHECKING:
    from tasks_core._phase import TaskPhase
    from tasks_core._run.runner import Runner
    from tasks_core._scheduler import TaskScheduler

EngineFallback: TypeAlias = Literal["error", "memory"]
"""What becomes of a durable task when its engine does not acknowledge: it fails, or it runs in this process."""

# Seconds that an engine has to acknowledge.
_TIME_LIMIT = 5.0


class DurableTask(Task[Receipt]):
    """
    A durable task on its way to the engine: what `schedule()` returns for a function with `@durable`.

    It has succeeded when the engine has acknowledged; its result is the `Receipt`. The function itself runs elsewhere,
    and is no part of it. Shutdown waits for it as for a task with `shield`.
    """

    __slots__ = ("call", "engine", "engine_fallback", "transaction")

    call: DurableCall
    engine: Engine
    transaction: Any
    """What the engine made of `transaction=`."""
    engine_fallback: EngineFallback

    @property
    def stored(self) -> bool:
        """Whether the engine has the call already, because the transaction was committed before the phase began."""
        return getattr(self.transaction, "stored", False)

    def _is_for(self, outcome: Outcome) -> bool:
        return self.stored or super()._is_for(outcome)  # a row that is committed already stays

    def _is_wanted(self) -> bool:
        return not self._state.finished

    async def _perform(self) -> Receipt:
        call = self.call
        if self.config.delay and call.not_before is None:
            call = replace(call, not_before=time.time() + self.config.delay)
        try:
            with anyio.fail_after(_TIME_LIMIT):
                return await self.engine.submit(call, transaction=self.transaction)
        except (EngineUnavailableError, TimeoutError) as error:
            if self.engine_fallback == "memory" and self.transaction is None:
                return self._run_here(error)
            if isinstance(error, EngineUnavailableError):
                raise
            raise EngineUnavailableError(
                f"{self.engine.name} did not acknowledge {self.name!r} within {_TIME_LIMIT:g} seconds"
            ) from None

    def _run_here(self, error: Exception) -> Receipt:
        function = self.func
        assert isinstance(function, DurableFunction)
        logger.warning(
            "%s runs in this process, and is lost if that ends: %s did not acknowledge (%s)",
            title(self),
            self.engine.name,
            type(error).__name__,
        )
        runner: Runner = self._owner  # type: ignore[assignment]  # who else owns a task that was scheduled
        config = self.config.merge(function.config).merge(TaskConfig(on_error=_handler(function)))
        context = copy_context()
        task: Task[Any] = Task(
            runner,
            function.func,
            self.args,
            dict(self.kwargs),
            config,
            self._phase,
            function.is_async,
            context,
            self._code,
            self._instruction,
            runner.now(),
        )
        call = self.call
        assert runner.host is not None  # it has said what to do
        found = runner.host.find_scheduler
        context.run(set_context, DurableContext(call.name, call.key, 1, call.headers, found, task_id=task.id))
        runner.accept(task, runner.ready if self._phase is None else self._phase._take)
        return Receipt("memory", str(task.id), self.call.key)


def _handler(function: DurableFunction[..., Any]) -> Callable[[Task[Any], Exception], Any]:
    """Make the error handler for a durable function that runs in memory after all."""
    policy = function.retry or RetryPolicy(attempts=1)

    async def handle(task: Task[Any], exception: Exception) -> object:
        pause = policy.pause(exception, task.attempts)
        if pause is not None:
            return Retry(pause)
        return None if function.config.on_error is None else await ask(function.config.on_error, task, exception)

    return handle


def new_durable_task(
    runner: Runner,
    config: TaskConfig,
    base: TaskConfig,
    phase: TaskPhase | None,
    function: DurableFunction[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    caller: FrameType,
) -> DurableTask:
    """Make a task that hands a call over; whatever could not travel, or is not to be had, is an error now."""
    host = runner.host
    engine = engine_in_force(None if host is None else host.engine)
    if engine is None:
        raise EngineNotConfiguredError(
            f"{function!r} was scheduled, and there is no engine that could keep it. Give the scheduler one: "
            "TaskScheduler(engine=...), in an application add_tasks(app, engine=...)"
        )
    _check_options(function, engine, config, base)
    task = DurableTask(
        runner,
        function,
        args,
        kwargs,
        # Errors arrive where the acknowledgement is waited for; a handler, a timeout and a limit are for the run.
        replace(config, shield=True, on_error=None, timeout=None, limiter=None),
        phase,
        False,
        copy_context(),
        caller.f_code,
        caller.f_lasti,
        runner.now(),
    )
    task.engine = engine
    task.engine_fallback = "error" if host is None else host.engine_fallback
    task.call = DurableCall(
        name=function.name,
        args=function.codec.encode(args, kwargs),
        key=config.key or str(uuid4()),
        dedup=config.key is not None,
        retry=function.retry,
        headers=_headers(phase),
    )
    task.transaction = None
    if config.transaction is not None:
        if config.delay:
            task.call = replace(task.call, not_before=time.time() + config.delay)
        task.transaction = engine.join(config.transaction, task.call, task._is_wanted)
    runner.accept(task, runner.ready if phase is None else phase._take_durable)
    return task


def check_submitted(task: DurableTask) -> None:
    """Raise if the engine did not acknowledge although it should have."""
    if task.state is TaskState.FAILED:
        task.result()
    if task.lost:
        raise EngineUnavailableError(f"{task.name!r} was not handed over to {task.engine.name}: {task.reason}")


def _check_options(function: DurableFunction[..., Any], engine: Engine, config: TaskConfig, base: TaskConfig) -> None:
    for option in ("on_error", "timeout", "limiter"):
        if getattr(config, option) is not getattr(base, option):
            where = "" if option == "limiter" else f". Give it to the function: @durable({option}=...)"
            raise EngineCapabilityError(
                f"{function!r} runs in another process, to which {option}= of this call cannot go{where}"
            )
    for option, capability in (("transaction", "transaction"), ("key", "dedup"), ("delay", "delay")):
        if getattr(config, option) is not None and capability not in engine.capabilities:
            raise EngineCapabilityError(f"{function!r} was scheduled with {option}=, which {engine.name} cannot do")


def refuse_durable_options(config: TaskConfig) -> None:
    """The options that mean something to an engine only."""
    for option in ("key", "transaction"):
        if getattr(config, option) is not None:
            raise InvalidConfigError(
                f"{option}= is for durable tasks, and this function is not durable. Decorate it with @durable"
            )


def refuse_partial(func: partial[Any]) -> None:
    """A durable function inside of a partial would run in memory, which nobody can have meant."""
    inner = func.func
    if isinstance(inner, DurableFunction):
        raise NotAddressableError(
            f"{inner!r} inside of a partial cannot be found by another process. Pass it and its arguments: "
            f"schedule({inner.__name__}, ...)"
        )


def _headers(phase: TaskPhase | None) -> dict[str, str]:
    headers = trace_headers()
    of_origin: Mapping[str, str] | None = None if phase is None else getattr(phase.origin, "task_headers", None)
    if of_origin:
        headers.update(of_origin)
    return headers


class EngineHost:
    """Keeps an engine entered for as long as a scheduler lives, in one native task."""

    __slots__ = ("_closed", "_error", "_native", "_opened", "_stop", "engine", "engine_fallback", "find_scheduler")

    def __init__(
        self, engine: Engine, engine_fallback: EngineFallback, find_scheduler: Callable[[], TaskScheduler | None]
    ) -> None:
        if not isinstance(engine, Engine):
            raise InvalidConfigError(
                "engine must have the methods of tasks_core.Engine, as in engine=ProcrastinateEngine('postgresql://...')"
            )
        if engine_fallback not in ("error", "memory"):
            raise InvalidConfigError(
                f"engine_fallback={engine_fallback!r}: engine_fallback must be 'error' or 'memory'"
            )
        self.engine = engine
        self.engine_fallback = engine_fallback
        self.find_scheduler = find_scheduler
        self._native: NativeTask | None = None
        self._error: BaseException | None = None

    async def open(self, loop: Loop) -> None:
        """Enter the engine, unless another one takes its place; raise what that raises."""
        if engine_overridden():
            return
        self._opened, self._stop, self._closed = anyio.Event(), anyio.Event(), anyio.Event()
        self._native = loop.spawn(None, "tasks engine", self._hold())
        try:
            await self._opened.wait()
        except BaseException:
            self._native.cancel()
            raise
        if self._error is not None:
            self._native = None
            raise self._error

    async def _hold(self) -> None:
        try:
            async with self.engine:
                self._opened.set()
                await self._stop.wait()
        except Exception as error:
            if self._opened.is_set():
                logger.exception("The engine %s could not be left", self.engine.name)
            self._error = error
        except anyio.get_cancelled_exc_class():
            self._error = EngineUnavailableError("the event loop is being stopped")
            raise
        finally:
            self._opened.set()
            self._closed.set()

    async def close(self) -> None:
        """Leave the engine."""
        if self._native is not None:
            self._stop.set()
            await self._closed.wait()

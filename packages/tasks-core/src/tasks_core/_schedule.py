"""The call that everybody writes: `schedule(func, *args, **kwargs)`."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from functools import partial
from types import FrameType, FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import anyio

from ._config import TaskConfig, TaskErrorHandler, When
from ._durable.engine import Receipt
from ._durable.function import DurableFunction
from ._durable.task import new_durable_task, refuse_durable_options, refuse_partial
from ._support.call import check_call
from ._task import Task
from .exceptions import InvalidConfigError

if TYPE_CHECKING:
    from ._phase import TaskPhase
    from ._run.runner import Runner

P = ParamSpec("P")
T = TypeVar("T")


class ScheduleTarget(ABC):
    """Something that tasks can be scheduled into: a scheduler, a phase, or one of them with a configuration."""

    __slots__ = ()

    @overload
    def schedule(self, func: DurableFunction[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Task[Receipt]: ...

    @overload
    def schedule(self, func: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]: ...

    @overload
    def schedule(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]: ...

    def schedule(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Task[Any]:
        """
        Have `func(*args, **kwargs)` run in the background, and return a handle to that.

        A coroutine function runs on the event loop, a plain function in a worker thread of the scheduler. The call
        never blocks, may come from any thread, and returns before the function starts. The function sees the context
        variables as they are now.

        A durable function (`@durable`) is not run here: its call is handed over to the engine of the scheduler, and the
        result of the task is the `Receipt` for it. In a phase of a request that happens before the response begins.

        Once this returns, the task is in the books of the scheduler: it will end in exactly one terminal state, and
        there is a line in the log unless it succeeded.

        Raises:
            InvalidTaskError: *func* is not a function that can be called with these arguments.
            SchedulerNotStartedError: the scheduler has not been entered.
            SchedulerClosedError: shutdown has begun, and the caller is not a task of this scheduler that still runs.
            TaskQueueFullError: `max_pending` tasks are waiting already.
            ArgumentCodecError: an argument for a durable function cannot travel.
            EngineNotConfiguredError: *func* is durable, and the scheduler has no engine.
            EngineCapabilityError: *func* is durable, and the engine cannot do what `.task(...)` asks for.
        """
        # The frame is asked for its place only, here and now: keeping it would keep the caller's variables alive.
        return self._schedule(func, args, kwargs, sys._getframe(1))

    def task(
        self,
        *,
        name: str | None = None,
        shield: bool | None = None,
        on_error: TaskErrorHandler | None = None,
        when: When | None = None,
        timeout: float | None = None,
        delay: float | None = None,
        limiter: anyio.CapacityLimiter | None = None,
        key: str | None = None,
        transaction: Any = None,
    ) -> ScheduleTarget:
        """
        Say how the next task is to be run: `tasks.task(name="charge", shield=True).schedule(charge, order.id)`.

        The arguments are the fields of `TaskConfig`, which explains them. What is left out is inherited. The object
        returned can be kept, and used for any number of tasks.

        Raises:
            InvalidConfigError: a value is not one that the option allows.
        """
        config = TaskConfig(
            name=name,
            shield=shield,
            on_error=on_error,
            when=when,
            timeout=timeout,
            delay=delay,
            limiter=limiter,
            key=key,
            transaction=transaction,
        )
        return self._configured(config)

    @abstractmethod
    def _schedule(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caller: FrameType,
        config: TaskConfig | None = None,
    ) -> Task[Any]:
        """Schedule with *config* in place of the own one."""

    @abstractmethod
    def _configured(self, config: TaskConfig) -> ScheduleTarget: ...


def new_task(
    runner: Runner,
    then: Callable[[Task[Any]], object],
    config: TaskConfig | None,
    base: TaskConfig,
    phase: TaskPhase | None,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    caller: FrameType,
) -> Task[Any]:
    """
    Make a task that `runner` has accepted; *config* is what was said for it over *base*.

    *then* is called with it on the thread of the loop.
    """
    if not isinstance(func, FunctionType):
        if isinstance(func, DurableFunction):
            check_call(func.func, args, kwargs)
            return new_durable_task(runner, config or base, base, phase, func, args, kwargs, caller)
        if isinstance(func, partial):
            refuse_partial(func)
    if config is None:
        config = base
    else:
        refuse_durable_options(config)
    is_async = check_call(func, args, kwargs)
    task: Task[Any] = Task(
        runner,
        func,
        args,
        kwargs,
        config,
        phase,
        is_async,
        copy_context(),
        caller.f_code,
        caller.f_lasti,
        runner.clock.now(),
    )
    runner.accept(task, then)
    return task


class ConfiguredSchedule(ScheduleTarget):
    """What `.task(...)` returns."""

    __slots__ = ("_config", "_target")

    def __init__(self, target: ScheduleTarget, config: TaskConfig) -> None:
        self._target = target
        self._config = config

    def _schedule(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caller: FrameType,
        config: TaskConfig | None = None,
    ) -> Task[Any]:
        return self._target._schedule(func, args, kwargs, caller, config or self._config)

    def _configured(self, config: TaskConfig) -> ScheduleTarget:
        return ConfiguredSchedule(self._target, self._config.merge(config))


def refuse_when(config: TaskConfig) -> None:
    """Where a task starts now, there is no outcome that it could wait for."""
    if config.when is not None:
        raise InvalidConfigError(
            f"when={config.when!r}: a task that starts now cannot wait for an outcome. "
            f"Schedule it into a phase: tasks.after_response.task(when={config.when!r}).schedule(...)"
        )

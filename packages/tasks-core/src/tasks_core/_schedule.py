"""The call that every user writes: `schedule(func, *args, **kwargs)`."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context, copy_context
from dataclasses import dataclass, fields
from functools import partial
from types import CodeType, FrameType, FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar, overload

from ._config import TaskConfig
from ._support.call import check_provided_call, function_name, takes
from ._task import PhaseInfo, ProvidedTask, Task
from .exceptions import InvalidConfigError, InvalidTaskError

if TYPE_CHECKING:
    from ._run.runner import Runner

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Options = ParamSpec("Options")


def _takes(
    _config: Callable[Options, TaskConfig],
) -> Callable[[Callable[..., ScheduleTarget]], Callable[Concatenate[ScheduleTarget, Options], ScheduleTarget]]:
    """Give a method the parameters of `TaskConfig`, so that an option is declared in one place."""
    return lambda method: method


class ScheduleTarget(ABC):
    """What tasks are scheduled into: a scheduler, a phase, or one of them with a configuration."""

    __slots__ = ()

    if TYPE_CHECKING:
        config: TaskConfig
        """What tasks get that are scheduled here."""
        _inherited: TaskConfig  # what tasks get here without `.task(...)`
        _runner: Runner
        _phase: PhaseInfo | None  # what tasks are scheduled into, unless it is this target itself
        _take: Callable[[Task[Any]], object]  # takes an accepted task, on the thread of the loop

    _is_phase: ClassVar[bool] = False
    """Whether this is a phase, which does not have itself as `_phase`, because that would be a reference cycle."""

    @abstractmethod
    def _refuse(self, config: TaskConfig) -> None:
        """Raise `InvalidConfigError` if tasks that are scheduled here cannot have *config*."""

    @overload
    def schedule(self, func: TaskFactory[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]: ...

    @overload
    def schedule(self, func: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]: ...

    @overload
    def schedule(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]: ...

    def schedule(self, func: Any, /, *args: Any, **kwargs: Any) -> Task[Any]:
        """
        Schedule `func(*args, **kwargs)` to run in the background, and return its handle.

        A coroutine function runs on the event loop, a plain function in a worker thread of the scheduler. The call
        never blocks, may be made from any thread, and returns before the function starts. The function has the context
        variables of the moment of the call.

        A callable that is a `TaskFactory` makes a kind of task of its own; its documentation says what that task does
        and what else may be raised.

        When this returns, the scheduler has accepted the task: it will end in exactly one terminal state, and a line is
        logged unless it succeeded.

        Raises:
            InvalidTaskError: *func* is not a function that can be called with these arguments.
            SchedulerNotStartedError: the scheduler has not been entered.
            SchedulerClosedError: shutdown has begun, and the caller is not a task of this scheduler that still runs.
            TaskQueueFullError: `max_pending` tasks are waiting already.
        """
        # Only the place is read from the frame: a reference to the frame would keep the caller's variables alive.
        caller = sys._getframe(1)
        if _helpers:
            caller = _past_helpers(caller)
        if not isinstance(func, FunctionType):
            factory = func.func if isinstance(func, partial) else func
            if isinstance(factory, TaskFactory):
                return factory._schedule_into(self, ScheduledCall(func, args, kwargs, caller))
        runner = self._runner
        try:
            is_async = check_provided_call(func, args, kwargs, runner.provisions)
        except InvalidTaskError as error:
            raise _with_options_named(error, func, kwargs) from None
        task: Task[Any] = (Task if is_async is True or is_async is False else ProvidedTask)(
            runner,
            func,
            args,
            kwargs,
            self.config,
            self if self._is_phase else self._phase,  # type: ignore[arg-type]  # a TaskPhase
            is_async,
            copy_context(),
            caller.f_code,
            caller.f_lasti,
            runner.clock.now(),
        )
        runner.accept(task, self._take)
        return task

    @_takes(TaskConfig)
    def task(self, **options: Any) -> ScheduleTarget:
        """
        Set options for the tasks scheduled next: `tasks.task(name="charge", shield=True).schedule(charge, order.id)`.

        Args:
            options: The fields of `TaskConfig`, which explains them. Those that are left out are inherited.

        Returns:
            A target with these options, which may be used for any number of tasks.

        Raises:
            InvalidConfigError: a value is not one that the option allows.
        """
        config = TaskConfig(**options)
        self._refuse(config)
        config = self.config.merge(config)
        if config.key is None and options.get("on_conflict") is not None:
            raise InvalidConfigError(
                f"on_conflict={options['on_conflict']!r} says what happens to tasks with one key, and there is no key. "
                f"Write .task(key='reindex:7', on_conflict={options['on_conflict']!r})"
            )
        return ConfiguredTarget(self, config) if config.key is None else KeyedTarget(self, config)


# The code of functions that are transparent, by its id, because computing the hash of a code object takes long.
_helpers: dict[int, CodeType | None] = {}
_helper_modules: set[str] = set()


def transparent(func: F) -> F:
    """
    Mark a helper that schedules for its caller: `task.where`, log lines and spans then name the line of the caller.

    ```python
    @transparent
    def in_background(func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        scheduler.schedule(func, *args, **kwargs)
    ```

    Several such helpers may call each other; the line is that of the first function that is not marked. If another
    decorator replaces the function, this one has to be the innermost.

    Args:
        func: A function or coroutine function, which stays as it is.

    Returns:
        The function itself.

    Raises:
        InvalidTaskError: *func* is not a function that is written in Python.
    """
    if not isinstance(func, FunctionType):
        raise InvalidTaskError(
            f"@transparent was given {type(func).__qualname__!r}. It takes a function, and stands below other "
            "decorators, such as @staticmethod"
        )
    _helpers[id(func.__code__)] = func.__code__
    return func


def add_transparent_modules(names: Iterable[str]) -> None:
    """Do for all functions of some modules what `@transparent` does for one."""
    _helper_modules.update(names)
    if _helper_modules:
        _helpers[0] = None  # no code has this id: `schedule()` looks for helpers only if there is an entry


def _past_helpers(frame: FrameType) -> FrameType:
    """Return the first frame, from this one on, whose function is not transparent."""
    caller = frame
    while id(caller.f_code) in _helpers or caller.f_globals.get("__name__") in _helper_modules:
        if caller.f_back is None:
            return frame
        caller = caller.f_back
    return caller


class ConfiguredTarget(ScheduleTarget):
    """What `.task(...)` returns."""

    __slots__ = ("_inherited", "_phase", "_runner", "_take", "_target", "config")

    def __init__(self, target: ScheduleTarget, config: TaskConfig) -> None:
        self._target = target
        self._runner = target._runner
        self._phase = phase_of(target)
        self._take = target._take
        self._inherited = target._inherited
        self.config = config

    def _refuse(self, config: TaskConfig) -> None:
        self._target._refuse(config)


class KeyedTarget(ConfiguredTarget):
    """What `.task(key=...)` returns."""

    __slots__ = ()

    if not TYPE_CHECKING:  # it has the same types

        def schedule(self, func: Any, /, *args: Any, **kwargs: Any) -> Task[Any]:
            """Do what `ScheduleTarget.schedule()` does; or return the task that has the key."""
            caller = _past_helpers(sys._getframe(1))
            factory = func.func if isinstance(func, partial) else func
            if isinstance(factory, TaskFactory):
                return factory._schedule_into(self, ScheduledCall(func, args, kwargs, caller))
            task = make_task(self, func, args, kwargs, copy_context(), caller.f_code, caller.f_lasti)
            return self._runner.accept_keyed(task, self._take)


def make_task(
    target: ScheduleTarget,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: Context,
    code: CodeType,
    instruction: int,
) -> Task[Any]:
    """Make a task that the caller has the runner accept; `schedule()` does the same with fewer calls."""
    runner = target._runner
    try:
        is_async = check_provided_call(func, args, kwargs, runner.provisions)
    except InvalidTaskError as error:
        raise _with_options_named(error, func, kwargs) from None
    kind: type[Task[Any]] = Task if isinstance(is_async, bool) else ProvidedTask
    return kind(
        runner,
        func,
        args,
        kwargs,
        target.config,
        phase_of(target),
        is_async,
        context,
        code,
        instruction,
        runner.clock.now(),
    )


def phase_of(target: ScheduleTarget) -> PhaseInfo | None:
    """Return the phase that tasks are scheduled into, if any."""
    return target if target._is_phase else target._phase  # type: ignore[return-value]  # a TaskPhase


@dataclass(frozen=True, slots=True)
class ScheduledCall:
    """What `schedule()` was called with."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    caller: FrameType


class TaskFactory(Generic[P, T]):
    """A callable that makes a kind of task of its own. `schedule()` asks it also for a `functools.partial` of it."""

    __slots__ = ()

    def _schedule_into(self, target: ScheduleTarget, call: ScheduledCall, /) -> Task[T]:
        """Make the task and have the runner accept it."""
        raise NotImplementedError


def refuse_when(config: TaskConfig) -> None:
    """Raise if *config* has `when`: a task that starts now cannot wait for an outcome."""
    if config.when is not None:
        raise InvalidConfigError(
            f"when={config.when!r}: a task that starts now cannot wait for an outcome. "
            f"Schedule it into a phase: tasks.after_response.task(when={config.when!r}).schedule(...)"
        )


def _with_options_named(error: InvalidTaskError, func: Any, kwargs: dict[str, Any]) -> InvalidTaskError:
    """Return the error, with the line to write if an option of the task was passed as an argument of the function."""
    options = [field.name for field in fields(TaskConfig) if field.name in kwargs]
    options = [name for name in options if callable(func) and not takes(func, name)]
    if not options:
        return error
    written = ", ".join(f"{name}=..." for name in options)
    return InvalidTaskError(
        f"{error}. To set options of the task: .task({written}).schedule({function_name(func)}, ...)"
    )

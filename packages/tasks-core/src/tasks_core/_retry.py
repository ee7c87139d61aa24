"""How a failed task runs again: the policy, the error handlers that follow it, and ways to combine handlers."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ._decision import Decision
from ._support.call import check_call
from ._support.rules import check_fields, is_count, is_finite_seconds, must_be, show
from .exceptions import InvalidConfigError, InvalidTaskError

if TYPE_CHECKING:
    from ._config import TaskErrorHandler
    from ._task import Task

ExceptionTypes: TypeAlias = type[Exception] | tuple[type[Exception], ...]

_SECONDS = must_be(is_finite_seconds, "a finite number of seconds, 0 or more")
_LONGEST = 60.0
_UNBOUNDED = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Retry:
    """
    What an error handler returns to have the task run again, *delay* seconds from now.

    Raises:
        InvalidConfigError: *delay* is not a finite number of seconds, 0 or more.
    """

    delay: float = field(default=0.0, metadata=_SECONDS)

    def __post_init__(self) -> None:
        check_fields(self, "Retry(")


def _is_class_or_name(value: object) -> bool:
    if isinstance(value, str):
        return ":" in value
    return isinstance(value, type) and issubclass(value, Exception)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """
    When a task that failed runs again. Plain data, which is stored with the call of a durable task.

    Args:
        attempts: How often the task may run, the first time included.

        backoff: Seconds before the second attempt; each further pause is twice as long.

        max_delay: No pause is longer than this many seconds, jitter included.

        jitter: How much of a pause is random, from 0 (nothing) to 1 (all of it), so that tasks that failed together
            do not come back together.

        on: The exceptions after which the task runs again, as classes or as names (`"module:Class"`). Subclasses count.
            A group counts if every exception in it does, because a task group raises its failures as a group.

    Raises:
        InvalidConfigError: an argument has a value that it cannot have, or *backoff* is longer than *max_delay*.
    """

    attempts: int = field(default=3, metadata=must_be(is_count, "a whole number, 1 or more"))
    backoff: float = field(default=1.0, metadata=_SECONDS)
    max_delay: float = field(default=_LONGEST, metadata=_SECONDS)
    jitter: float = field(
        default=0.0, metadata=must_be(lambda v: is_finite_seconds(v) and v <= 1, "a number from 0 to 1")
    )
    on: tuple[type[Exception] | str, ...] | type[Exception] = field(
        default=(Exception,),
        metadata=must_be(
            lambda v: v != () and all(map(_is_class_or_name, v if isinstance(v, tuple) else (v,))),
            "exception classes, or names such as 'builtins:OSError', as in on=(OSError, TimeoutError)",
        ),
    )

    def __post_init__(self) -> None:
        self._check("RetryPolicy(")
        classes = self.on if isinstance(self.on, tuple) else (self.on,)
        object.__setattr__(self, "on", tuple(map(_class_name, classes)))

    def _check(self, where: str) -> None:
        check_fields(self, where)
        if self.backoff > self.max_delay:
            raise InvalidConfigError(
                f"{where}backoff={self.backoff!r}, max_delay={self.max_delay!r}): the first pause is longer than "
                f"max_delay allows. Write max_delay={self.backoff!r} or more"
            )

    def pause(self, exception: BaseException, failures: int) -> float | None:
        """Return the seconds to wait after the *failures*-th failure, or `None` when it was the last attempt."""
        if failures >= self.attempts or not _fits(exception, self._names_fit):
            return None
        return self._pause_after(failures)

    def _names_fit(self, exception: BaseException) -> bool:
        return any(_class_name(cls) in self._names for cls in type(exception).__mro__)

    def _pause_after(self, failures: int) -> float:
        # 2.0 ** 1024 overflows; max_delay has cut the pause off long before
        pause = min(self.backoff * 2.0 ** min(failures - 1, 1000), self.max_delay)
        return self._with_jitter(pause)

    def _with_jitter(self, pause: float) -> float:
        return pause - pause * self.jitter * random.random()

    @property
    def _names(self) -> tuple[object, ...]:
        return self.on if isinstance(self.on, tuple) else (self.on,)

    def as_json(self) -> dict[str, Any]:
        """Return the policy in a form that JSON can carry."""
        return {option.name: getattr(self, option.name) for option in fields(self)} | {"on": list(self._names)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RetryPolicy:
        """Restore what `as_json()` returned."""
        return cls(**{**data, "on": tuple(data["on"])})


def _fits(exception: BaseException, fits: Callable[[BaseException], bool]) -> bool:
    """Return whether an exception fits, or is a group in which every exception does."""
    if fits(exception):
        return True
    return isinstance(exception, BaseExceptionGroup) and all(_fits(inner, fits) for inner in exception.exceptions)


def _class_name(cls: object) -> str:
    return cls if isinstance(cls, str) else f"{cls.__module__}:{cls.__qualname__}"  # type: ignore[attr-defined]  # a class


def retry(
    *,
    attempts: int = 3,
    on: ExceptionTypes = Exception,
    backoff: float | Callable[[int], float] = 1.0,
    max_delay: float | None = None,
    jitter: float = 0.0,
) -> TaskErrorHandler:
    """
    Make an error handler that runs a failing task again; `chain(retry(...), report)` calls `report` after the last.

    Args:
        attempts: As in `RetryPolicy`.

        on: The exceptions after which the task runs again, or a group of only such. All others end the task.

        backoff: As in `RetryPolicy`; or a function that takes the number of the attempt that failed (from 1) and
            returns the seconds to wait.

        max_delay: As in `RetryPolicy`. Default: 60; no bound for what a function returns.

        jitter: As in `RetryPolicy`.

    Raises:
        InvalidConfigError: an argument has a value that it cannot have, or *backoff* is longer than *max_delay*.
    """
    types = on if isinstance(on, tuple) else (on,)
    if not types or not all(isinstance(t, type) and issubclass(t, Exception) for t in types):
        raise InvalidConfigError(
            f"retry(on=({', '.join(t.__qualname__ if isinstance(t, type) else show(t) for t in types)})): on must be a "
            "subclass of Exception or a tuple of them, as in on=(OSError, TimeoutError)"
        )
    if callable(backoff):
        longest = _UNBOUNDED if max_delay is None else max_delay
        return _RetryHandler(_HandlerPolicy(attempts, 0.0, longest, jitter), types, backoff)
    longest = _LONGEST if max_delay is None else max_delay
    return _RetryHandler(_HandlerPolicy(attempts, backoff, longest, jitter), types, None)


class _HandlerPolicy(RetryPolicy):
    """The policy of `retry()`, which names itself in its errors."""

    __slots__ = ()

    def _check(self, where: str) -> None:
        super()._check("retry(")


@dataclass(frozen=True, slots=True)
class _RetryHandler:
    policy: RetryPolicy
    on: tuple[type[Exception], ...]
    backoff: Callable[[int], float] | None

    async def __call__(self, task: Task[Any], exception: Exception) -> object:
        if not _fits(exception, self._is_wanted) or task.attempts >= self.policy.attempts:
            return None
        if self.backoff is None:
            return Retry(self.policy._pause_after(task.attempts))
        return Retry(self.policy._with_jitter(min(self.backoff(task.attempts), self.policy.max_delay)))

    def _is_wanted(self, exception: BaseException) -> bool:
        return isinstance(exception, self.on)


def chain(*handlers: TaskErrorHandler) -> TaskErrorHandler:
    """
    Ask several handlers in a row; the first `Retry`, `Snooze`, `Cancel` or `True` counts and ends the row.

    `chain(count_failure, retry(attempts=3), report)` counts every failed attempt, and reports only the last.
    """
    _check_handlers("chain", handlers)

    async def ask_in_turn(task: Task[Any], exception: Exception) -> object:
        for handler in handlers:
            answer = await ask(handler, task, exception)
            if answer is True or isinstance(answer, Retry | Decision):
                return answer
        return None

    return ask_in_turn


def by_exception(
    handlers: Mapping[type[Exception], TaskErrorHandler], *, otherwise: TaskErrorHandler | None = None
) -> TaskErrorHandler:
    """
    Choose the handler by the type of the exception: the most specific class in *handlers* that fits, else *otherwise*.

    "Most specific" is the first one in the exception's method resolution order, as with `functools.singledispatch`.
    """
    by_type = dict(handlers)
    _check_handlers("by_exception", tuple(by_type.values()))

    async def ask_by_type(task: Task[Any], exception: Exception) -> object:
        fitting = (by_type[cls] for cls in type(exception).__mro__ if cls in by_type)
        handler = next(fitting, otherwise)
        return None if handler is None else await ask(handler, task, exception)

    return ask_by_type


async def ask(handler: Callable[..., Any], task: Task[Any], *args: object) -> object:
    """Call `handler(task, *args)`, a plain one in a worker thread, and return its answer."""
    try:
        is_async = check_call(handler, (task, *args), {})
    except InvalidTaskError:
        is_async = False  # called all the same, to fail with Python's own words
    answer = (
        await handler(task, *args)
        if is_async
        else await task._owner.call_in_thread(task, partial(handler, task, *args))
    )
    return await answer if inspect.isawaitable(answer) else answer


def _check_handlers(where: str, handlers: tuple[object, ...]) -> None:
    if not handlers or not all(callable(handler) for handler in handlers):
        given = ", ".join(getattr(handler, "__qualname__", show(handler)) for handler in handlers)
        raise InvalidConfigError(
            f"{where}({given}): it takes at least one handler, each a function of (task, exception), as in "
            "chain(report, retry(attempts=3)) or by_exception({OSError: retry(attempts=3)})"
        )

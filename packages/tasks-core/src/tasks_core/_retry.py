"""Error handlers that run a task again, and ways to combine handlers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ._config import is_seconds
from ._support.call import check_call
from .exceptions import InvalidConfigError, InvalidTaskError

if TYPE_CHECKING:
    from ._config import TaskErrorHandler
    from ._task import Task

ExceptionTypes: TypeAlias = type[Exception] | tuple[type[Exception], ...]


@dataclass(frozen=True, slots=True)
class Retry:
    """
    What an error handler returns to have the task run again, *delay* seconds from now.

    Raises:
        InvalidConfigError: *delay* is not a finite number of seconds, 0 or more.
    """

    delay: float = 0.0

    def __post_init__(self) -> None:
        if not is_seconds(self.delay, zero=True) or self.delay == math.inf:
            raise InvalidConfigError(
                f"Retry(delay={self.delay!r}): delay must be a finite number of seconds, 0 or more"
            )


def retry(
    *,
    attempts: int = 3,
    on: ExceptionTypes = Exception,
    backoff: float | Callable[[int], float] = 1.0,
    max_delay: float = 60.0,
    jitter: float = 0.0,
    then: TaskErrorHandler | None = None,
) -> TaskErrorHandler:
    """
    Make an error handler that runs a failing task again.

    Args:
        attempts: How often the task may run, the first time included.

        on: The exceptions that are worth another attempt. Others end the task.

        backoff: Seconds before the second attempt; each further pause is twice as long. Or a function that is given the
            number of the attempt that failed (from 1) and returns the seconds to wait.

        max_delay: No pause is longer than this many seconds, jitter included.

        jitter: How much of a pause is random, from 0 (nothing) to 1 (all of it): tasks that failed together then do not
            come back together.

        then: The handler to ask when this one gives up, or when the exception is not one of *on*. What it returns
            counts, so handlers can be put in a row: `retry(on=ConnectionError, then=retry(on=TimeoutError))`.

    Raises:
        InvalidConfigError: an argument has a value that it cannot have.
    """
    return _RetryHandler(attempts, on, backoff, max_delay, jitter, then)


@dataclass(frozen=True, slots=True)
class _RetryHandler:
    attempts: int
    on: ExceptionTypes
    backoff: float | Callable[[int], float]
    max_delay: float
    jitter: float
    then: TaskErrorHandler | None

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise InvalidConfigError(f"retry(attempts={self.attempts!r}): attempts must be a whole number, 1 or more")
        types = self.on if isinstance(self.on, tuple) else (self.on,)
        if not types or not all(isinstance(t, type) and issubclass(t, Exception) for t in types):
            raise InvalidConfigError(
                "retry(on=...): on must be an exception class or a tuple of them, as in on=(OSError, TimeoutError)"
            )
        if not callable(self.backoff) and not is_seconds(self.backoff, zero=True):
            raise InvalidConfigError(
                f"retry(backoff={self.backoff!r}): backoff must be seconds, 0 or more, or a function of the attempt"
            )
        if not is_seconds(self.max_delay, zero=True) or self.max_delay == math.inf:
            raise InvalidConfigError(
                f"retry(max_delay={self.max_delay!r}): max_delay must be a finite number of seconds, 0 or more"
            )
        if not is_seconds(self.jitter, zero=True) or self.jitter > 1:
            raise InvalidConfigError(f"retry(jitter={self.jitter!r}): jitter must be a number from 0 to 1")
        if self.then is not None and not callable(self.then):
            raise InvalidConfigError("retry(then=...): then must be a function of (task, exception)")

    async def __call__(self, task: Task[Any], exception: Exception) -> object:
        if isinstance(exception, self.on) and task.attempts < self.attempts:
            return Retry(self.pause(task.attempts))
        return None if self.then is None else await ask(self.then, task, exception)

    def pause(self, attempt: int) -> float:
        if callable(self.backoff):
            wanted = self.backoff(attempt)
        else:
            # 2.0 ** 1024 overflows; max_delay has cut the pause off long before
            wanted = self.backoff * 2.0 ** min(attempt - 1, 1000)
        pause = min(wanted, self.max_delay)
        return pause - pause * self.jitter * random.random()


def chain(*handlers: TaskErrorHandler) -> TaskErrorHandler:
    """
    Ask several handlers in a row; the first answer that is a `Retry` or `True` counts and ends the row.

    `chain(count_failure, retry(attempts=3), report)` counts every failed attempt, and reports only the last.
    """
    _check_handlers("chain", handlers)

    async def ask_in_turn(task: Task[Any], exception: Exception) -> object:
        for handler in handlers:
            answer = await ask(handler, task, exception)
            if answer is True or isinstance(answer, Retry):
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


async def ask(handler: TaskErrorHandler, task: Task[Any], exception: Exception) -> object:
    """Call a handler, a plain one in a worker thread, and return its answer."""
    try:
        is_async = check_call(handler, (task, exception), {})
    except InvalidTaskError:
        is_async = False  # called all the same, to fail with Python's own words
    answer = (
        await handler(task, exception)
        if is_async
        else await task._owner.call_in_thread(task, partial(handler, task, exception))
    )
    return await answer if isinstance(answer, Coroutine) else answer


def _check_handlers(where: str, handlers: tuple[object, ...]) -> None:
    if not handlers or not all(callable(handler) for handler in handlers):
        raise InvalidConfigError(f"{where}() takes at least one handler, each a function of (task, exception)")

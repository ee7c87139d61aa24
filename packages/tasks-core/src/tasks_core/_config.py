"""How a task is to be run: what `.task(...)` takes, and how defaults are inherited."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import anyio

from .exceptions import InvalidConfigError

if TYPE_CHECKING:
    from ._task import Task

TaskErrorHandler: TypeAlias = Callable[["Task[Any]", Exception], Any]
"""
`handler(task, exception)`, called after an attempt of a task has failed; a plain function or a coroutine function.

What it returns (or what the returned coroutine results in) decides what happens next:

- a `Retry`: the task runs again after `Retry.delay` seconds;
- `True`: the failure is dealt with, and is not logged (as `__exit__` suppresses an exception by returning true);
- anything else: the failure is final, and is logged.

A plain function runs in a worker thread, so it may block. A handler that raises changes nothing for anybody else: both
exceptions are logged and the task is failed.
"""

Outcome: TypeAlias = Literal["success", "error"]
"""How the thing that a phase belongs to ended: a request, a transaction."""

When: TypeAlias = Literal["success", "error", "always"]
"""For which outcome of its phase a task is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """
    How to run a task. Every field may be `None`, which means "inherit".

    Inheritance goes from the scheduler's `config` to what `.task(...)` says; see `merge()`.

    Args:
        name: What the task is called in logs, reports and traces. Default: the name of the function.

        shield: Whether shutdown lets the task finish after the grace period. It does not protect against
            `task.cancel()`. Default: no.

        on_error: Called with `(task, exception)` when an attempt fails; see `TaskErrorHandler`.

        when: For which outcome of the phase the task is meant: `"success"` (default), `"error"` or `"always"`. A task
            whose time does not come is discarded, with a line in the log.

        timeout: Seconds an attempt may take. Then it is cancelled and fails with `TimeoutError`. A function in a worker
            thread cannot be cancelled: it fails as well, and its thread is left to itself. `math.inf`: no limit.

        delay: Seconds to wait before the first attempt, counted from the opening of the phase.

        limiter: A limiter that this task shares with others; an attempt starts when it has a token, and gives it back
            when it ends (a function in a thread that was cancelled or timed out: when its task goes on without it).

        key: Of a durable task: the engine takes a key once, and a second call with it is acknowledged without making a
            second task.

        transaction: Of a durable task: the transaction of a database that the task is to be part of. It is there when
            that is committed, or not at all. What it may be is for the engine to say.

    Raises:
        InvalidConfigError: a value is not one that the field allows.
    """

    name: str | None = None
    shield: bool | None = None
    on_error: TaskErrorHandler | None = None
    when: When | None = None
    timeout: float | None = None
    delay: float | None = None
    limiter: anyio.CapacityLimiter | None = None
    key: str | None = None
    transaction: Any = None

    def __post_init__(self) -> None:
        for option, allowed in _ALLOWED.items():
            value = getattr(self, option)
            if value is not None and not allowed.test(value):
                raise InvalidConfigError(f"{option}={_show(value)}: {option} must be {allowed.text}")

    @property
    def shielded(self) -> bool:
        """Whether `shield` is set, with "not said" meaning no."""
        return self.shield is True

    def merge(self, other: TaskConfig | None) -> TaskConfig:
        """Return this configuration with every field replaced that *other* sets (is not `None`)."""
        if other is None or other == _EMPTY:
            return self
        if self == _EMPTY:
            return other
        names = [field.name for field in fields(TaskConfig)]
        mine = {name: getattr(self, name) for name in names}
        theirs = {name: getattr(other, name) for name in names}
        return TaskConfig(**{name: mine[name] if theirs[name] is None else theirs[name] for name in names})


def is_seconds(value: object, *, zero: bool) -> bool:
    """Whether *value* is a usable length of time: a number, not NaN, positive (or zero, where *zero* says so)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return False
    return value > 0 or (zero and value == 0)


@dataclass(frozen=True, slots=True)
class _Allowed:
    test: Callable[[Any], bool]
    text: str


_ALLOWED = {
    "name": _Allowed(lambda v: isinstance(v, str) and v != "", "a text that is not empty, as in name='charge'"),
    "shield": _Allowed(lambda v: isinstance(v, bool), "True or False, as in shield=True"),
    "on_error": _Allowed(callable, "a function of (task, exception), as in on_error=retry(attempts=3)"),
    "when": _Allowed(
        lambda v: v in ("success", "error", "always"), "'success', 'error' or 'always', as in when='error'"
    ),
    "timeout": _Allowed(lambda v: is_seconds(v, zero=False), "a number of seconds above 0, as in timeout=30"),
    "delay": _Allowed(
        lambda v: is_seconds(v, zero=True) and v != math.inf, "a finite number of seconds, 0 or more, as in delay=5"
    ),
    "limiter": _Allowed(
        lambda v: isinstance(v, anyio.CapacityLimiter),
        "an anyio.CapacityLimiter, as in limiter=CapacityLimiter(4)",
    ),
    "key": _Allowed(lambda v: isinstance(v, str) and v != "", "a text that is not empty, as in key='welcome-17'"),
}


def _show(value: object) -> str:
    """Plain values are shown, everything else by its type: an object's repr may say more than a log should."""
    return repr(value) if isinstance(value, (str, int, float, bool)) else f"<{type(value).__qualname__}>"


_EMPTY = TaskConfig()

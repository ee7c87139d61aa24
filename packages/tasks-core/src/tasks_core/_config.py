"""How a task runs: the options of `.task(...)`, and how defaults are inherited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import anyio

from ._support.rules import Rule, is_finite_seconds, is_handler, is_seconds, is_text, must_be

if TYPE_CHECKING:
    from ._task import Task

TaskErrorHandler: TypeAlias = Callable[["Task[Any]", Exception], Any]
"""
`handler(task, exception)`, called after an attempt of a task has failed; a plain function or a coroutine function.

What it returns (or what the returned coroutine returns) decides what happens next:

- a `Retry`: the task runs again after `Retry.delay` seconds;
- a `Snooze`: the same, and the failure does not count as an attempt;
- a `Cancel`: the task ends as cancelled, with a reason;
- `True`: the failure is handled, and is not logged (as `__exit__` suppresses an exception by returning true);
- anything else: the failure is final, and is logged.

A plain function runs in a worker thread, so it may block. A handler that raises affects no other task: both exceptions
are logged and the task has failed.
"""

Outcome: TypeAlias = Literal["success", "error"]
"""How the origin of a phase ended: a request, a transaction."""

When: TypeAlias = Literal["success", "error", "always"]
"""For which outcome of its phase a task runs."""


OnConflict: TypeAlias = Literal["join", "replace", "queue"]
"""What a task does when another with the same key has not ended."""

TaskEndHandler: TypeAlias = Callable[["Task[Any]"], Any]
"""
`handler(task)`, called when a task has reached its terminal state, whichever that is; a plain function or a coroutine
function. What it returns is ignored.
"""


class _Derived:
    """What follows from the fields of `TaskConfig`."""

    __slots__ = ("is_plain",)

    is_plain: bool
    """Whether no field asks for anything before the first attempt or after the end, which each task has to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig(_Derived):
    """
    How to run a task. Every field may be `None`, which means "inherit".

    The scheduler's `config` is inherited, and the options of `.task(...)` replace it; see `merge()`.

    Args:
        name: The name of the task in logs, reports and traces. Default: the name of the function.

        shield: Whether shutdown lets the task finish after the grace period. It does not protect against
            `task.cancel()`. Default: no.

        on_error: Called with `(task, exception)` when an attempt fails; see `TaskErrorHandler`.

        on_end: Called with the task when it has ended in any way: `task.state` is one of the four terminal states. An
            async function runs on the event loop, a plain one in a worker thread. It may take 10 seconds; then it is
            cancelled. An exception that it raises is logged and changes nothing. Shutdown waits for it, within its
            bounds and for 5 seconds at most, so that it can use the resources of the task; `await task` does not.

        when: For which outcome of the phase the task runs: `"success"` (default), `"error"` or `"always"`. If the phase
            ends otherwise, the task is discarded, with a line in the log.

        timeout: Seconds that an attempt may take. Then it is cancelled and fails with `TimeoutError`. A function in a
            worker thread cannot be cancelled: its task fails, and the thread is abandoned. `math.inf`: no limit.

        delay: Seconds to wait before the first attempt, counted from the opening of the phase.

        key: Names the work, among what has not ended in the scheduler (of a durable function: in the queue, for that
            function): of the tasks with one key, at most one runs at a time. A task of a phase takes its key when the
            phase opens. It is not inherited from a scheduler or a phase.

        on_conflict: What happens if a task with the same key has not ended. `"join"` (default): the call returns that
            task and makes none; in a phase, the new task is discarded when the phase opens. `"replace"`: tasks of the
            key that have not started are discarded, and this one takes their place, with its whole delay; if one
            runs, this one runs after it. `"queue"`: this one runs when those before it have ended, in order. Each
            of these is logged at INFO.

        limiter: A limiter that this task shares with other tasks. An attempt starts when it has acquired a token, and
            releases it when it ends, or when its task abandons a thread.

    Raises:
        InvalidConfigError: a value is not one that the field allows.
    """

    name: str | None = field(default=None, metadata=must_be(is_text, "a text that is not empty, as in name='charge'"))
    shield: bool | None = field(
        default=None, metadata=must_be(lambda v: isinstance(v, bool), "True or False, as in shield=True")
    )
    on_error: TaskErrorHandler | None = field(
        default=None, metadata=must_be(is_handler, "a function of (task, exception), as in on_error=retry(attempts=3)")
    )
    on_end: TaskEndHandler | None = field(
        default=None, metadata=must_be(is_handler, "a function of (task), as in on_end=close_job")
    )
    when: When | None = field(
        default=None,
        metadata=must_be(
            lambda v: v in ("success", "error", "always"), "'success', 'error' or 'always', as in when='error'"
        ),
    )
    timeout: float | None = field(
        default=None,
        metadata=must_be(lambda v: is_seconds(v, zero=False), "a number of seconds above 0, as in timeout=30"),
    )
    delay: float | None = field(
        default=None, metadata=must_be(is_finite_seconds, "a finite number of seconds, 0 or more, as in delay=5")
    )
    key: str | None = field(
        default=None, metadata=must_be(is_text, "a text that is not empty, as in key=f'reindex:{customer}'")
    )
    on_conflict: OnConflict | None = field(
        default=None,
        metadata=must_be(
            lambda v: v in ("join", "replace", "queue"), "'join', 'replace' or 'queue', as in on_conflict='queue'"
        ),
    )
    limiter: anyio.CapacityLimiter | None = field(
        default=None,
        metadata=must_be(
            lambda v: isinstance(v, anyio.CapacityLimiter), "an anyio.CapacityLimiter, as in limiter=CapacityLimiter(4)"
        ),
    )

    def __post_init__(self) -> None:
        declaration: Any = type(self)  # which mypy takes for unhashable
        for name, rule in _rules(declaration):
            value = getattr(self, name)
            if value is not None and not rule.allows(value):
                rule.refuse(name, value)
        is_plain = not self.delay and self.limiter is None and self.on_end is None and self.key is None
        object.__setattr__(self, "is_plain", is_plain)
        if self.name is not None and type(self.name) is not str:
            # The `__str__` of a subclass may raise, and would do so in the middle of a log line.
            object.__setattr__(self, "name", str.__str__(self.name))

    @property
    def shielded(self) -> bool:
        """Whether `shield` is true; `None` counts as false."""
        return self.shield is True

    def merge(self, other: TaskConfig | None) -> TaskConfig:
        """Return this configuration with every field replaced that *other* sets (is not `None`)."""
        if other is None or other == _EMPTY:
            return self
        if self == _EMPTY:
            return other
        merged = {}
        for name, _ in _rules(TaskConfig):
            value = getattr(other, name)
            merged[name] = getattr(self, name) if value is None else value
        return TaskConfig(**merged)


@cache
def _rules(declaration: type[Any]) -> tuple[tuple[str, Rule], ...]:
    """Return the rule of each field; read once, because each `.task(...)` makes a configuration."""
    return tuple((option.name, option.metadata["rule"]) for option in fields(declaration))


_EMPTY = TaskConfig()

"""The seam to an engine: something that stores a call, acknowledges it, and has it run in another process."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias, runtime_checkable

import anyio

from tasks_core._config import is_seconds
from tasks_core._support.overrides import Subscription
from tasks_core.exceptions import InvalidConfigError

from .codec import Json

if TYPE_CHECKING:
    from types import TracebackType

Capability: TypeAlias = Literal["transaction", "delay", "dedup", "status", "progress"]
"""
What an engine may be able to do: join a transaction of the caller, run no earlier than a moment, take a key only once,
tell the state of a call, keep the progress that a task reports.
"""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """
    When a durable task that failed is delivered again. Plain data: it is stored with the call.

    Args:
        attempts: How often the task may run, the first time included.

        backoff: Seconds before the second attempt; each further pause is twice as long.

        max_delay: No pause is longer than this many seconds.

        jitter: How much of a pause is random, from 0 (nothing) to 1 (all of it).

        on: The exceptions that are worth another attempt, as classes or as names (`"module:Class"`). Subclasses count.

    Raises:
        InvalidConfigError: an argument has a value that it cannot have.
    """

    attempts: int = 3
    backoff: float = 1.0
    max_delay: float = 60.0
    jitter: float = 0.0
    on: tuple[type[Exception] | str, ...] | type[Exception] = (Exception,)

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise InvalidConfigError(f"RetryPolicy(attempts={self.attempts!r}): attempts must be a whole number, 1 up")
        for option in ("backoff", "max_delay", "jitter"):
            value = getattr(self, option)
            if not is_seconds(value, zero=True) or value == float("inf"):
                raise InvalidConfigError(f"RetryPolicy({option}={value!r}): {option} must be a number, 0 or more")
        if self.jitter > 1:
            raise InvalidConfigError(f"RetryPolicy(jitter={self.jitter!r}): jitter must be a number from 0 to 1")
        classes = self.on if isinstance(self.on, tuple) else (self.on,)
        object.__setattr__(self, "on", tuple(map(_class_name, classes)))

    def pause(self, exception: BaseException, failures: int) -> float | None:
        """Return the seconds to wait after the *failures*-th failure, or `None` when it was the last attempt."""
        if failures >= self.attempts or not any(_class_name(cls) in self._names for cls in type(exception).__mro__):
            return None
        # 2.0 ** 1024 overflows; max_delay has cut the pause off long before
        pause = min(self.backoff * 2.0 ** min(failures - 1, 1000), self.max_delay)
        return pause - pause * self.jitter * random.random()

    @property
    def _names(self) -> tuple[object, ...]:
        return self.on if isinstance(self.on, tuple) else (self.on,)

    def as_json(self) -> dict[str, Json]:
        """Return the policy in a form that JSON can carry."""
        return {
            "attempts": self.attempts,
            "backoff": self.backoff,
            "max_delay": self.max_delay,
            "jitter": self.jitter,
            "on": [str(name) for name in self._names],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RetryPolicy:
        """Restore what `as_json()` returned."""
        return cls(**{**data, "on": tuple(data["on"])})


def _class_name(cls: object) -> str:
    if isinstance(cls, str) and ":" in cls:
        return cls
    if isinstance(cls, type) and issubclass(cls, BaseException | object):
        return f"{cls.__module__}:{cls.__qualname__}"
    raise InvalidConfigError("RetryPolicy(on=...): on must be exception classes, or names such as 'builtins:OSError'")


@dataclass(frozen=True, slots=True)
class DurableCall:
    """A call of a durable function on its way to a worker. Everything in it is data."""

    name: str
    """The registered name of the function: `"app.mail:send_email"`."""
    args: Mapping[str, Json] = field(repr=False)
    """JSON values by the name of the parameter."""
    key: str
    """Identifies the call, however often it is delivered: what makes a task able to see that it ran before."""
    dedup: bool = False
    """Whether the caller chose the key, so that a second call with it must not make a second task."""
    retry: RetryPolicy | None = None
    not_before: float | None = None
    """Seconds since the epoch before which the task must not start."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Trace context, request id."""


class DurableState(StrEnum):
    """Where a durable task is in its life."""

    WAITING = "waiting"
    """Stored; no worker has it. Also between two attempts."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """It failed for good, or killed its workers too often."""
    CANCELLED = "cancelled"
    """Somebody cancelled it in the engine itself."""
    GONE = "gone"
    """The engine does not know it: finished and cleaned up, or its transaction was rolled back."""


@dataclass(frozen=True, slots=True)
class DurableStatus:
    """What `receipt.status()` returns."""

    state: DurableState
    attempts: int
    """Deliveries that have ended, in whatever way."""
    progress: Json = None
    """What the task said last to `durable_context().report_progress(...)`."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The acknowledgement of an engine: the call is stored, and survives the process that made it."""

    engine: str
    id: str
    """The engine's own number for it, to be looked up with the engine's tools."""
    key: str
    created: bool = True
    """False if a task with this key was there already: then this is the receipt of that one."""
    status_of: Callable[[str], Awaitable[DurableStatus]] | None = field(default=None, repr=False, compare=False)

    async def status(self) -> DurableStatus:
        """
        Ask the engine how far the task is.

        Raises:
            EngineUnavailableError: the engine does not answer.
        """
        if self.status_of is None:
            return DurableStatus(DurableState.GONE, 0)
        return await self.status_of(self.id)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A call that an engine hands to a worker."""

    call: DurableCall
    attempt: int
    """1 for the first time that it is run; deliveries that were handed back do not count."""
    failures: int
    """How many attempts have ended in an exception before this one."""
    report_progress: Callable[[Json], Awaitable[None]]


class Redeliver(Exception):  # noqa: N818  a request, not an error
    """Raised to an engine by what it calls with a `Delivery`: keep the call, and deliver it again."""

    def __init__(self, delay: float, *, failed: bool) -> None:
        self.delay = delay
        self.failed = failed
        super().__init__(f"deliver again in {delay:g} s")


RunDelivery: TypeAlias = Callable[[Delivery], Awaitable[None]]
"""What an engine calls: returns when the task has succeeded, raises `Redeliver`, or what the task raised at last."""


@runtime_checkable
class Engine(Protocol):
    """
    What tasks-core needs of an engine. A second engine is one module that has these methods.

    `async with` may be entered more than once, also at the same time; it is entered and left in the same task.
    """

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

    def join(self, transaction: Any, call: DurableCall, wanted: Callable[[], bool], /) -> Any:
        """
        Take what a call said in `transaction=`, and return what `submit()` is to be given for it.

        Called at the call of `schedule()`. An engine that hears of the end of the transaction stores the call right
        before that, if `submit()` has not come yet and `wanted()` says that it still may. It says so by an attribute
        `stored` of what it returns.

        Raises:
            EngineCapabilityError: this is nothing that the engine can join.
        """
        ...

    async def submit(self, call: DurableCall, /, *, transaction: Any = None) -> Receipt:
        """
        Store the call; what is returned survives a crash of this process and, as far as it can, of the engine.

        Raises:
            EngineUnavailableError: the engine did not acknowledge. Whether it has the call all the same is not known.
        """
        ...

    async def work(self, run: RunDelivery, /, *, concurrency: int, stopping: anyio.Event) -> None:
        """
        Take calls and run up to *concurrency* of them at once; return when *stopping* is set and all have ended.

        A call whose worker dies is delivered again. An engine that is away for a while is no reason to return.
        """
        ...


_overrides: tuple[Engine, ...] = ()


def override_engine(engine: Engine) -> Subscription:
    """
    Give all durable calls of this process to *engine*, whatever engine their scheduler has, if any.

    For tests. In force for each call made until the returned subscription is closed; the latest override wins.
    Schedulers that start meanwhile do not enter their own engine.
    """
    global _overrides
    _overrides = (*_overrides, engine)
    return Subscription(lambda: _remove(engine))


def _remove(engine: Engine) -> None:
    global _overrides
    _overrides = tuple(other for other in _overrides if other is not engine)


def engine_in_force(own: Engine | None) -> Engine | None:
    """Return the engine for a call on a scheduler whose own engine is *own*."""
    return _overrides[-1] if _overrides else own


def engine_overridden() -> bool:
    """Whether `override_engine()` is in force."""
    return bool(_overrides)

"""The seam to an engine, which stores a call, acknowledges it, and has it run in another process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias, runtime_checkable

import anyio

from .calls import DurableCall, Receipt
from .codec import Json

if TYPE_CHECKING:
    from types import TracebackType

Capability: TypeAlias = Literal["transaction", "delay", "dedup"]
"""
What an engine may be able to do: join a transaction of the caller, delay a task, accept a key only once.
"""

EngineFallback: TypeAlias = Literal["error", "memory"]
"""What happens to a durable task that its engine does not acknowledge: it fails, or it runs in this process."""


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

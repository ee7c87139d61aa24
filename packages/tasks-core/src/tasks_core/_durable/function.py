"""Functions that can be called from one process and run in another."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from tasks_core._config import TaskConfig, TaskErrorHandler
from tasks_core._support.call import describe
from tasks_core._task import current_task
from tasks_core.exceptions import InvalidConfigError, NotAddressableError, UnknownTaskError

from .codec import ArgumentCodec, Json
from .engine import RetryPolicy

if TYPE_CHECKING:
    from tasks_core._scheduler import TaskScheduler

P = ParamSpec("P")
T = TypeVar("T")


class DurableFunction(Generic[P, T]):
    """
    What `@durable` makes of a function. Calling it calls the function; scheduling it hands the call to an engine.

    Only functions that were decorated can be run by a worker, by the names given here.
    """

    name: str
    """What the call is named in the engine: `"app.mail:send_email"`, unless `durable(name=...)` says otherwise."""
    aliases: tuple[str, ...]
    """Names under which calls may still be waiting that were made before the function was renamed."""
    retry: RetryPolicy | None
    config: TaskConfig
    """How a worker runs it: `shield`, `timeout`, `on_error`."""
    __name__: str
    __qualname__: str

    def __init__(
        self,
        func: Callable[P, T],
        *,
        name: str | None = None,
        aliases: Iterable[str] = (),
        retry: RetryPolicy | None = None,
        config: TaskConfig | None = None,
    ) -> None:
        self.name = _check_name(name) if name is not None else _name_of(func)
        self.aliases = tuple(map(_check_name, aliases))
        self.retry = retry
        self.config = config or TaskConfig()
        self._codec: ArgumentCodec | None = None
        self.__wrapped__ = func
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(self, attribute, getattr(func, attribute, None))

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.__wrapped__(*args, **kwargs)

    @property
    def func(self) -> Callable[P, T]:
        """The function itself."""
        return self.__wrapped__

    @property
    def is_async(self) -> bool:
        """Whether it is a coroutine function; a plain one runs in a thread of the worker."""
        return inspect.iscoroutinefunction(self.__wrapped__)

    @property
    def codec(self) -> ArgumentCodec:
        """How its arguments travel."""
        if self._codec is None:
            self._codec = ArgumentCodec(describe(self.func), self.func)
        return self._codec

    def __repr__(self) -> str:
        return f"<durable {self.name}>"


class Registry:
    """The durable functions of a process, by name."""

    __slots__ = ("_functions",)

    def __init__(self) -> None:
        self._functions: dict[str, DurableFunction[..., Any]] = {}

    def __len__(self) -> int:
        return len(set(self._functions.values()))

    def add(self, function: DurableFunction[..., Any]) -> None:
        """Register a function; one that is defined again, as when a module is reloaded, takes the place of the old."""
        for name in (function.name, *function.aliases):
            other = self._functions.get(name)
            if other is not None and _place(other) != _place(function):
                raise InvalidConfigError(
                    f"durable: the name {name!r} belongs to {_place(other)} already; {_place(function)} wants it too"
                )
        for name in (function.name, *function.aliases):
            self._functions[name] = function

    def get(self, name: str) -> DurableFunction[..., Any]:
        """
        Return the function that is registered under a name.

        Raises:
            UnknownTaskError: there is none. Nothing is ever imported because of a name.
        """
        try:
            return self._functions[name]
        except KeyError:
            raise UnknownTaskError(f"No durable function is registered as {name!r} in this process") from None


registry = Registry()
"""All durable functions of the process."""


@overload
def durable(func: Callable[P, T], /) -> DurableFunction[P, T]: ...


@overload
def durable(
    *,
    name: str | None = None,
    aliases: Iterable[str] = (),
    retry: RetryPolicy | None = None,
    shield: bool | None = None,
    timeout: float | None = None,
    on_error: TaskErrorHandler | None = None,
) -> Callable[[Callable[P, T]], DurableFunction[P, T]]: ...


def durable(
    func: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    aliases: Iterable[str] = (),
    retry: RetryPolicy | None = None,
    shield: bool | None = None,
    timeout: float | None = None,
    on_error: TaskErrorHandler | None = None,
) -> Any:
    """
    Make a function durable: scheduling it hands the call to an engine, and a worker process runs it.

    ```python
    @durable(retry=RetryPolicy(attempts=5))
    async def charge(order_id: int) -> None: ...


    tasks.after_response.schedule(charge, order.id)
    ```

    A durable task runs **at least once**: it survives the end of any process, and may for that reason run again after
    it has done part of its work, or all. `durable_context().key` is the same each time.

    The function lives at the top of a module that a worker imports, under a name that both processes know. Its
    arguments travel as JSON; what they are annotated with is what arrives.

    Args:
        name: What the call is named in the engine. Default: `module:function`. Calls that wait outlive a renaming, so a
            name of its own, or an alias, is what makes renaming safe.

        aliases: Former names.

        retry: When to run it again after an exception. Default: never.

        shield: Whether a worker that is stopped lets the task finish after its grace period. Otherwise it is cancelled
            and goes back to the queue.

        timeout: Seconds an attempt may take, as in `TaskConfig`.

        on_error: Called on the worker with `(task, exception)` when the task has failed and *retry* gives up. May
            return a `Retry` to have it delivered once more; see `TaskErrorHandler`.

    Raises:
        NotAddressableError: a worker could not find the function: it is a lambda, a closure, a method, a partial, or
            part of the script that is being run.
        InvalidConfigError: an option has a value that it cannot have, or the name belongs to another function.
    """
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise InvalidConfigError("durable(retry=...): retry must be a RetryPolicy, as in retry=RetryPolicy(attempts=5)")
    config = TaskConfig(shield=shield, timeout=timeout, on_error=on_error)

    def decorate(func: Callable[..., Any]) -> DurableFunction[..., Any]:
        function = DurableFunction(func, name=name, aliases=aliases, retry=retry, config=config)
        registry.add(function)
        return function

    return decorate if func is None else decorate(func)


def _name_of(func: Callable[..., Any]) -> str:
    """Derive the name by which another process finds the function, or say why it cannot."""
    if not isinstance(func, FunctionType):
        kind = type(func).__qualname__
        raise NotAddressableError(
            f"durable: {describe(func)} is a {kind}, which another process cannot find. "
            "Decorate a function at the top of a module"
        )
    if func.__name__ == "<lambda>":
        raise NotAddressableError("durable: a lambda has no name that another process could find. Use `def`")
    place = f"{func.__module__}:{func.__qualname__}"
    if "<locals>" in func.__qualname__:
        raise NotAddressableError(
            f"durable: {describe(func)} is defined inside of another function, where no other process can find it. "
            "Move it to the top of the module"
        )
    if func.__module__ == "__main__":
        raise NotAddressableError(
            f"durable: {describe(func)} is part of the script that is being run, which a worker knows by another name. "
            f'Move it to a module, or name it: @durable(name="{func.__name__}")'
        )
    return place


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidConfigError('durable(name=..., aliases=...): a name is a text, such as "mail:send_receipt"')
    return name


def _place(function: DurableFunction[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


# ---- what a durable task knows of itself ----


@dataclass(frozen=True, slots=True)
class DurableContext:
    """What a durable task can know about its call; see `durable_context()`."""

    name: str
    key: str
    """The same each time that this call runs: to hand to a payment provider, or to look up before doing it again."""
    attempt: int
    """1 for the first run; more if it failed, or if the worker that ran it died."""
    headers: Mapping[str, str]
    """What travelled with the call: `traceparent`, `x-request-id`."""
    find_scheduler: Callable[[], TaskScheduler | None] = field(repr=False)
    save_progress: Callable[[Json], Awaitable[None]] | None = field(default=None, repr=False)
    task_id: int | None = field(default=None, repr=False)
    """Set where attempts are counted by a task of this process, and not by an engine."""

    @property
    def scheduler(self) -> TaskScheduler:
        """
        The scheduler that runs the task, for what is to follow; it has the engine that the task came from.

        ```python
        context = durable_context()
        await context.scheduler.task(key=f"{context.key}-receipt").schedule(send_receipt, order_id)
        ```

        Awaited, a durable task is stored before this one has succeeded, and the key keeps it single if this one runs
        again. Other functions run in this process, and are lost with it. `scheduler.stopping` is set when the worker is
        told to stop.

        Raises:
            LookupError: the scheduler has ended.
        """
        scheduler = self.find_scheduler()
        if scheduler is None:
            raise LookupError(f"The scheduler that ran {self.name!r} has ended")
        return scheduler

    async def report_progress(self, progress: Json) -> None:
        """Have `receipt.status()` say how far the task is: any JSON value. Does nothing where no engine keeps it."""
        if self.save_progress is not None:
            await self.save_progress(progress)


_context: ContextVar[DurableContext | None] = ContextVar("tasks_core_context", default=None)


def durable_context() -> DurableContext:
    """
    Return the context of the durable task that runs the caller.

    Raises:
        LookupError: the caller is not run by a durable task.
    """
    context = _context.get()
    if context is None:
        raise LookupError("durable_context() is for durable tasks: no durable task runs this code")
    task = current_task()
    if task is not None and task.id == context.task_id:
        return replace(context, attempt=task.attempts)
    return context


def set_context(context: DurableContext) -> None:
    _context.set(context)

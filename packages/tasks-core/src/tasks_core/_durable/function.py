"""Functions that one process calls and another process runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable
from copy import copy
from dataclasses import fields
from functools import cached_property
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, Never, ParamSpec, Protocol, TypeVar, overload

from tasks_core._config import TaskConfig, TaskErrorHandler
from tasks_core._decision import Cancel, Snooze
from tasks_core._phase import TaskPhase
from tasks_core._retry import RetryPolicy
from tasks_core._schedule import TaskFactory
from tasks_core._support.call import check_provided_call, function_name
from tasks_core._support.provider import ELSEWHERE
from tasks_core._support.rules import Rule, is_finite_seconds, show
from tasks_core.exceptions import InvalidConfigError, InvalidTaskError, NotAddressableError
from tasks_core.triggers import Every, Trigger

from .calls import DEFAULT_RETRY, Receipt
from .codec import ArgumentCodec, ResultCodec
from .phase import DurablePhase
from .queues import DEFAULT_QUEUE, KEY, PRIORITY, QUEUE
from .registry import registry
from .task import CallOptions, submit_call

if TYPE_CHECKING:
    from tasks_core._schedule import ScheduledCall, ScheduleTarget
    from tasks_core._task import Task

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


CATCH_UP = 3600.0
"""The default of `durable(catch_up=...)`."""

_CATCH_UP = Rule(
    lambda value: is_finite_seconds(value) and value >= 1, "a number of seconds, 1 or more, as in catch_up=60"
)
_OF_THE_TARGET = frozenset(option.name for option in fields(TaskConfig))


class DurableFunction(TaskFactory[P, Receipt[R]], Generic[P, T, R]):
    """
    What `@durable` makes of a function. Calling it calls the function; scheduling it submits the call to an engine.

    The result of the scheduled task is the `Receipt` of the engine: it has succeeded when the engine has acknowledged
    the call. In a phase of a request that happens before the response begins. Besides what `schedule()` raises:

    - `ArgumentCodecError`, an argument cannot be serialized;
    - `EngineNotConfiguredError`, the scheduler has no engine;
    - `EngineCapabilityError`, the engine cannot do what `.task(...)` or `configure()` asks for.

    Only functions that were decorated can be run by a worker, by the names given here.
    """

    name: str
    """What the call is named in the engine: `"app.mail:send_email"`, unless `durable(name=...)` says otherwise."""
    aliases: tuple[str, ...]
    """Former names, under which calls may still be waiting."""
    retry: RetryPolicy | None
    """When it runs again after an exception; `None`: never."""
    config: TaskConfig
    """How a worker runs it: `shield`, `timeout`, `on_error`."""
    queue: str
    """The queue of its calls, unless `configure(queue=...)` says otherwise; `"default"` is that of the engine."""
    priority: int
    """The priority of its calls, unless `configure(priority=...)` says otherwise."""
    periodic: Trigger | None
    """When workers run it by themselves, once for all of them."""
    catch_up: float
    """Seconds by which such a run may be late."""
    __name__: str
    __qualname__: str

    def __init__(
        self,
        func: Callable[P, T],
        *,
        name: str | None = None,
        aliases: Iterable[str] = (),
        retry: RetryPolicy | None = DEFAULT_RETRY,
        config: TaskConfig | None = None,
        queue: str = DEFAULT_QUEUE,
        priority: int = 0,
        periodic: Trigger | None = None,
        catch_up: float | None = None,
    ) -> None:
        _check_periodic(func, periodic, catch_up)
        QUEUE.check("queue", queue)
        PRIORITY.check("priority", priority)
        self.name = _check_name(name) if name is not None else _name_of(func)
        self.aliases = tuple(map(_check_name, aliases))
        self.retry = retry
        self.config = config or TaskConfig()
        self.queue = queue
        self.priority = priority
        self.periodic = periodic
        self.catch_up = CATCH_UP if catch_up is None else catch_up
        self._options = CallOptions()
        self.__wrapped__ = func
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(self, attribute, getattr(func, attribute, None))

    def configure(
        self,
        *,
        idempotency_key: str | None = None,
        transaction: Any = None,
        queue: str | None = None,
        priority: int | None = None,
        **other: Never,
    ) -> DurableFunction[P, T, R]:
        """
        Return this function with options for the calls that are scheduled with what is returned.

        ```python
        tasks.after_response.schedule(charge.configure(idempotency_key=f"charge-{order.id}"), order.id)
        ```

        Args:
            idempotency_key: The engine accepts a key once. A second call with it makes no second task: its receipt is
                that of the first (`created` is false), and a line at INFO says so.

            transaction: The database transaction that the task becomes part of: it is there when that is committed, or
                not at all. Which types it may have depends on the engine.

            queue: The queue of the call, in place of that of the function.

            priority: The priority of the call, in place of that of the function.

            other: No other option. `key=` and `on_conflict=` are said to the target, as for functions that run in
                memory: `tasks.after_response.task(key=..., on_conflict="queue").schedule(charge, order.id)`.

        Raises:
            InvalidConfigError: *idempotency_key* is not a text of 1 to 500 characters that PostgreSQL can store, or
                *queue* or *priority* has a value that `durable()` does not take.
            TypeError: an option is not one of these.
        """
        for option in other:
            where = f"; it is said to the target: .task({option}=...).schedule({self.__name__}, ...)"
            it_takes = ". It takes: idempotency_key, transaction, queue, priority"
            raise TypeError(
                f"configure() got an unexpected option {option!r}{where if option in _OF_THE_TARGET else it_takes}"
            )
        if idempotency_key is not None:
            KEY.check("idempotency_key", idempotency_key)
        if queue is not None:
            QUEUE.check("queue", queue)
        if priority is not None:
            PRIORITY.check("priority", priority)
        configured = copy(self)
        configured._options = CallOptions(idempotency_key, transaction, queue, priority)
        return configured

    def _schedule_into(self, target: ScheduleTarget, call: ScheduledCall, /) -> Task[Receipt[R]]:
        if call.func is not self:
            raise NotAddressableError(
                f"{self!r} inside of a partial cannot be found by another process. Pass it and its arguments: "
                f"schedule({self.__name__}, ...)"
            )
        check_provided_call(self.__wrapped__, call.args, call.kwargs, target._runner.provisions or ELSEWHERE)
        phase = target if isinstance(target, TaskPhase) else target._phase
        take = phase._schedule_durable if isinstance(phase, DurablePhase) else target._take
        return submit_call(self, target, call, self._options, phase, take)

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

    @cached_property
    def codec(self) -> ArgumentCodec:
        """How its arguments are serialized."""
        return ArgumentCodec(function_name(self.func), self.func)

    @cached_property
    def result_codec(self) -> ResultCodec:
        """How its result is serialized."""
        return ResultCodec(function_name(self.func), self.func)

    def __repr__(self) -> str:
        return f"<durable {self.name}>"


def durable_function(name: str) -> DurableFunction[..., Any, Any]:
    """
    Return the durable function of this process that a worker would run for the calls of a name.

    Raises:
        UnknownTaskError: no function that was imported has the name, or had it formerly.
    """
    return registry.get(name)


def registered_names() -> list[str]:
    """Return the names, and former names, of the durable functions of this process: a worker claims no other calls."""
    return list(registry._functions)


def periodic_functions() -> list[DurableFunction[..., Any, Any]]:
    """Return the durable functions of this process that have `periodic=`, in the order of their names."""
    functions = {function.name: function for function in registry._functions.values() if function.periodic is not None}
    return [functions[name] for name in sorted(functions)]


def registered_queues() -> set[str]:
    """Return the queues of the durable functions of this process, and that of the engine, which is `"default"`."""
    return {DEFAULT_QUEUE, *(function.queue for function in registry._functions.values())}


# Without `Any` in the coroutine that a call returns, for otherwise the overloads of `schedule()` are ambiguous to mypy.
class DurableDecorator(Protocol):
    """What `durable()` with options returns."""

    @overload
    def __call__(
        self, func: Callable[P, Coroutine[Any, Any, R | Snooze | Cancel]], /
    ) -> DurableFunction[P, Coroutine[object, Never, R], R]: ...

    @overload
    def __call__(self, func: Callable[P, R | Snooze | Cancel], /) -> DurableFunction[P, R, R]: ...


@overload
def durable(
    func: Callable[P, Coroutine[Any, Any, R | Snooze | Cancel]], /
) -> DurableFunction[P, Coroutine[object, Never, R], R]: ...


@overload
def durable(func: Callable[P, R | Snooze | Cancel], /) -> DurableFunction[P, R, R]: ...


@overload
def durable(
    *,
    name: str | None = None,
    aliases: Iterable[str] = (),
    retry: RetryPolicy | None = DEFAULT_RETRY,
    shield: bool | None = None,
    timeout: float | None = None,
    on_error: TaskErrorHandler | None = None,
    queue: str = ...,
    priority: int = ...,
    periodic: Trigger | None = None,
    catch_up: float | None = None,
) -> DurableDecorator: ...


def durable(
    func: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    aliases: Iterable[str] = (),
    retry: RetryPolicy | None = DEFAULT_RETRY,
    shield: bool | None = None,
    timeout: float | None = None,
    on_error: TaskErrorHandler | None = None,
    queue: str = DEFAULT_QUEUE,
    priority: int = 0,
    periodic: Trigger | None = None,
    catch_up: float | None = None,
) -> Any:
    """
    Make a function durable: scheduling it submits the call to an engine, and a worker process runs it.

    ```python
    @durable(retry=RetryPolicy(attempts=5))
    async def charge(order_id: int) -> None: ...


    tasks.after_response.schedule(charge, order.id)
    ```

    A durable task runs **at least once**: it survives the end of any process, and may therefore run again after it has
    done part of its work, or all of it. `durable_context().idempotency_key` is the same each time.

    The function is defined at the top of a module that a worker imports. Its arguments are stored as JSON, and restored
    as the types that they are annotated with.

    Args:
        func: The function, where the decorator has no parentheses.

        name: The name of the call in the engine. Default: `module:function`. Calls that are stored keep the old name
            when the function is renamed, so that a name or an alias makes renaming safe.

        aliases: Former names.

        retry: When it runs again after an exception. `None`: never. Default: up to 10 attempts, with pauses from 10
            seconds to an hour: `RetryPolicy(attempts=10, backoff=10, max_delay=3600, jitter=0.1)`.

        shield: Whether a worker that is stopped lets the task finish after its grace period. Otherwise the task is
            cancelled and put back into the queue.

        timeout: Seconds that an attempt may take, as in `TaskConfig`.

        on_error: Called on the worker with `(task, exception)` when the task has failed and *retry* gives up. May
            return a `Retry`, after which it is delivered once more; see `TaskErrorHandler`.

        queue: The queue of its calls, of which a worker may run so many at once: a slow kind of task then holds up no
            other. At most 40 letters, digits, `.`, `_` and `-`. Default: `"default"`, the queue of the engine.

        priority: A whole number from -100 to 100. Of the calls of a queue that wait, those with a higher one run first.

        periodic: Workers run the function without arguments at each occurrence, once for all workers and machines:
            `cron("0 3 * * *", timezone="Europe/Berlin")` or `every(hours=6)`, by the clock of the engine. An interval
            is counted from 1970-01-01 00:00 UTC, or from its `first`. An occurrence is skipped, with a line in the
            log, if the run before it has not ended.

        catch_up: Seconds by which an occurrence of *periodic* may be late, because no worker ran when it was due. Of
            those that are not later, the latest is run; all other ones are skipped, with a line. Default: 3600.

    Raises:
        NotAddressableError: a worker could not find the function: it is a lambda, a closure, a method, a partial, or
            part of the script that is being run.
        InvalidTaskError: a function with *periodic* needs arguments.
        InvalidConfigError: an option has a value that it cannot have, or the name belongs to another function.
    """
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise InvalidConfigError(
            f"durable(retry={show(retry)}): retry must be a RetryPolicy, as in retry=RetryPolicy(attempts=5), or None "
            "for never"
        )
    config = TaskConfig(shield=shield, timeout=timeout, on_error=on_error)

    def decorate(func: Callable[..., Any]) -> DurableFunction[..., Any, Any]:
        function: DurableFunction[..., Any, Any] = DurableFunction(
            func,
            name=name,
            aliases=aliases,
            retry=retry,
            config=config,
            queue=queue,
            priority=priority,
            periodic=periodic,
            catch_up=catch_up,
        )
        registry.add(function)
        return function

    return decorate if func is None else decorate(func)


def _name_of(func: Callable[..., Any]) -> str:
    """Return the name by which another process finds the function; raise if it could not."""
    if not isinstance(func, FunctionType):
        kind = type(func).__qualname__
        raise NotAddressableError(
            f"durable: {function_name(func)} is a {kind}, which another process cannot find. "
            "Decorate a function at the top of a module"
        )
    if func.__name__ == "<lambda>":
        raise NotAddressableError("durable: a lambda has no name that another process could find. Use `def`")
    place = f"{func.__module__}:{func.__qualname__}"
    if "<locals>" in func.__qualname__:
        raise NotAddressableError(
            f"durable: {function_name(func)} is defined inside another function, where no other process can find it. "
            "Move it to the top of the module"
        )
    if func.__module__ == "__main__":
        raise NotAddressableError(
            f"durable: {function_name(func)} is part of the script that runs, which a worker knows by another name. "
            f'Move it to a module, or name it: @durable(name="{func.__name__}")'
        )
    return place


def _check_periodic(func: Callable[..., Any], periodic: object, catch_up: object) -> None:
    """Raise if the options do not fit together, or the function could not be called without arguments."""
    if periodic is None:
        if catch_up is not None:
            raise InvalidConfigError(
                "durable(catch_up=...): catch_up is for periodic functions, as in durable(periodic=every(hours=6), "
                "catch_up=60)"
            )
        return
    if not callable(getattr(periodic, "next_after", None)):
        raise InvalidConfigError(
            f"durable(periodic={show(periodic)}): periodic must have the method next_after(), as in "
            "periodic=cron('0 3 * * *') or periodic=every(hours=6)"
        )
    if isinstance(periodic, Every) and (periodic.immediately or isinstance(periodic.first, int | float)):
        raise InvalidConfigError(
            "durable(periodic=every(...)): immediately= and seconds in first= are counted from the start of a process, "
            "and a durable function runs once for all of them. Pass a moment: first=datetime(2026, 1, 1, tzinfo=UTC)"
        )
    if catch_up is not None:
        _CATCH_UP.check("catch_up", catch_up)
    for parameter in inspect.signature(func).parameters.values():
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise InvalidTaskError(
                f"durable(periodic=...): {function_name(func)} is called without arguments, and parameter "
                f"{parameter.name!r} has no default. If the worker supplies it, give it the default Provided"
            )


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidConfigError('durable(name=..., aliases=...): a name is a text, such as "mail:send_receipt"')
    return name

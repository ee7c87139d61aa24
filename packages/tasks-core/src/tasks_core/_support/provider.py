"""Arguments that the caller of `schedule()` does not pass, because a provider of the scheduler supplies them."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

T = TypeVar("T")


@runtime_checkable
class Provider(Protocol):
    """
    Supplies arguments of tasks, such as a database session, for as long as an attempt runs.

    ```python
    class Sessions:
        def parameters(self, func):
            return [name for name, hint in get_type_hints(func).items() if hint is Session]

        def check(self, func, names): ...

        async def call(self, func, names, run):
            async with Session() as session:
                return await run(dict.fromkeys(names, session))


    scheduler = TaskScheduler(provider=Sessions())
    scheduler.schedule(send_receipt, order.id)  # async def send_receipt(order_id: int, session: Session = Provided)
    ```

    A call that passes every argument does not ask the provider, so that functions without such parameters cost nothing.
    """

    def parameters(self, func: Callable[..., Any], /) -> Collection[str]:
        """Return the names of the parameters of *func* that the provider supplies. Called once for each function."""
        ...

    def check(self, func: Callable[..., Any], names: frozenset[str], /) -> None:
        """
        Raise if the arguments *names* cannot be supplied; called by `schedule()`.

        Raises:
            InvalidTaskError: the message says which parameter it is, why, and what to write.
        """
        ...

    async def call(
        self, func: Callable[..., Any], names: frozenset[str], run: Callable[[Mapping[str, Any]], Awaitable[T]], /
    ) -> T:
        """
        Acquire the arguments *names*, return `await run(arguments)`, and release them; called for each attempt.

        What *run* raises is what the task raised, or its cancellation. It must be raised again after the release.
        """
        ...


class _Provided:
    """The type of `Provided`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Provided"

    def __bool__(self) -> bool:
        raise RuntimeError(_NOT_PROVIDED)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by inspect, copy, typing and others
            raise AttributeError(name)
        raise RuntimeError(_NOT_PROVIDED)


_NOT_PROVIDED = (
    "this parameter has the default Provided, because the scheduler supplies it when the function is scheduled. "
    "Pass it when you call the function yourself"
)

Provided: Any = _Provided()
"""
The default of a parameter that the provider of the scheduler supplies, in an application that of FastAPI:
`async def send_receipt(order_id: int, session: SessionDep = Provided) -> None`. It is there for type checkers, which
otherwise require the argument at `schedule(send_receipt, order.id)`.
"""


class ProvidedCall:
    """A call in which the arguments *names* are supplied by *provider*."""

    __slots__ = ("_names", "_provider", "is_async")

    def __init__(self, provider: Provider, names: frozenset[str], is_async: bool) -> None:
        self._provider = provider
        self._names = names
        self.is_async: bool = is_async

    async def run(self, func: Callable[..., Any], run: Callable[[Mapping[str, Any]], Awaitable[T]]) -> T:
        """Acquire the arguments, call *run* with them, and release them."""
        return await self._provider.call(func, self._names, run)


def has_provided_default(func: Callable[..., Any]) -> bool:
    """Return whether a parameter of a function or method has the default `Provided`; false for other callables."""
    function = func.__func__ if isinstance(func, MethodType) else func
    if not isinstance(function, FunctionType):
        return False
    for value in function.__defaults__ or ():  # a loop, because each call that leaves out a default pays for it
        if value is Provided:
            return True
    by_name = function.__kwdefaults__
    return by_name is not None and any(value is Provided for value in by_name.values())


class Provisions:
    """A provider, and what it supplies to each function. `None` in place of the provider: it is in another process."""

    __slots__ = ("_known", "provider")

    def __init__(self, provider: Provider | None) -> None:
        self.provider = provider
        self._known: WeakKeyDictionary[Callable[..., Any], frozenset[str]] = WeakKeyDictionary()

    def missing(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> frozenset[str]:
        """Return the names of the parameters of *func* that are not passed and that the provider supplies."""
        names = self._parameters(func)
        if not names:
            return names
        try:
            passed = inspect.signature(func, follow_wrapped=False).bind_partial(*args, **kwargs).arguments
        except TypeError:
            return frozenset()  # too many arguments, or unknown ones, which the check of the call explains
        if isinstance(func, partial):
            names = names.difference(func.keywords)
        return names.difference(passed)

    def _parameters(self, func: Callable[..., Any]) -> frozenset[str]:
        key = func.__func__ if isinstance(func, MethodType) else func  # a method is a new object at each access
        try:
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = self._find(func)
        except TypeError:  # it cannot be hashed, or not referenced weakly
            return self._find(func)
        return found

    def _find(self, func: Callable[..., Any]) -> frozenset[str]:
        try:
            parameters = inspect.signature(func, follow_wrapped=False).parameters
        except (TypeError, ValueError):
            return frozenset()  # some builtins have no signature
        names = {name for name, parameter in parameters.items() if parameter.default is Provided}
        return frozenset(names.union(() if self.provider is None else self.provider.parameters(func)))


ELSEWHERE = Provisions(None)
"""For calls that another process runs, whose provider is not known here."""

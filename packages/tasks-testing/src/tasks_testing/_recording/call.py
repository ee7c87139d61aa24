"""How a test names a call: a function, and the arguments that the test expects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import MethodType
from typing import Any, ClassVar, Generic, ParamSpec, TypeAlias, TypeVar, overload

from tasks_core import DurableFunction
from tasks_core.testing import function_name

from tasks_testing import _refusals
from tasks_testing._text import show, show_arguments

P = ParamSpec("P")
R = TypeVar("R")

_MISSING: Any = inspect.Parameter.empty


class Call(Generic[R]):
    """
    A function with arguments. `call()` and `call_like()` make one; `RecordedTask.call` is one.

    Two calls are equal if they are of the same function and every parameter has an equal value. It does not matter how
    a value was passed: by position, by name, by default, or bound by a method or a `functools.partial`. A call that was
    made by `call_like()` compares the parameters that it names.
    """

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # arguments may be mutable

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __init__(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, partially: bool = False
    ) -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self._partially = partially

    @property
    def params(self) -> Mapping[str, Any]:
        """The value of each parameter, defaults included; for `call_like()`, of the parameters that it names."""
        return self.kwargs if self._partially else _bind(self.func, self.args, self.kwargs)

    def differences(self, actual: Call[Any]) -> dict[str, tuple[Any, Any]] | None:
        """
        Compare with a call that took place.

        Returns:
            `{parameter: (actual, expected)}` for the parameters that differ; `None` if *actual* is of another function.
        """
        expected_function, actual_function = base_function(self.func), base_function(actual.func)
        if expected_function is not actual_function and expected_function != actual_function:
            return None
        found = actual._all_params()
        wanted = self._named_params() if self._partially else self._all_params()
        return {
            name: (found.get(name, _MISSING), wanted.get(name, _MISSING))
            for name in (wanted if self._partially else {**wanted, **found})
            if not equal(found.get(name, _MISSING), wanted.get(name, _MISSING))
        }

    def _all_params(self) -> Mapping[str, Any]:
        """Return the parameters of the innermost function, with those that a method or a partial binds."""
        function, args, kwargs = unwrap(self.func)
        return _bind(function, (*args, *self.args), {**kwargs, **self.kwargs})

    def _named_params(self) -> Mapping[str, Any]:
        function, args, kwargs = unwrap(self.func)
        bound = inspect.signature(function).bind_partial(*args, **kwargs).arguments if args or kwargs else {}
        return {**bound, **self.kwargs}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Call):
            return NotImplemented
        expected, actual = (other, self) if other._partially else (self, other)
        return expected.differences(actual) == {}

    def __repr__(self) -> str:
        more = ", ..." if self._partially and self.kwargs else "..." if self._partially else ""
        return f"{function_name(self.func)}({show_arguments(self.args, self.kwargs)}{more})"


Target: TypeAlias = Callable[..., Any] | Call[Any] | str
"""Names tasks: a function, a `call()` or `call_like()`, or the name of tasks (`TaskConfig.name`)."""


@overload
def call(func: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...


@overload
def call(func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...


def call(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call[Any]:
    """
    Return a call as `tasks.schedule(func, ...)` makes it: `call(send_email, "ann@example.org")`.

    Type checkers reject an argument that the function does not take. To match a value without equality
    (`dirty_equals.IsStr()`), use `call_like()`.

    Raises:
        TypeError: The function does not take these arguments.
    """
    made: Call[Any] = Call(func, args, kwargs)
    made._all_params()
    return made


@overload
def call_like(func: Callable[..., Coroutine[Any, Any, R]], /, **params: object) -> Call[R]: ...


@overload
def call_like(func: Callable[..., R], /, **params: object) -> Call[R]: ...


def call_like(func: Callable[..., Any], /, **params: object) -> Call[Any]:
    """
    Return a call that compares some parameters only: `call_like(send_email, to=IsStr(regex=r".*@x"))`.

    A value may be any object that compares equal to what it matches.

    Raises:
        TypeError: The function has no parameter of that name.
    """
    names = inspect.signature(func).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in names.values())
    for name in params:
        if name not in names and not takes_any:
            raise TypeError(_refusals.no_such_parameter(func, name, names))
    return Call(func, (), params, partially=True)


def matches(target: Target, name: str, actual: Call[Any]) -> bool:
    """Return whether *target* names the task of name *name* and call *actual*."""
    match target:
        case str():
            return name == target
        case Call():
            return target.differences(actual) == {}
    function, args, kwargs = unwrap(target)
    actual_function, actual_args, actual_kwargs = unwrap(actual.func)
    return (
        (function is actual_function or function == actual_function)
        and len(args) <= len(actual_args)
        and all(map(equal, actual_args, args))
        and all(equal(actual_kwargs.get(name, _MISSING), value) for name, value in kwargs.items())
    )


def check_target(target: object) -> None:
    """
    Refuse an object that is no target.

    Raises:
        TypeError: It is no function, no call and no text.
    """
    if not isinstance(target, (str, Call)) and not callable(target):
        raise TypeError(_refusals.not_a_target(target))


def show_target(target: Target) -> str:
    """Return a target as text."""
    match target:
        case str():
            return repr(target)
        case Call():
            return repr(target)
    return function_name(target)


def target_function(target: Target) -> Callable[..., Any] | None:
    """Return the function of a target; `None` if the target is the name of a task."""
    match target:
        case str():
            return None
        case Call():
            return base_function(target.func)
    return base_function(target)


def unwrap(func: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return the function inside partials, bound methods and durable functions, and the arguments that they bind."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    while True:
        match func:
            case partial():
                args, kwargs = (*func.args, *args), {**func.keywords, **kwargs}
                func = func.func
            case MethodType():
                args = (func.__self__, *args)
                func = func.__func__
            case DurableFunction():  # the task of a worker has the function itself
                func = func.func
            case _:
                return func, args, kwargs


def base_function(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside partials, bound methods and durable functions."""
    return unwrap(func)[0]


def equal(left: object, right: object) -> bool:
    """Return whether two values are equal; they are not if the comparison raises, or returns no truth value."""
    try:
        return left is right or bool(left == right)
    except Exception:
        return False


def show_difference(name: str, actual: object, expected: object) -> str:
    """Return one entry of `Call.differences()` as text."""
    if actual is _MISSING:
        return f"{name} was not passed, expected {show(expected)}"
    if expected is _MISSING:
        return f"{name} = {show(actual)} was not expected"
    return f"{name}: {show(actual)} != {show(expected)}"


def _bind(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        signature = inspect.signature(func)
    except ValueError:  # some builtins have no signature
        return {**{str(i): arg for i, arg in enumerate(args)}, **kwargs}
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    params = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            params.update(params.pop(name))
    return params

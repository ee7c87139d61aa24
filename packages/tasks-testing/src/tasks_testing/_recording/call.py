"""What a test says about a call: a function and the arguments that it expects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import MethodType
from typing import Any, ClassVar, Generic, ParamSpec, TypeAlias, TypeVar, overload

from tasks_core import DurableFunction

from tasks_testing._text import function_name, show, show_arguments

P = ParamSpec("P")
R = TypeVar("R")

_MISSING: Any = inspect.Parameter.empty


class Call(Generic[R]):
    """
    A function with arguments; made by `call()` and `call_like()`, and found as `RecordedTask.call`.

    Two calls are equal when they are of the same function and every parameter has an equal value, however it was
    passed: by position, by name, by default, bound by a method or a `functools.partial`. One that was made by
    `call_like()` compares the parameters that it names.
    """

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # arguments may be mutable

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, partially: bool = False
    ) -> None:
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self._partially = partially

    @property
    def params(self) -> Mapping[str, Any]:
        """The value of each parameter of the function, defaults included; for `call_like()`, of those it names."""
        return self.kwargs if self._partially else _bind(self.fn, self.args, self.kwargs)

    def differences(self, actual: Call[Any]) -> dict[str, tuple[Any, Any]] | None:
        """
        Compare with a call that took place: `{parameter: (actual, expected)}` for those that differ.

        `None` if it is not of the same function.
        """
        expected_function, actual_function = base_function(self.fn), base_function(actual.fn)
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
        """The parameters of the function underneath, those that a method or a partial binds included."""
        function, args, kwargs = unwrap(self.fn)
        return _bind(function, (*args, *self.args), {**kwargs, **self.kwargs})

    def _named_params(self) -> Mapping[str, Any]:
        function, args, kwargs = unwrap(self.fn)
        bound = inspect.signature(function).bind_partial(*args, **kwargs).arguments if args or kwargs else {}
        return {**bound, **self.kwargs}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Call):
            return NotImplemented
        expected, actual = (other, self) if other._partially else (self, other)
        return expected.differences(actual) == {}

    def __repr__(self) -> str:
        more = ", ..." if self._partially and self.kwargs else "..." if self._partially else ""
        return f"{function_name(self.fn)}({show_arguments(self.args, self.kwargs)}{more})"


Target: TypeAlias = Callable[..., Any] | Call[Any] | str
"""Which tasks are meant: a function, a `call()` or `call_like()`, or the name of tasks (`TaskConfig.name`)."""


@overload
def call(fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...


@overload
def call(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...


def call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call[Any]:
    """
    Say which call is meant, as it is written in `tasks.schedule(fn, ...)`: `call(send_email, "ann@example.org")`.

    Type checkers reject an argument that the function does not take. For values that are to be matched rather than
    equal (`dirty_equals.IsStr()`), use `call_like()`.

    Raises:
        TypeError: the function does not take these arguments.
    """
    made: Call[Any] = Call(fn, args, kwargs)
    made._all_params()
    return made


@overload
def call_like(fn: Callable[..., Coroutine[Any, Any, R]], /, **params: object) -> Call[R]: ...


@overload
def call_like(fn: Callable[..., R], /, **params: object) -> Call[R]: ...


def call_like(fn: Callable[..., Any], /, **params: object) -> Call[Any]:
    """
    Say which call is meant by some of its parameters: `call_like(send_email, to=IsStr(regex=r".*@x"))`.

    A value may be anything that compares equal to what it is meant to match.

    Raises:
        TypeError: the function has no parameter of that name.
    """
    names = inspect.signature(fn).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in names.values())
    for name in params:
        if name not in names and not takes_any:
            raise TypeError(f"{function_name(fn)}() has no parameter {name!r}; it has {', '.join(names) or 'none'}")
    return Call(fn, (), params, partially=True)


def matches(target: Target, name: str, actual: Call[Any]) -> bool:
    """Whether a task called *name*, which is the call *actual*, is meant by *target*."""
    match target:
        case str():
            return name == target
        case Call():
            return target.differences(actual) == {}
    function, args, kwargs = unwrap(target)
    actual_function, actual_args, actual_kwargs = unwrap(actual.fn)
    return (
        (function is actual_function or function == actual_function)
        and len(args) <= len(actual_args)
        and all(map(equal, actual_args, args))
        and all(equal(actual_kwargs.get(name, _MISSING), value) for name, value in kwargs.items())
    )


def check_target(target: object) -> None:
    """
    Refuse what is no target.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(target, (str, Call)) and not callable(target):
        raise TypeError(
            f"{show(target)} is no task: name one by its function (send_email), "
            "by a call (call(send_email, 'ann@example.org')), or by its name ('send_email')"
        )


def show_target(target: Target) -> str:
    """Return a target as text."""
    match target:
        case str():
            return repr(target)
        case Call():
            return repr(target)
    return function_name(target)


def target_function(target: Target) -> Callable[..., Any] | None:
    """Return the function that a target names, if it names one."""
    match target:
        case str():
            return None
        case Call():
            return base_function(target.fn)
    return base_function(target)


def unwrap(fn: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return the function inside of partials and bound methods, and the arguments that they bind."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    while True:
        match fn:
            case partial():
                args, kwargs = (*fn.args, *args), {**fn.keywords, **kwargs}
                fn = fn.func
            case MethodType():
                args = (fn.__self__, *args)
                fn = fn.__func__
            case DurableFunction():  # a worker runs what is inside
                fn = fn.func
            case _:
                return fn, args, kwargs


def base_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    return unwrap(fn)[0]


def equal(left: object, right: object) -> bool:
    """Compare; values whose comparison raises, or gives no truth value, are not equal."""
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


def _bind(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        signature = inspect.signature(fn)
    except ValueError:  # some builtins do not tell
        return {**{str(i): arg for i, arg in enumerate(args)}, **kwargs}
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    params = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            params.update(params.pop(name))
    return params

"""What can be scheduled, and how it has to be called."""

import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_VARARGS, CO_VARKEYWORDS
from types import FunctionType, MethodType
from typing import Any

from tasks_core.exceptions import InvalidTaskError

from .provider import ELSEWHERE, Provided, ProvidedCall, Provisions, has_provided_default


def function_name(func: Callable[..., Any]) -> str:
    """Return the name of a callable as logs and messages show it: `send_email`, `Mailer.send`, `Mailer`."""
    while isinstance(func, partial):
        func = func.func
    try:
        name = func.__qualname__
    except Exception:  # a proxy may raise anything
        name = None
    # A name that is no text (of a mock) or a subclass of one would raise later, in the middle of a log line.
    text = str.__str__(name) if isinstance(name, str) and name else type(func).__qualname__
    return text.replace("<locals>.", "") if "<" in text else text


def check_provided_call(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], provisions: Provisions | None
) -> bool | ProvidedCall:
    """
    Check a call as `check_call()` does, where a provider may supply arguments that are not passed.

    Returns:
        Whether *func* is a coroutine function, or the call for `ProvidedCall.run()`.

    Raises:
        InvalidTaskError: as `check_call()`; or the provider cannot supply an argument, or there is none.
    """
    if type(func) is FunctionType and not kwargs:  # complete calls, which need no provider
        code = func.__code__
        if code.co_argcount == len(args) and not code.co_kwonlyargcount and not code.co_flags & _UNUSUAL:
            return bool(code.co_flags & CO_COROUTINE) or inspect.iscoroutinefunction(func)
    if provisions is None:
        if has_provided_default(func) and (names := ELSEWHERE.missing(func, args, kwargs)):
            raise InvalidTaskError(
                f"{function_name(func)} has parameters with the default Provided ({', '.join(sorted(names))}), and the "
                "scheduler has no provider. Give it one, TaskScheduler(provider=...), or pass the arguments"
            )
        return check_call(func, args, kwargs)
    names = provisions.missing(func, args, kwargs) if callable(func) else frozenset()
    if not names:
        return check_call(func, args, kwargs)
    is_async = check_call(func, args, {**kwargs, **dict.fromkeys(names, Provided)})
    if provisions.provider is None:
        return is_async
    provisions.provider.check(func, names)
    return ProvidedCall(provisions.provider, names, is_async)


def check_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """
    Refuse what could only fail later; return whether *func* is a coroutine function.

    Raises:
        InvalidTaskError: *func* is not callable, is a coroutine or a generator function, or does not take
            these arguments.
    """
    if type(func) is FunctionType and not kwargs:  # what is scheduled most often
        code = func.__code__
        if code.co_flags & _KIND == CO_COROUTINE and code.co_argcount == len(args) and not code.co_kwonlyargcount:
            return True
    function, given = func, len(args)
    if type(func) is MethodType:
        function, given = func.__func__, given + 1
    if type(function) is FunctionType:
        code = function.__code__
        flags, most = code.co_flags, code.co_argcount
        if kwargs or code.co_kwonlyargcount or flags & _UNUSUAL:
            fits = not flags & _UNUSUAL and _fit(function, given, kwargs)
        else:
            fits = most - len(function.__defaults__ or ()) <= given <= most
        if fits:
            return bool(flags & CO_COROUTINE) or inspect.iscoroutinefunction(func)
    return _check_unusual_call(func, args, kwargs)


# Functions that have to be asked for their signature.
_UNUSUAL = CO_VARARGS | CO_VARKEYWORDS | CO_GENERATOR | CO_ASYNC_GENERATOR
_KIND = _UNUSUAL | CO_COROUTINE


def _fit(function: FunctionType, given: int, kwargs: Mapping[str, Any]) -> bool:
    """
    Return whether an ordinary function takes so many positional arguments, and these by name.

    The answer is that of `inspect.signature(function).bind(...)`, in a tenth of the time.
    """
    code, defaults = function.__code__, function.__kwdefaults__ or {}
    most = code.co_argcount
    names, end = code.co_varnames, most + code.co_kwonlyargcount
    possible = names[max(given, code.co_posonlyargcount) : end]
    needed = names[given : most - len(function.__defaults__ or ())]
    needed += tuple(name for name in names[most:end] if name not in defaults)
    return given <= most and all(name in possible for name in kwargs) and all(name in kwargs for name in needed)


def _check_unusual_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if isinstance(func, Coroutine):
        name = getattr(func, "__qualname__", "function").replace("<locals>.", "")
        func.close()  # it will never be awaited, and the warning about that would only distract
        raise InvalidTaskError(
            f"schedule() was given the coroutine {name}(...), which is already called. "
            f"Pass the function and its arguments: schedule({name}, ...)"
        )
    if not callable(func):
        raise InvalidTaskError(
            f"schedule() was given {type(func).__qualname__!r}, which is not callable. "
            "Pass a function and its arguments: schedule(send_email, user.email)"
        )
    target = _called_function(func)
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise InvalidTaskError(
            f"{function_name(func)} is a generator function: calling it runs nothing. "
            "Pass a function without `yield`, which loops over the generator itself"
        )
    is_async = inspect.iscoroutinefunction(target)
    try:
        # Of the function that is called, not of one that it wraps: a decorator may supply arguments.
        signature = inspect.signature(func, follow_wrapped=False)
    except Exception:  # some builtins have none, and a proxy may answer anything when it is asked for one
        return is_async
    if _is_imitation(target):
        return is_async
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InvalidTaskError(
            f"{function_name(func)} cannot be called with these arguments: {error}. It takes {_parameters(signature)}"
        ) from None
    return is_async


def _is_imitation(target: Any) -> bool:
    """Return whether *target* looks like a Python function and is none: mypyc shows a signature without parameters."""
    function = getattr(target, "__func__", target)
    return not isinstance(function, FunctionType) and hasattr(function, "__code__")


def takes(func: Callable[..., Any], name: str) -> bool:
    """Return whether a callable has a parameter of that name; `True` if it does not say."""
    try:
        return name in inspect.signature(func, follow_wrapped=False).parameters
    except Exception:  # as in check_call()
        return True


def _called_function(func: Callable[..., Any]) -> Any:
    """Find the function whose body runs: inside partials, and behind `__call__` of an object."""
    while isinstance(func, partial):
        func = func.func
    if isinstance(func, (FunctionType, MethodType, type)) or inspect.iscoroutinefunction(func):
        return func
    return getattr(func, "__call__", func)  # noqa: B004  the method itself is wanted, not whether there is one


def _parameters(signature: inspect.Signature) -> str:
    """Show a signature by its names only: a default value may be a secret."""
    bare = [
        p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else _HIDDEN)
        for p in signature.parameters.values()
    ]
    return str(inspect.Signature(bare))


class _Hidden:
    def __repr__(self) -> str:
        return "..."


_HIDDEN = _Hidden()

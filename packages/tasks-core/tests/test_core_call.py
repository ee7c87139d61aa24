"""What `schedule()` accepts is what Python's own binding of arguments accepts, for every form of a parameter list."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
from tasks_core import TaskScheduler
from tasks_core.exceptions import InvalidTaskError

pytestmark = pytest.mark.anyio


class Service:
    def method(self, a: object, b: object = 0) -> None: ...

    async def async_method(self, a: object, *, key: object) -> None: ...

    @classmethod
    def class_method(cls, a: object) -> None: ...

    @staticmethod
    def static_method(a: object, b: object = 0) -> None: ...

    def __call__(self, a: object = 0) -> None: ...


def none() -> None: ...
def one(a: object) -> None: ...
def optional(a: object, b: object = 0) -> None: ...
def positional_only(a: object, b: object = 0, /, c: object = 0) -> None: ...
def named(a: object, *, key: object) -> None: ...
def named_optional(a: object = 0, *, key: object = 0, other: object = 0) -> None: ...
def everything(a: object, /, b: object, c: object = 0, *, key: object, other: object = 0) -> None: ...
def variadic(a: object, *rest: object) -> None: ...
def by_any_name(a: object, **names: object) -> None: ...
async def coroutine(a: object, b: object = 0, *, key: object = 0) -> None: ...


FUNCTIONS: list[Callable[..., Any]] = [
    none,
    one,
    optional,
    positional_only,
    named,
    named_optional,
    everything,
    variadic,
    by_any_name,
    coroutine,
    Service().method,
    Service().async_method,
    Service.class_method,
    Service.static_method,
    Service.method,
    Service(),
]
NAMES: list[tuple[str, ...]] = [
    (),
    ("a",),
    ("b",),
    ("c",),
    ("key",),
    ("a", "key"),
    ("b", "key"),
    ("b", "c", "key"),
    ("key", "other"),
    ("self",),
    ("unknown",),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: getattr(function, "__qualname__", "object"))
async def test_arguments_are_accepted_exactly_when_python_would_bind_them(function: Callable[..., Any]) -> None:
    """The short check for ordinary functions and the one by signature say the same, for 44 ways to call each."""
    verdicts = set()
    async with TaskScheduler() as scheduler:
        for number, names in product(range(4), NAMES):
            args, kwargs = (0,) * number, dict.fromkeys(names, 0)
            try:
                inspect.signature(function).bind(*args, **kwargs)
            except TypeError:
                with pytest.raises(InvalidTaskError, match="cannot be called with these arguments"):
                    scheduler.schedule(function, *args, **kwargs)
                verdicts.add("refused")
            else:
                scheduler.schedule(function, *args, **kwargs)
                verdicts.add("accepted")
    assert verdicts == {"refused", "accepted"}


class Evasive:
    """A generator function to call, and an error to ask for its parameters."""

    def __call__(self, name: str) -> Iterator[str]:
        yield name

    @property
    def __signature__(self) -> Any:
        raise RuntimeError("no signature")


async def test_a_callable_that_does_not_show_its_parameters_is_refused_in_the_usual_words() -> None:
    async with TaskScheduler() as scheduler:
        with pytest.raises(InvalidTaskError, match="is a generator function: calling it runs nothing"):
            scheduler.schedule(Evasive(), name="x")

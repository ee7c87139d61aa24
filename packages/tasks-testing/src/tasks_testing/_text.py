"""Values and places as text, short and without surprises."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any


def show(value: object, limit: int = 60) -> str:
    """Return the `repr()` on one line, cut in the middle; a `repr()` that raises is told, not raised."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr() raised {type(error).__name__}>"
    return shorten(" ".join(text.split()), limit)


def shorten(text: str, limit: int) -> str:
    """Cut a text in the middle."""
    if len(text) <= limit:
        return text
    head = (limit - 3) * 2 // 3
    return f"{text[:head]}...{text[len(text) - (limit - 3 - head) :]}"


def show_arguments(args: Iterable[object], kwargs: Mapping[str, object]) -> str:
    """Return arguments as they were written in the call."""
    return ", ".join([*map(show, args), *(f"{name}={show(value)}" for name, value in kwargs.items())])


def show_error(error: BaseException | None, limit: int = 120) -> str:
    """Return type and message on one line."""
    if error is None:
        return ""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "<str() raised>"
    return shorten(f"{type(error).__name__}: {text}" if text else type(error).__name__, limit)


def show_where(where: str) -> str:
    """Return `file:line` relative to the current directory, if it is below that."""
    path, _, line = where.rpartition(":")
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return where
    return where if relative.startswith("..") else f"{relative}:{line}"


def function_name(func: Callable[..., Any]) -> str:
    """Return what a callable is called, as tasks-core names its task."""
    while isinstance(func, partial):
        func = func.func
    name = getattr(func, "__qualname__", None) or type(func).__qualname__
    return str(name).rsplit("<locals>.", maxsplit=1)[-1]


def number_of(number: int, noun: str) -> str:
    """Return `1 task`, `2 tasks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

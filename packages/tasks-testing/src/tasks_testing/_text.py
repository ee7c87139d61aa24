"""Values, names and places as short text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping


def show(value: object, limit: int = 60) -> str:
    """Return the `repr()` of a value on one line; if `repr()` raises, return a text that names the exception."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr() raised {type(error).__name__}>"
    return shorten(" ".join(text.split()), limit)


def shorten(text: str, limit: int) -> str:
    """Cut a text in the middle, down to *limit* characters."""
    if len(text) <= limit:
        return text
    head = (limit - 3) * 2 // 3
    return f"{text[:head]}...{text[len(text) - (limit - 3 - head) :]}"


def show_arguments(args: Iterable[object], kwargs: Mapping[str, object]) -> str:
    """Return arguments as a call has them between its parentheses."""
    return ", ".join([*map(show, args), *(f"{name}={show(value)}" for name, value in kwargs.items())])


def show_error(error: BaseException | None, limit: int = 120) -> str:
    """Return the type and the message of an exception on one line."""
    if error is None:
        return ""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "<str() raised>"
    return shorten(f"{type(error).__name__}: {text}" if text else type(error).__name__, limit)


def show_where(where: str) -> str:
    """Return a `file:line` relative to the current directory, unless it is outside of that directory."""
    path, _, line = where.rpartition(":")
    try:
        relative = os.path.relpath(path)
    except ValueError:  # on Windows there is no relative path to another drive
        return where
    return where if relative.startswith("..") else f"{relative}:{line}"


def number_of(number: int, noun: str) -> str:
    """Return `1 task`, `2 tasks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

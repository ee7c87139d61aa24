"""What the value of an option may be, and the error for a value that it may not be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import CO_VARARGS
from types import FunctionType
from typing import Any, NoReturn

from tasks_core.exceptions import InvalidConfigError


@dataclass(frozen=True, slots=True)
class Rule:
    """
    The values that an option allows.

    Args:
        allows: Returns whether a value is allowed.

        text: Completes the sentence "`option` must be ...", with an example.
    """

    allows: Callable[[Any], bool]
    text: str

    def check(self, option: str, value: object) -> None:
        """Raise `InvalidConfigError` if *value* is not allowed."""
        if not self.allows(value):
            self.refuse(option, value)

    def refuse(self, option: str, value: object, where: str = "") -> NoReturn:
        """
        Raise for a value that is not allowed.

        Raises:
            InvalidConfigError: it names the option, the value and what is allowed. *where*, a name with an opening
                parenthesis such as `"retry("`, is put before the option.
        """
        end = ")" if where else ""
        raise InvalidConfigError(f"{where}{option}={show(value)}{end}: {option} must be {self.text}")


def must_be(allows: Callable[[Any], bool], text: str) -> dict[str, Rule]:
    """Return the metadata that gives a field of a dataclass its rule; `check_fields()` enforces it."""
    return {"rule": Rule(allows, text)}


def check_fields(instance: Any, where: str) -> None:
    """
    Check every field of a dataclass against its rule.

    Raises:
        InvalidConfigError: a value is not allowed.
        KeyError: a field was declared without a rule.
    """
    for declared in fields(instance):
        rule, value = declared.metadata["rule"], getattr(instance, declared.name)
        if not rule.allows(value):
            rule.refuse(declared.name, value, where)


def is_seconds(value: object, *, zero: bool) -> bool:
    """Return whether *value* is a usable length of time: a number, not NaN, positive (or zero, if *zero* is true)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        seconds = float(value)
    except OverflowError:  # a whole number of several hundred digits
        return False
    return seconds > 0 or (zero and seconds == 0)


def is_finite_seconds(value: object) -> bool:
    """Return whether *value* is a number of seconds, 0 or more, and not infinite."""
    return is_seconds(value, zero=True) and value != math.inf


def is_count(value: object) -> bool:
    """Return whether *value* is a whole number, 1 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_text(value: object) -> bool:
    """Return whether *value* is a text that is not empty."""
    return isinstance(value, str) and value != ""


def is_stored_text(value: object) -> bool:
    """Return whether *value* is a text of 1 to 500 characters that PostgreSQL can store."""
    if not isinstance(value, str) or not 1 <= len(value) <= 500 or "\0" in value:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


def is_handler(value: object) -> bool:
    """Return whether *value* can be called with a task; `retry` in place of `retry()` cannot."""
    if type(value) is FunctionType:
        code = value.__code__
        return code.co_argcount > 0 or bool(code.co_flags & CO_VARARGS)
    return callable(value)


def show(value: object) -> str:
    """Show plain values as they are and all others by their type, because their repr may contain a secret."""
    plain = value is None or isinstance(value, (str, int, float, bool))
    try:
        return repr(value) if plain else f"<{type(value).__qualname__}>"
    except ValueError:  # a whole number of more digits than Python converts to text
        return f"<{type(value).__qualname__}>"

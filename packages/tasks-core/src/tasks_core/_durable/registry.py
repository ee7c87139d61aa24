"""The durable functions of a process, by the names that another process knows them by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks_core.exceptions import InvalidConfigError, UnknownTaskError

if TYPE_CHECKING:
    from .function import DurableFunction


class Registry:
    """The durable functions of a process, by name."""

    __slots__ = ("_functions",)

    def __init__(self) -> None:
        self._functions: dict[str, DurableFunction[..., Any, Any]] = {}

    def __len__(self) -> int:
        return len(set(self._functions.values()))

    def add(self, function: DurableFunction[..., Any, Any]) -> None:
        """Register a function. A function that is defined again, as by reloading a module, replaces the old one."""
        for name in (function.name, *function.aliases):
            other = self._functions.get(name)
            if other is not None and _place(other) != _place(function):
                raise InvalidConfigError(
                    f"durable: the name {name!r} belongs to {_place(other)} already; {_place(function)} wants it too"
                )
        for name in (function.name, *function.aliases):
            self._functions[name] = function

    def get(self, name: str) -> DurableFunction[..., Any, Any]:
        """
        Return the function that is registered under a name.

        Raises:
            UnknownTaskError: no function has the name. Nothing is ever imported because of a name.
        """
        try:
            return self._functions[name]
        except KeyError:
            raise UnknownTaskError(f"No durable function is registered as {name!r} in this process") from None


registry = Registry()
"""All durable functions of the process."""


def _place(function: DurableFunction[..., Any, Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"

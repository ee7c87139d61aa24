"""
Tests for background tasks: record them, drain them, move time, and say what went wrong.

Start at `_recorder.py`. Names are imported when they are asked for: pytest imports this package in every run, also in
those that have no background tasks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._clock import VirtualClock

__all__ = ("VirtualClock",)

_HOMES = {
    "VirtualClock": "_clock",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

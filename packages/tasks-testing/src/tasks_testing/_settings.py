"""The settings of a recording."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, get_args

from . import _refusals

Mode: TypeAlias = Literal["spy", "hold"]
"""`spy`: tasks run as in production. `hold`: tasks start when `release()` is called."""

Check: TypeAlias = Literal["error", "ignore"]
"""Whether a finding at the end of a test fails the test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    The settings of one recording; `record_tasks()` describes them.

    Raises:
        ValueError: A setting has a value that is not allowed.
    """

    mode: Mode = "spy"
    virtual_time: bool = False
    strict: bool = False
    failures: Check = "error"
    leaks: Check = "error"
    timeout: float = 5.0

    def __post_init__(self) -> None:
        _check("mode", self.mode, get_args(Mode))
        _check("virtual_time", self.virtual_time, (True, False))
        _check("strict", self.strict, (True, False))
        _check("failures", self.failures, get_args(Check))
        _check("leaks", self.leaks, get_args(Check))
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, (int, float)) or not self.timeout > 0:
            raise ValueError(_refusals.wrong_timeout(self.timeout))


NAMES = tuple(field.name for field in fields(Settings))


def in_debugger() -> bool:
    """Return whether a debugger is attached, because no timeout makes sense while a person steps through code."""
    monitoring = getattr(sys, "monitoring", None)
    if monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID):
        return True
    # A trace function alone says nothing: coverage sets one as well.
    module = getattr(type(sys.gettrace()), "__module__", "") + getattr(sys.gettrace(), "__module__", "")
    return any(debugger in module for debugger in ("bdb", "pdb", "pydevd"))


def _check(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(_refusals.wrong_setting(name, allowed, value))

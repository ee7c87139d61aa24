"""Which thread a suspended coroutine waits for, if that can be known."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import CodeType
from typing import Any

import anyio.to_thread

# What a coroutine awaits while a thread works for it. Both take the function as their parameter `func`.
_TO_THREAD: frozenset[CodeType] = frozenset((anyio.to_thread.run_sync.__code__, asyncio.to_thread.__code__))


def function_in_thread(coroutine: object) -> Callable[..., object] | None:
    """
    Return the function that a thread runs for a suspended coroutine, or `None` if none is known.

    Known are `anyio.to_thread.run_sync()` and `asyncio.to_thread()`, directly or through coroutines that call them.
    """
    with suppress(Exception):  # an iterator of the application may answer anything when it is asked for an attribute
        while coroutine is not None:
            frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
            if frame is not None and frame.f_code in _TO_THREAD:
                func: Callable[..., object] | None = frame.f_locals.get("func")
                return func
            coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return None


def may_run_in_a_thread(func: Callable[..., Any]) -> bool:
    """Return whether some thread is inside *func*; true also where that cannot be known, because it is no Python."""
    while isinstance(func, partial):
        func = func.func
    code = getattr(getattr(func, "__func__", func), "__code__", None)
    if not isinstance(code, CodeType):
        return True
    for innermost in sys._current_frames().values():
        frame = innermost
        while frame is not None:
            if frame.f_code is code:
                return True
            frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    return False

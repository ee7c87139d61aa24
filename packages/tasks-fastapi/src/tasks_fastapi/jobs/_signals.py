"""
Noticing that the process is asked to end, before the server does anything about it.

A server that waits for open connections, as uvicorn does, sends the lifespan no message before they are closed. So
streams that wait for that message would keep the server waiting for them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any
from weakref import WeakSet

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Leaving:
    """What is called when a signal arrives."""

    __slots__ = ("__weakref__", "_leave")

    def __init__(self, leave: Callable[[], object]) -> None:
        self._leave = leave

    def __call__(self) -> None:
        self._leave()


_all: WeakSet[Leaving] = WeakSet()


class _Handler:
    """Stands in front of the handler that the server has set."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> Any:
        # In a thread, because this runs in the middle of the event loop; and from a thread, the event loop is woken.
        threading.Thread(target=_leave_all, name="tasks job streams", daemon=True).start()
        return self.handler(number, frame)


def _leave_all() -> None:
    for leaving in list(_all):
        leaving()


def call_on_signal(leaving: Leaving) -> None:
    """
    Call *leaving* from a thread when the process gets SIGTERM or SIGINT; what the server does about it stays as it is.

    Has no effect in a thread other than the main thread, and for a signal that no Python function handles.
    """
    _all.add(leaving)
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler) and not isinstance(handler, (_Handler, signal.Handlers)):
            signal.signal(number, _Handler(handler))


def stop_calling(leaving: Leaving) -> None:
    """Undo `call_on_signal()`: with the last one, the handlers of the server are in their place again."""
    _all.discard(leaving)
    if _all or threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        # Else the event loop, which looks for its own handler at its end, would leave this one to the next program.
        if isinstance(handler := signal.getsignal(number), _Handler):
            signal.signal(number, handler.handler)

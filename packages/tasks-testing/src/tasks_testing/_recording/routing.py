"""Which recording a task belongs to, when several are active."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar


class Routed:
    """What a recording needs so that one of several can be chosen."""

    outer: Routed | None = None
    thread_id: int


_active: tuple[Routed, ...] = ()
_lock = threading.RLock()  # reentrant, because a finalizer may begin or end a recording while the lock is held
# Used only to decide between recordings side by side. It cannot be the only source: a context variable that a fixture
# sets is not visible in every test that runs on an event loop.
_current: ContextVar[Routed | None] = ContextVar("tasks_testing_recording", default=None)


def activate(recording: Routed) -> None:
    """Make a recording active, inside the recording of the caller if there is one."""
    with _lock:
        recording.outer = _enclosing()
        _change(lambda active: (*active, recording))
    _current.set(recording)


def deactivate(recording: Routed) -> None:
    """End the effect of `activate()`."""
    with _lock:
        _change(lambda active: tuple(other for other in active if other is not recording))
    if _current.get() is recording:
        _current.set(recording.outer)


def _change(change: Callable[[tuple[Routed, ...]], tuple[Routed, ...]]) -> None:
    """Replace the active recordings; again, if a finalizer has replaced them meanwhile."""
    global _active
    while True:
        before = _active
        after = change(before)
        if _active is before:
            _active = after
            return


def owners() -> tuple[Routed, ...]:
    """
    Return the recording for what the caller does now; several if that cannot be decided.

    Of nested recordings it is the innermost. Of recordings side by side, in several threads, it is the one that the
    context of the caller comes from.
    """
    active = _active
    if len(active) < 2:
        return active
    enclosing = {id(recording.outer) for recording in active}
    innermost = tuple(recording for recording in active if id(recording) not in enclosing)
    current = _current.get()
    mine = tuple(recording for recording in innermost if _is_inside(recording, current))
    return mine if len(mine) == 1 else innermost


def _enclosing() -> Routed | None:
    current = _current.get()
    if current in _active:
        return current
    here = threading.get_ident()
    return next((recording for recording in reversed(_active) if recording.thread_id == here), None)


def _is_inside(recording: Routed | None, other: Routed | None) -> bool:
    while recording is not None and other is not None:
        if recording is other:
            return True
        recording = recording.outer
    return False

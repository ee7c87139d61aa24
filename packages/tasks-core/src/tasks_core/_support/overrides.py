"""Things that are in force until they are closed: observers, clocks, engines."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Subscription:
    """What `observe()` returns: `close()` it, or use it as a context manager, to end it."""

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[], None]) -> None:
        self._end: Callable[[], None] | None = end

    def close(self) -> None:
        """End the subscription; closing it again does nothing. An event that is being delivered may still arrive."""
        end, self._end = self._end, None
        if end is not None:
            end()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class OverrideStack(Generic[T]):
    """
    Items that are in force for the whole process, the latest last; from any thread.

    An item that was added twice has two subscriptions, and stays until both are closed. The tuple `items` is replaced
    and never changed, so that a reader needs no lock.

    Args:
        changed: Called with the items after each change, while the lock is held.
    """

    __slots__ = ("_changed", "_entries", "_lock", "items")

    items: tuple[T, ...]

    def __init__(self, changed: Callable[[tuple[T, ...]], None] | None = None) -> None:
        self._changed = changed
        self._entries: tuple[list[T], ...] = ()  # a list of one item each, which has an identity of its own
        self._lock = RLock()  # reentrant, because a finalizer may close a subscription while the lock is held
        self.items = ()

    def add(self, item: T) -> Subscription:
        """Put *item* in force until the returned subscription is closed."""
        entry = [item]
        with self._lock:
            self._replace((*self._entries, entry))
        return Subscription(lambda: self._remove(entry))

    def _remove(self, entry: list[T]) -> None:
        with self._lock:
            self._replace(tuple(other for other in self._entries if other is not entry))

    def _replace(self, entries: tuple[list[T], ...]) -> None:
        self._entries = entries
        self.items = tuple(item for (item,) in entries)
        if self._changed is not None:
            self._changed(self.items)

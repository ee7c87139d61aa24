"""Something that is in force until it is closed."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


class Subscription:
    """What `observe()` and `override_clock()` return: `close()` it, or use it as a context manager, to end it."""

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[], None]) -> None:
        self._end: Callable[[], None] | None = end

    def close(self) -> None:
        """End the subscription; closing it again does nothing. An event being delivered may still arrive."""
        end, self._end = self._end, None
        if end is not None:
            end()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def without(items: tuple[T, ...], item: T) -> tuple[T, ...]:
    """Take the last occurrence of *item* out; what was subscribed twice is still subscribed once."""
    last = max(index for index, other in enumerate(items) if other is item)
    return items[:last] + items[last + 1 :]

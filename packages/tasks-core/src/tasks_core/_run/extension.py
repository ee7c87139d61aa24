"""What a kind of task may add to a scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tasks_core._loop.loop import Loop
    from tasks_core._scheduler import TaskScheduler


class Extension(Protocol):
    """Lives as long as a scheduler: opened before the first task starts, closed after the last has ended."""

    async def open(self, loop: Loop) -> None:
        """Acquire what the tasks need; what this raises, entering the scheduler raises."""
        ...

    async def close(self) -> None:
        """Release it; called on the event loop of the scheduler."""
        ...


MakeExtension = Callable[["TaskScheduler", Mapping[str, Any]], "Extension | None"]
"""Takes a new scheduler and all its options; returns `None` if they ask for nothing."""

extensions: list[MakeExtension] = []
"""What is asked for each new scheduler. A room that stands above the scheduler appends to it when it is imported."""

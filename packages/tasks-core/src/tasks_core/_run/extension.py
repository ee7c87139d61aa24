"""What a kind of task may add to a scheduler."""

from __future__ import annotations

from typing import Protocol

from tasks_core._loop.loop import Loop


class Extension(Protocol):
    """Lives as long as a scheduler: opened before the first task starts, closed after the last has ended."""

    async def open(self, loop: Loop, brief: bool) -> None:
        """
        Acquire what the tasks need; what this raises, entering the scheduler raises.

        *brief*: the scheduler lives as long as a request, so that a line for each of them is too much.
        """
        ...

    async def close(self) -> None:
        """Release it; called on the event loop of the scheduler."""
        ...

"""What several processes did, in the order in which they did it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import anyio


class Event(NamedTuple):
    """One line of the log."""

    pid: int
    name: str


class EventLog:
    """
    A file that all write to by appending whole lines: the order of the lines is the order of the events.

    Both sides may wait for an event of the other.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, name: str) -> None:
        os.write(self._descriptor, f"{os.getpid()} {name}".replace("\n", "|").encode() + b"\n")

    def clear(self) -> None:
        os.truncate(self._path, 0)

    def close(self) -> None:
        os.close(self._descriptor)

    def events(self) -> list[Event]:
        whole_lines = self._path.read_text().split("\n")[:-1]
        return [Event(int(pid), name) for pid, _, name in (line.partition(" ") for line in whole_lines)]

    def names(self) -> list[str]:
        return [event.name for event in self.events()]

    def matching(self, text: str) -> list[str]:
        return [name for name in self.names() if text in name]

    async def noted(self, name: str) -> None:
        """Return when the event is there."""
        while name not in self.names():
            await anyio.sleep(0.01)

    def wait_for(self, name: str, timeout: float = 15.0) -> Event:
        """Block until the event is there; fail with the whole log if it does not come."""
        self.wait_until(lambda: name in self.names(), repr(name), timeout)
        return next(event for event in self.events() if event.name == name)

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = 15.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come within {timeout:g} s. {self}")
            time.sleep(0.01)

    def assert_order(self, *expected: str) -> None:
        """All of these happened, once each, and in this order; whatever else happened in between."""
        names = self.names()
        if [name for name in names if name in expected] != list(expected):
            raise AssertionError(f"Expected in this order: {', '.join(map(repr, expected))}. {self}")

    def __str__(self) -> str:
        return "The log:\n" + "\n".join(f"  {event.pid} {event.name}" for event in self.events())

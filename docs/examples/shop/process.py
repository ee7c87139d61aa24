"""Starts the shop under uvicorn in a process of its own, reads its output and stops it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from .settings import Settings
from .timeline import Event, Timeline, read_events, timelines

EXAMPLES = Path(__file__).parent.parent


async def until(condition: Callable[[], object], seconds: float = 60) -> bool:
    """Wait for a condition to become true; return whether it did in time."""
    deadline = time.monotonic() + seconds
    # The condition becomes true in another process, which cannot set an event of this one
    while not (fulfilled := condition()) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return bool(fulfilled)


class ShopProcess:
    """A running shop. Made by `start_shop()`."""

    def __init__(self, process: Process, record: Path) -> None:
        self._process = process
        self._record = record
        self.output: list[str] = []
        """The lines that the process has printed."""

    @property
    def url(self) -> str | None:
        """The address of the shop; `None` until it listens."""
        lines = (line.split() for line in self.output if "Uvicorn running on" in line)
        return next((word for words in lines for word in words if word.startswith("http://")), None)

    @property
    def exit_code(self) -> int | None:
        """The exit status of the process; `None` while it runs."""
        return self._process.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        self._process.send_signal(number)

    async def read_output(self) -> None:
        """Collect what the process prints, until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.output.append(line.decode().rstrip())
        await self._process.wait()

    def events(self) -> list[Event]:
        """Return what the shop has recorded so far."""
        return read_events(self._record)

    def latest(self, method_and_path: str) -> Timeline:
        """Return the timeline of the latest of these requests, which may still run."""
        found = [line for line in timelines(self.events()) if line.title.startswith(f"{method_and_path} ")]
        return found[-1] if found else Timeline()


@asynccontextmanager
async def start_shop(settings: Settings) -> AsyncIterator[ShopProcess]:
    """
    Start the shop on a free port, wait until it is up, and stop it when the block ends.

    Raises:
        RuntimeError: the shop did not start; the message has its output.
    """
    command = ["-m", "uvicorn", "--app-dir", str(EXAMPLES), "shop.app:app", "--port", "0", "--no-access-log"]
    environment = os.environ | settings.as_environment()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=environment, stdout=PIPE, stderr=STDOUT
    )
    shop = ShopProcess(process, settings.timeline)
    reading = asyncio.create_task(shop.read_output())
    try:
        if not await until(lambda: shop.url or shop.exit_code is not None) or shop.url is None:
            raise RuntimeError("\n".join(["The shop did not start. It printed:", *shop.output]))
        yield shop
    finally:
        if shop.exit_code is None:
            process.terminate()
            if not await until(lambda: shop.exit_code is not None, seconds=10):
                process.kill()
        await reading


@asynccontextmanager
async def start_worker(settings: Settings) -> AsyncIterator[Process]:
    """Start a worker for durable tasks, and stop it when the block ends."""
    command = ["-m", "tasks_core", "worker", "shop.payments:engine"]
    environment = os.environ | settings.as_environment()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=EXAMPLES, env=environment, stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        await process.wait()

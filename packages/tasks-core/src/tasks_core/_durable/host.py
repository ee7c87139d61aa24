"""Which engine is in force for a scheduler, and entering and leaving it together with the scheduler."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio

from tasks_core._loop.loop import Loop
from tasks_core._scheduler import TaskScheduler, extensions
from tasks_core._support.log import logger
from tasks_core._support.overrides import OverrideStack, Subscription
from tasks_core._task import NativeTask
from tasks_core.exceptions import EngineUnavailableError

from .engine import Engine, EngineFallback
from .memory import MemoryEngine

if TYPE_CHECKING:
    from tasks_core._run.runner import Runner

_overrides: OverrideStack[Engine] = OverrideStack()


def override_engine(engine: Engine) -> Subscription:
    """
    Submit all durable calls of this process to *engine*, whatever engine their scheduler has, if any.

    For tests. In force for each call made until the returned subscription is closed; the latest override wins.
    Schedulers that start meanwhile do not enter their own engine.
    """
    return _overrides.add(engine)


def engine_in_force(own: Engine | None) -> Engine | None:
    """Return the engine for a call on a scheduler whose own engine is *own*."""
    return _overrides.items[-1] if _overrides.items else own


def engine_overridden() -> bool:
    """Return whether `override_engine()` is in force."""
    return bool(_overrides.items)


class EngineHost:
    """Keeps an engine entered as long as a scheduler lives, in one native task."""

    __slots__ = ("_closed", "_error", "_native", "_opened", "_stop", "engine", "engine_fallback")

    def __init__(self, engine: Engine, engine_fallback: EngineFallback) -> None:
        self.engine = engine
        self.engine_fallback = engine_fallback
        self._native: NativeTask | None = None
        self._error: BaseException | None = None

    async def open(self, loop: Loop, brief: bool) -> None:
        """Enter the engine, unless it is overridden; raise what entering it raises."""
        if engine_overridden():
            return
        self._opened, self._stop, self._closed = anyio.Event(), anyio.Event(), anyio.Event()
        self._native = loop.spawn(None, "tasks engine", self._hold())
        try:
            await self._opened.wait()
        except BaseException:
            self._native.cancel()
            raise
        if self._error is not None:
            self._native = None
            raise self._error

    async def _hold(self) -> None:
        try:
            async with self.engine:
                self._opened.set()
                await self._stop.wait()
        except Exception as error:
            if self._opened.is_set():
                logger.exception("The engine %s could not be left", self.engine.name)
            self._error = error
        except anyio.get_cancelled_exc_class():
            self._error = EngineUnavailableError("the event loop is being stopped")
            raise
        finally:
            self._opened.set()
            self._closed.set()

    async def close(self) -> None:
        """Leave the engine."""
        if self._native is not None:
            self._stop.set()
            await self._closed.wait()


class MemoryHost(EngineHost):
    """Has durable tasks run in memory, because there is no engine."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(MemoryEngine(), "error")

    async def open(self, loop: Loop, brief: bool) -> None:
        if not engine_overridden():
            logger.log(
                logging.DEBUG if brief else logging.WARNING,
                "There is no engine, and without_engine='memory': "
                "durable tasks run in this process and are lost with it",
            )
        await super().open(loop, brief)


def _make_host(options: Mapping[str, Any]) -> EngineHost | None:
    if options["engine"] is not None:
        return EngineHost(options["engine"], options["engine_fallback"])
    return MemoryHost() if options["without_engine"] == "memory" else None


extensions.append(_make_host)


def host_of(runner: Runner) -> EngineHost | None:
    """Return the host of the engine that the scheduler was given, if it was given one."""
    hosts = (extension for extension in runner.extensions if isinstance(extension, EngineHost))
    return next(hosts, None)


def engine_of(scheduler: TaskScheduler) -> Engine | None:
    """Return what durable tasks are submitted to: the scheduler's engine, unless `override_engine()` is in force."""
    host = host_of(scheduler._runner)
    return engine_in_force(None if host is None else host.engine)

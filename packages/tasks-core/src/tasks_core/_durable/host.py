"""Entering and leaving the engine together with a scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import ref

import anyio

from tasks_core._loop.loop import Loop
from tasks_core._run.extension import extensions
from tasks_core._support.log import logger
from tasks_core._task import NativeTask
from tasks_core.exceptions import EngineUnavailableError

from .engine import Engine, EngineFallback, engine_in_force, engine_overridden

if TYPE_CHECKING:
    from tasks_core._run.runner import Runner
    from tasks_core._scheduler import TaskScheduler


class EngineHost:
    """Keeps an engine entered for as long as a scheduler lives, in one native task."""

    __slots__ = ("_closed", "_error", "_native", "_opened", "_stop", "engine", "engine_fallback", "find_scheduler")

    def __init__(
        self, engine: Engine, engine_fallback: EngineFallback, find_scheduler: Callable[[], TaskScheduler | None]
    ) -> None:
        self.engine = engine
        self.engine_fallback = engine_fallback
        self.find_scheduler = find_scheduler
        self._native: NativeTask | None = None
        self._error: BaseException | None = None

    async def open(self, loop: Loop) -> None:
        """Enter the engine, unless another one takes its place; raise what that raises."""
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


def _make_host(scheduler: TaskScheduler, options: Mapping[str, Any]) -> EngineHost | None:
    if options["engine"] is None:
        return None
    return EngineHost(options["engine"], options["engine_fallback"], ref(scheduler))


extensions.append(_make_host)


def host_of(runner: Runner) -> EngineHost | None:
    """Return the host of the engine that the scheduler was given, if it was given one."""
    hosts = (extension for extension in runner.extensions if isinstance(extension, EngineHost))
    return next(hosts, None)


def engine_of(scheduler: TaskScheduler) -> Engine | None:
    """Return what durable tasks are submitted to: the scheduler's engine, unless `override_engine()` is in force."""
    host = host_of(scheduler._runner)
    return engine_in_force(None if host is None else host.engine)

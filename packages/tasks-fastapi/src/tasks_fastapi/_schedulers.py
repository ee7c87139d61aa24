"""The schedulers of an application: one for each lifespan that runs, and one for each request without a lifespan."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypedDict
from weakref import WeakKeyDictionary, WeakSet

from starlette.applications import Starlette
from starlette.types import Scope
from tasks_core import SchedulerOptions, ShutdownOptions, TaskScheduler, Worker
from tasks_core.engines import Engine, engine_of
from tasks_core.frameworks import Telemetry, mark_as_brief
from tasks_core.types import TelemetryConfig

logger = logging.getLogger("tasks_fastapi")


class WorkerSlots(TypedDict):
    """How many durable tasks a worker runs at once: one of the two."""

    concurrency: int | None
    queues: Mapping[str, int] | None


class AppSchedulers:
    """
    Creates the schedulers of one application, and finds the one that a request belongs to.

    An application has one lifespan after another in tests, and several at the same time behind two servers in one
    process or in nested test clients. Each has a scheduler of its own.
    """

    __slots__ = (
        "_created",
        "_logged",
        "_options",
        "_running",
        "_slots",
        "_state_key",
        "telemetry",
        "worker_ended",
    )

    def __init__(
        self, options: SchedulerOptions, telemetry: Telemetry, worker_concurrency: int | Mapping[str, int] | None
    ) -> None:
        TaskScheduler.check_options(**options)
        self._options = options
        self._slots: WorkerSlots | None = None
        if worker_concurrency is not None:
            both = (None, worker_concurrency) if isinstance(worker_concurrency, Mapping) else (worker_concurrency, None)
            self.set_worker_slots(*both)
        self.telemetry = telemetry
        # Called when the worker of this process has ended, with what it raised.
        self.worker_ended: Callable[[Exception | None], object] = lambda _error: None
        self._created: WeakSet[TaskScheduler] = WeakSet()
        self._running: dict[TaskScheduler, str] = {}  # those of lifespans, and the names of their event loops
        self._state_key = f"tasks_fastapi:{id(self):x}"  # another application may have the same lifespan state
        self._logged: set[bool] = set()  # for which of the two reasons why requests are bound to their tasks

    def create(self, grace_period: float | None = None) -> TaskScheduler:
        """Return a scheduler with the options of `add_tasks()`; *grace_period* makes it one for a request."""
        options = self._options.copy()
        if grace_period is not None:
            options["grace_period"] = grace_period
            options["slow_callback_duration"] = None  # no thread for each request
            options["registry"] = None  # what lives as long as the application does not start with each request
        scheduler = TaskScheduler(**options)
        if grace_period is not None:
            mark_as_brief(scheduler)
        self._created.add(scheduler)
        return scheduler

    def created(self, scheduler: TaskScheduler | None) -> bool:
        """Return whether *scheduler* is one of this application."""
        return scheduler is not None and scheduler in self._created

    @contextmanager
    def running(self, scheduler: TaskScheduler, scope: Scope) -> Iterator[None]:
        """Let the requests of a lifespan find its scheduler while the block runs."""
        self._running[scheduler] = _name_event_loop()
        state = scope.get("state")
        if state is not None:
            state[self._state_key] = scheduler  # the server copies the state into the scope of each request
        try:
            yield
        finally:
            del self._running[scheduler]

    def find(self, scope: Scope) -> TaskScheduler | None:
        """
        Return the scheduler of the lifespan that serves a request, or `None` if that has none on this event loop.

        A scheduler that drains is returned as well, because a request that the server still accepts is part of the
        drain. After the end of its lifespan, the closed scheduler refuses the tasks of the request: the resources that
        they need are closed.
        """
        state = scope.get("state")
        if state is not None:
            scheduler: TaskScheduler | None = state.get(self._state_key)
            if scheduler is not None and scheduler.on_event_loop():
                return scheduler
        if len(self._running) == 1:  # the usual case, without a list
            (only,) = self._running
            return only if only.on_event_loop() else None
        here = self.on_event_loop()
        return here[-1] if here else None

    def on_event_loop(self) -> list[TaskScheduler]:
        """Return the schedulers of lifespans on the running event loop, those that drain first."""
        here = [scheduler for scheduler in self._running if scheduler.on_event_loop()]
        return sorted(here, key=lambda scheduler: not scheduler.stopping.is_set())

    @property
    def lifespans(self) -> list[TaskScheduler]:
        """The schedulers of all lifespans that run."""
        return list(self._running)

    @property
    def engine(self) -> Engine | None:
        """The engine that `add_tasks()` was given, if it was given one."""
        return self._options.get("engine")

    @property
    def works(self) -> bool:
        """Whether this process runs durable tasks."""
        return self._slots is not None

    def set_worker_slots(self, concurrency: int | None, queues: Mapping[str, int] | None) -> None:
        """Replace the `worker_concurrency` of `add_tasks()`; the arguments are those of `Worker`."""
        Worker.check_options(concurrency=concurrency, queues=queues)
        self._slots = {"concurrency": concurrency, "queues": queues}

    def measure_queues(self, scheduler: TaskScheduler) -> None:
        """Take turns in measuring the queues of the engine, also where no worker runs: its death must be seen."""
        measure = self.telemetry.queue_gauges(engine_of(scheduler))
        if measure is not None:
            scheduler.service(measure, name="queue gauges")

    def start_worker(self, scheduler: TaskScheduler) -> None:
        """Run durable tasks in this process as well, if `worker_concurrency` asks for it."""
        engine = self._options.get("engine")
        if self._slots is not None and engine is not None and engine_of(scheduler) is engine:
            bounds: ShutdownOptions = {}
            if "grace_period" in self._options:
                bounds["grace_period"] = self._options["grace_period"]
            if "shield_timeout" in self._options:
                bounds["shield_timeout"] = self._options["shield_timeout"]
            provider = self._options.get("provider")
            telemetry: TelemetryConfig = {**self.telemetry.config, "queues": False}  # measure_queues() does that
            worker = Worker(engine, **self._slots, provider=provider, telemetry=telemetry, **bounds)
            scheduler.task(name="durable worker", shield=True).schedule(self._run_worker, worker, scheduler)

    async def _run_worker(self, worker: Worker, scheduler: TaskScheduler) -> None:
        error = None
        try:
            await worker.run(scheduler.stopping)
        except Exception as raised:
            error = raised
            raise
        finally:
            self.worker_ended(error)
            del error  # the frame is in its traceback: a cycle

    def log_bound_request(self) -> None:
        """Log once why a request waits for its own tasks."""
        another_loop = bool(self._running)
        if another_loop in self._logged:
            return
        self._logged.add(another_loop)
        if another_loop:
            logger.warning(
                "A request runs on %s, and the scheduler of the application on %s: tasks are bound to their requests, "
                "and a request ends when its tasks have ended. Run the lifespan and the requests on one event loop",
                _name_event_loop(),
                ", ".join(dict.fromkeys(self._running.values())),
            )
        else:
            logger.info(
                "No lifespan of the application is running: tasks are bound to their requests, "
                "and a request ends when its tasks have ended"
            )


def _name_event_loop() -> str:
    thread = threading.current_thread().name
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return f"the event loop of trio in {thread}"
    return f"{type(loop).__qualname__} {id(loop):#x} in {thread}"


_installed: WeakKeyDictionary[Starlette, AppSchedulers] = WeakKeyDictionary()


def install(app: Starlette, schedulers: AppSchedulers) -> None:
    """Store the schedulers of an application. Not in `app.state`, which the application may replace."""
    _installed[app] = schedulers


def schedulers_of(app: Starlette) -> AppSchedulers | None:
    """Return the schedulers of an application; `None` if `add_tasks(app)` was not called."""
    return _installed.get(app)


def schedulers_on_event_loop() -> list[TaskScheduler]:
    """Return the schedulers of all lifespans of all applications on the running event loop."""
    return [scheduler for schedulers in list(_installed.values()) for scheduler in schedulers.on_event_loop()]

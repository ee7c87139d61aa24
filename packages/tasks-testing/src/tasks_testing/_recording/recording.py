"""The observer that writes the record."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from math import inf
from typing import Any, cast

from tasks_core import Outcome, Task, TaskObserver, TaskPhase, TaskState, observe
from tasks_core.testing import override_clock, release_task

from tasks_testing._time.live_tasks import LiveTasks
from tasks_testing._time.monitor import Monitor, in_event_loop
from tasks_testing._time.sleep_queue import SleepQueue

from . import routing
from .call import Target, check_target
from .durable_run import DurableRun, run_of_next_task
from .record import EventKind, RecordedRequest, RecordedTask, State, TaskEvent, is_meant

HELD_TO_THE_END = "held until test end"
PARKED_TO_THE_END = "it waited for virtual time when the test ended"
TOO_LATE = "its app shut down, and did not wait for that long"

_ENDS: dict[TaskState, EventKind] = {
    TaskState.SUCCEEDED: "succeeded",
    TaskState.FAILED: "failed",
    TaskState.CANCELLED: "cancelled",
    TaskState.DISCARDED: "dropped",
}

next_seq = count(1).__next__
"""Numbers what happens, over all recordings of the process."""


class Recording(TaskObserver):
    """
    Requests, tasks and events, in the order in which they came, and which of the tasks are live.

    A task belongs to the recording that was on when it was scheduled, and a request to the one that was on when it
    began; whatever happens to them later is noted there, and nowhere else.
    """

    outer: Recording | None = None

    def __init__(self) -> None:
        self.monitor: Monitor = Monitor()
        self.live: LiveTasks = LiveTasks()
        self.queue: SleepQueue = SleepQueue(self.monitor, self.live)
        self.tasks: list[RecordedTask[Any]] = []
        self.requests: list[RecordedRequest] = []
        self.events: list[TaskEvent] = []
        self.unattributed: list[str] = []
        self.virtual: bool = False
        self.auto: bool = False
        self.thread_id: int = threading.get_ident()
        self._by_handle: dict[int, RecordedTask[Any]] = {}
        self._by_origin: dict[int, RecordedRequest] = {}
        self._allowed: list[Target] = []
        self._too_late: list[Task[Any]] = []
        self._began = time.monotonic()
        self._subscriptions = ExitStack()

    # ---- on and off ----

    def start(self) -> None:
        routing.activate(self)
        self._subscriptions.enter_context(observe(self))

    def stop(self) -> None:
        """Let go of everything: tasks that only this recording could have moved on are cancelled."""
        routing.deactivate(self)
        for task in self.tasks:
            if task._held:
                self._give_up(task, HELD_TO_THE_END)
            elif self.queue.due_at(task.handle) is not None:
                self._give_up(task, PARKED_TO_THE_END)
        self._subscriptions.close()

    def make_time_virtual(self, *, auto: bool) -> None:
        """Take delays, retry pauses and timeouts from a clock that stands still."""
        self.auto = auto
        if not self.virtual:
            self.virtual = True
            self._subscriptions.enter_context(override_clock(self.queue))

    def clear(self) -> None:
        """Forget what has been recorded."""
        with self.monitor.lock:
            for events in (self.tasks, self.requests, self.events, self.unattributed):
                cast("list[Any]", events).clear()
            self._by_handle.clear()
            self._by_origin.clear()

    # ---- reading ----

    def find(self, handle: Task[Any]) -> RecordedTask[Any] | None:
        return self._by_handle.get(handle.id)

    def live_tasks(self) -> list[RecordedTask[Any]]:
        """Return the tasks that run, or will without anybody's doing."""
        with self.monitor.lock:
            return [task for handle in self.live if (task := self.find(handle)) is not None]

    def awaiting_their_phase(self) -> list[RecordedTask[Any]]:
        """Return the tasks that wait for a request which is being served to come to their phase."""
        with self.monitor.lock:
            if not self.requests_in_flight():
                return []
            return [
                task
                for task in self.tasks
                if task._progress == "scheduled" and not task.opened and task.request and not task.request.finished
            ]

    def requests_in_flight(self) -> list[RecordedRequest]:
        with self.monitor.lock:
            return [request for request in self._by_origin.values() if not request.finished]

    def parked(self) -> list[RecordedTask[Any]]:
        """Return the tasks that wait for virtual time to move on, and are to be waited for."""
        with self.monitor.lock:
            found = [self.find(handle) for handle in self.queue.parked()]
            return [task for task in found if task is not None and not task._allowed_to_run]

    def now(self) -> float:
        return self.queue.now() if self.virtual else time.monotonic() - self._began

    # ---- what the recorder does to tasks ----

    def _give_up(self, task: RecordedTask[Any], reason: str) -> None:
        with self.monitor.lock:
            self._end(task, "cancelled" if task.attempts else "dropped", reason)
        task.handle.cancel()

    def allow_running(self, target: Target) -> None:
        check_target(target)
        with self.monitor.lock:
            self._allowed.append(target)
            for task in self.tasks:
                self._let_run(task)
        self.monitor.changed()

    def _let_run(self, task: RecordedTask[Any]) -> None:
        if any(is_meant(task, target) for target in self._allowed):
            task._allowed_to_run = True
            self.live.remove(task.handle)

    def hold(self, task: RecordedTask[Any]) -> None:
        with self.monitor.lock:
            task._held = True
            task._progress = "held"
            self.live.rest(task.handle)
            self._note("held", task)

    def release(self, task: RecordedTask[Any]) -> None:
        with self.monitor.lock:
            task._released = True
            if not task._held:
                return
            task._held = False
            task._progress = "scheduled"
            self.live.wake(task.handle)
            self._note("released", task)
        release_task(task.handle)

    # ---- TaskObserver ----

    def task_scheduled(self, handle: Task[Any]) -> None:
        owners = routing.owners()
        if self not in owners:
            return
        with self.monitor.lock:
            run = run_of_next_task()
            if run is not None and run.task is not None:
                self._deliver_again(run.task, handle)
                return
            if len(owners) > 1:
                self.unattributed.append(f"{handle.name!r}, scheduled at {handle.where}")
            origin = None if handle.phase is None else handle.phase.origin
            request = self._request_of(origin) if hasattr(origin, "method") and hasattr(origin, "path") else None
            task = RecordedTask(len(self.tasks) + 1, next_seq(), handle, request, run)
            if run is not None:
                run.task = task
            if in_event_loop():
                task._loop_thread = threading.get_ident()
            self.tasks.append(task)
            self._by_handle[handle.id] = task
            self.live.add(handle)
            self._let_run(task)
            self._note("scheduled", task)

    def task_started(self, handle: Task[Any]) -> None:
        task = self.find(handle)
        if task is not None:
            with self.monitor.lock:
                task._progress = "running"
                task.attempts = handle.attempts
                task._loop_thread = threading.get_ident()
                self._note("started", task)

    def task_retrying(self, handle: Task[Any], exception: Exception, delay: float) -> None:
        task = self.find(handle)
        if task is not None:
            with self.monitor.lock:
                task._progress = "waiting"
                task.error = exception
                self._note("retried", task, error=exception, detail=f"in {delay:g} s{self._virtually}")

    def task_finished(self, handle: Task[Any]) -> None:
        task = self.find(handle)
        if task is not None and not task.terminal:
            with self.monitor.lock:
                task.error = handle.exception
                task._lost = handle.lost and not task._held and task._run is None
                if task._run is not None and handle.state is TaskState.FAILED:
                    pass  # whether there is another attempt is for the engine to say
                elif task._held and handle.state is TaskState.DISCARDED:
                    self._end(task, "dropped", HELD_TO_THE_END)
                elif handle in self._too_late:
                    task._lost = self.auto
                    self._end(task, "cancelled" if task.attempts else "dropped", TOO_LATE)
                else:
                    self._end(task, _ENDS[handle.state], handle.reason)
        self.queue.finished(handle)

    def attempt_failed(self, run: DurableRun, delay: float) -> None:
        """An attempt of a durable task has failed, and the engine will deliver it again."""
        assert run.task is not None, "what has failed was scheduled"
        with self.monitor.lock:
            run.task._progress = "waiting"
            self._note("retried", run.task, error=run.task.error, detail=f"in {delay:g} s (skipped)")

    def _deliver_again(self, task: RecordedTask[Any], handle: Task[Any]) -> None:
        self.live.remove(task.handle)
        task.handle = handle
        self._by_handle[handle.id] = task
        self.live.add(handle)
        self._let_run(task)
        self.monitor.changed()

    def run_ended(self, run: DurableRun) -> None:
        """A durable task is not delivered again; if its last attempt has failed, so has the task."""
        with self.monitor.lock:
            if run.task is not None and not run.task.terminal:
                self._end(run.task, "failed", None)

    def _end(self, task: RecordedTask[Any], kind: EventKind, reason: str | None) -> None:
        task._progress = cast("State", kind)
        task._held = False
        task.reason = reason
        self.live.remove(task.handle)
        self._note(kind, task, error=task.error if kind == "failed" else None, detail=reason or "")

    def phase_opened(self, phase: TaskPhase, outcome: Outcome) -> None:
        with self.monitor.lock:
            self.live.open(phase)
            request = self._by_origin.get(id(phase.origin))
            waiting = sum(task.handle.phase is phase and not task.terminal for task in self.tasks)
            if phase.name != "immediate" and (request or waiting):
                told = "" if outcome == "success" else f", for when={outcome!r}"
                self._add("phase_opened", request=request, phase=phase.name, detail=f"({waiting}){told}")
        self.monitor.changed()

    def phase_discarded(self, phase: TaskPhase, reason: str) -> None:
        with self.monitor.lock:
            self.live.open(phase)
        self.monitor.changed()

    def origin_event(self, origin: object, event: str) -> None:
        with self.monitor.lock:
            if event == "request_started" and self in routing.owners():
                self._request_of(origin)
            request = self._by_origin.get(id(origin))
            if request is None:
                return
            if event == "request_finished":
                request.finished = True
            self._add(cast("EventKind", event), request=request)
        self.monitor.changed()

    def shutdown_started(self, handles: Sequence[Task[Any]], grace_period: float) -> None:
        mine = [handle for handle in handles if self.find(handle) is not None]
        if self.virtual and mine:
            self.queue.finish(mine, self.queue.now() + grace_period if self.auto else -inf, self._too_late.append)

    # ---- writing ----

    def _request_of(self, origin: object) -> RecordedRequest:
        request = self._by_origin.get(id(origin))
        if request is None:
            request = self._by_origin[id(origin)] = RecordedRequest(len(self.requests), next_seq(), origin)
            self.requests.append(request)
        return request

    @property
    def _virtually(self) -> str:
        return " (virtual)" if self.virtual else ""

    def _note(
        self, kind: EventKind, task: RecordedTask[Any], *, error: BaseException | None = None, detail: str = ""
    ) -> None:
        event = self._add(
            kind, task=task, request=task.request, phase=task.phase, attempt=task.attempts, error=error, detail=detail
        )
        task._own_events.append(event)
        self.monitor.changed()

    def _add(self, kind: EventKind, **fields: Any) -> TaskEvent:
        event = TaskEvent(
            seq=next_seq(),
            at=time.monotonic() - self._began,
            clock=self.now(),
            kind=kind,
            thread=threading.current_thread().name,
            **fields,
        )
        self.events.append(event)
        return event

"""The observer that writes the record."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Any, cast

from tasks_core import Outcome, PhaseInfo, Service, Snooze, Task, TaskObserver, TaskState, observe
from tasks_core.testing import override_clock, release_task
from tasks_core.types import EmittedEvent

from tasks_testing import _refusals
from tasks_testing._closed_sessions import SessionWatch
from tasks_testing._time.live_tasks import LiveTasks
from tasks_testing._time.monitor import Monitor, Steps, Wait, in_event_loop
from tasks_testing._time.real_time import monotonic
from tasks_testing._time.sleep_queue import SleepQueue

from . import routing
from .call import Target, check_target
from .durable_run import DurableRun, run_of_next_task
from .order import ChosenOrder
from .record import EventKind, RecordedRequest, RecordedTask, State, TaskEvent, is_named_by

# How often one wait moves virtual time at most, because a task that schedules itself again would never end.
MOST_JUMPS = 1000

next_seq = count(1).__next__
"""Numbers the events of all recordings of the process."""


class EndlessError(Exception):
    """Virtual time has moved `MOST_JUMPS` times, and tasks still wait for it."""

    def __init__(self, tasks: Sequence[RecordedTask[Any]]) -> None:
        super().__init__()
        self.tasks = tasks


@dataclass(frozen=True, slots=True)
class RecordMark:
    """A place in the record: how many tasks, requests and events there are."""

    tasks: int
    requests: int
    events: int


class Recording(TaskObserver, routing.Routed):
    """
    Requests, tasks and events in their order, and which of the tasks are live.

    A task belongs to the recording that was active when it was scheduled, a request to the recording that was active
    when it began. Later events are recorded there, and in no other recording.
    """

    def __init__(self) -> None:
        self.monitor: Monitor = Monitor()
        self.live: LiveTasks = LiveTasks()
        self.queue: SleepQueue = SleepQueue(self.monitor, self.live)
        self.tasks: list[RecordedTask[Any]] = []
        self.requests: list[RecordedRequest] = []
        self.services: list[Service] = []
        self.periodic: dict[str, Service] = {}
        self.events: list[TaskEvent] = []
        self.unattributed: list[str] = []
        self.sessions: SessionWatch = SessionWatch()
        self.virtual: bool = False
        self.auto: bool = False
        self.chosen_order: ChosenOrder | None = None
        self.thread_id: int = threading.get_ident()
        self._by_id: dict[int, RecordedTask[Any]] = {}
        self._by_origin: dict[int, RecordedRequest] = {}
        self._allowed: list[Target] = []
        self._too_late: list[Task[Any]] = []
        self._began = monotonic()
        self._subscriptions = ExitStack()

    # ---- beginning and end ----

    def start(self) -> None:
        """Record what happens from now on."""
        routing.activate(self)
        self.sessions.start()
        self._subscriptions.enter_context(observe(self))

    def stop(self) -> None:
        """Stop recording, and cancel the tasks that only this recording could start."""
        routing.deactivate(self)
        self.sessions.stop()
        for task in self.tasks:
            if task.state == "held":
                self._cancel(task, _refusals.HELD_UNTIL_TEST_END)
            elif self.queue.due_at(task.task) is not None:
                self._cancel(task, _refusals.ASLEEP_AT_TEST_END)
        self._subscriptions.close()

    def make_time_virtual(self, *, auto: bool) -> None:
        """Let delays, retry pauses and timeouts use a clock that stands still."""
        self.auto = auto
        if not self.virtual:
            self.virtual = True
            self._subscriptions.enter_context(override_clock(self.queue))

    def clear(self) -> None:
        """Remove everything from the record."""
        with self.monitor.lock:
            for events in (self.tasks, self.requests, self.events, self.unattributed):
                cast("list[Any]", events).clear()
            self._by_id.clear()
            self._by_origin.clear()

    def mark(self) -> RecordMark:
        """Return the end of the record, for `rewind()`."""
        return RecordMark(len(self.tasks), len(self.requests), len(self.events))

    def rewind(self, mark: RecordMark) -> None:
        """Remove what was recorded after *mark*; all of these tasks have ended."""
        with self.monitor.lock:
            for task in self.tasks[mark.tasks :]:
                self._by_id.pop(task.task.id, None)
            for request in self.requests[mark.requests :]:
                self._by_origin.pop(id(request._origin), None)
            del self.tasks[mark.tasks :], self.requests[mark.requests :], self.events[mark.events :]

    # ---- reading ----

    def find(self, task: Task[Any]) -> RecordedTask[Any] | None:
        """Return what is recorded of a task; `None` if it belongs to no recording, or to another one."""
        return self._by_id.get(task.id)

    def live_tasks(self) -> list[RecordedTask[Any]]:
        """Return the tasks that run, or will run without any further event."""
        with self.monitor.lock:
            return [recorded for task in self.live if (recorded := self.find(task)) is not None]

    def awaiting_their_phase(self) -> list[RecordedTask[Any]]:
        """Return the tasks whose phase opens when the request that is being served comes to it."""
        with self.monitor.lock:
            if not self.requests_in_flight():
                return []
            return [
                task
                for task in self.tasks
                if task.state == "pending" and not task.opened and task.request and not task.request.finished
            ]

    def requests_in_flight(self) -> list[RecordedRequest]:
        """Return the requests that are being served."""
        with self.monitor.lock:
            return [request for request in self._by_origin.values() if not request.finished]

    def parked(self) -> list[RecordedTask[Any]]:
        """Return the tasks that rest until virtual time moves; not those that are allowed to run on."""
        with self.monitor.lock:
            found = [self.find(task) for task in self.queue.parked()]
            return [task for task in found if task is not None and not task._allowed_to_run]

    def now(self) -> float:
        """Return the time of the clock that tasks use."""
        return self.queue.now() if self.virtual else monotonic() - self._began

    # ---- virtual time ----

    def can_move(self) -> bool:
        """Return whether no task is live, and the recorder itself can let one go on: by a start, or by virtual time."""
        return not self.live and (self.must_start() or self.can_jump())

    def must_start(self) -> bool:
        """Return whether a task waits to be started in a chosen order."""
        return self.chosen_order is not None and self.chosen_order.can_start()

    def move(self) -> bool:
        """
        Start the next task of a chosen order, or move virtual time to the next deadline, if one of them is possible.

        Returns:
            Whether it was possible.
        """
        with self.monitor.lock:  # no task becomes live between the check and the move
            if not self.can_move():
                return False
            if self.chosen_order is not None and self.chosen_order.can_start():
                self.chosen_order.start_next()
            else:
                self.queue.move_to(self.queue.next_deadline())
            return True

    def can_jump(self) -> bool:
        """Return whether time is virtual and automatic, no task is live, and a task rests until the time moves."""
        return self.virtual and self.auto and not self.live and bool(self.parked()) and self.queue.next_deadline() < inf

    def moving(self, done: Callable[[], bool], timeout: float | None) -> Steps[bool]:
        """
        Wait until *done*, and `move()` whenever that is possible.

        Returns:
            Whether *done* became true within *timeout* seconds of real time.

        Raises:
            EndlessError: That has happened `MOST_JUMPS` times.
        """
        deadline = None if timeout is None else monotonic() + timeout
        parked: list[RecordedTask[Any]] = []

        def is_done_or_moves() -> bool:
            nonlocal parked
            if done():
                return True
            # Before the move, because the tasks that it wakes are not parked any more.
            parked = self.parked() or parked
            return self.move()

        for _ in range(MOST_JUMPS):
            left = None if deadline is None else max(0.0, deadline - monotonic())
            in_time = yield Wait(is_done_or_moves, left)
            if done() or not in_time:
                return in_time
        raise EndlessError(parked)

    # ---- what the recorder does to tasks ----

    def _cancel(self, task: RecordedTask[Any], reason: str) -> None:
        with self.monitor.lock:
            self._end(task, "cancelled" if task.attempts else "discarded", reason)
        task.task.cancel()

    def allow_running(self, target: Target) -> None:
        """Let the tasks that *target* names outlive the test, those that come later included."""
        check_target(target)
        with self.monitor.lock:
            self._allowed.append(target)
            for task in self.tasks:
                self._check_allowed(task)
        self.monitor.changed()

    def _check_allowed(self, task: RecordedTask[Any]) -> None:
        if any(is_named_by(task, target) for target in self._allowed):
            task._allowed_to_run = True
            self.live.remove(task.task)

    def hold(self, task: RecordedTask[Any]) -> None:
        """Record that a task is kept from starting."""
        with self.monitor.lock:
            task._state = "held"
            self.live.rest(task.task)
            self._note("held", task)

    def release(self, task: RecordedTask[Any]) -> None:
        """Let a task start; one that is not held yet will not be held."""
        with self.monitor.lock:
            task._released = True
            if task.state != "held":
                return
            task._state = "pending"
            self.live.wake(task.task)
            self._note("released", task)
        release_task(task.task)

    # ---- TaskObserver ----

    def task_scheduled(self, task: Task[Any]) -> None:
        owners = routing.owners()
        if self not in owners:
            return
        with self.monitor.lock:
            run = run_of_next_task()
            if run is not None and run.task is not None:
                self._add_attempt(run.task, task)
                return
            if len(owners) > 1:
                self.unattributed.append(f"{task.name!r}, scheduled at {task.where}")
            origin = None if task.phase is None else task.phase.origin
            request = self._request_of(origin) if hasattr(origin, "method") and hasattr(origin, "path") else None
            recorded = RecordedTask(len(self.tasks) + 1, next_seq(), task, request, run)
            if run is not None:
                run.task = recorded
            if in_event_loop():
                recorded._loop_thread = threading.get_ident()
            self.tasks.append(recorded)
            self._by_id[task.id] = recorded
            self.live.add(task)
            self._check_allowed(recorded)
            self._note("scheduled", recorded)

    def task_started(self, task: Task[Any]) -> None:
        recorded = self.find(task)
        if recorded is not None:
            with self.monitor.lock:
                recorded._state = "running"
                recorded.attempts = task.attempts
                recorded._loop_thread = threading.get_ident()
                if self.virtual:
                    self.queue.started(task)
                self._note("started", recorded)

    def task_emitted(self, task: Task[Any], event: EmittedEvent) -> None:
        recorded = self.find(task)
        if recorded is not None:
            with self.monitor.lock:
                recorded._emitted.append(event.data)
                self._note("emitted", recorded, detail=event.json.decode())

    def task_reported(self, task: Task[Any]) -> None:
        recorded = self.find(task)
        if recorded is not None:
            with self.monitor.lock:
                self._note("reported", recorded, detail=json.dumps(task.progress, ensure_ascii=False))

    def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
        recorded = self.find(task)
        if recorded is not None:
            with self.monitor.lock:
                recorded._state = "retrying"
                snoozed = isinstance(exception, Snooze)
                if not snoozed:
                    recorded.error = exception
                when = f"in {delay:g} s{self._virtually}"
                detail = when if recorded._run is None else f"by the next run_durable(), {delay:g} s skipped"
                self._note("retrying", recorded, error=None if snoozed else exception, detail=detail)

    def task_finished(self, task: Task[Any]) -> None:
        recorded = self.find(task)
        if recorded is not None and not recorded.terminal:
            with self.monitor.lock:
                recorded.error = task.exception
                held = recorded.state == "held"
                recorded._lost = task.lost and not held and recorded._run is None
                if recorded._run is not None and task.state is TaskState.FAILED:
                    pass  # the engine decides whether there is another attempt
                elif recorded._run is not None and recorded.state == "retrying":
                    self.live.remove(task)  # snoozed: it waits for the next run_durable()
                elif held and task.state is TaskState.DISCARDED:
                    self._end(recorded, "discarded", _refusals.HELD_UNTIL_TEST_END)
                elif task in self._too_late:
                    recorded._lost = self.auto
                    self._end(recorded, "cancelled" if recorded.attempts else "discarded", _refusals.ASLEEP_AT_SHUTDOWN)
                else:
                    self._end(recorded, cast("State", task.state.value), task.reason)
        self.queue.finished(task)

    def attempt_failed(self, run: DurableRun, delay: float) -> None:
        """Record that an attempt of a durable task has failed, and that the engine delivers it again."""
        assert run.task is not None, "an attempt fails after it was scheduled"
        with self.monitor.lock:
            run.task._state = "retrying"
            self._note("retrying", run.task, error=run.task.error, detail=f"in {delay:g} s (skipped)")

    def worker_killed(self, run: DurableRun) -> None:
        """Record that the worker was cut off during an attempt, and that the engine delivers the call again."""
        assert run.task is not None, "a worker is cut off by the attempt"
        with self.monitor.lock:
            run.task._state = "retrying"
            run.task.error = None
            self._note("retrying", run.task, detail="its worker was cut off")

    def _add_attempt(self, recorded: RecordedTask[Any], task: Task[Any]) -> None:
        self.live.remove(recorded.task)
        recorded.task = task
        self._by_id[task.id] = recorded
        self.live.add(task)
        self._check_allowed(recorded)
        self.monitor.changed()

    def is_snoozed(self, run: DurableRun) -> bool:
        """Return whether the last attempt of a durable task ended in `Snooze`."""
        return run.task is not None and run.task.state == "retrying" and not run.completed

    def run_ended(self, run: DurableRun) -> None:
        """Record that a durable task is not delivered again; if its last attempt failed, so did the task."""
        with self.monitor.lock:
            if run.task is not None and not run.task.terminal and not self.is_snoozed(run):
                self._end(run.task, "succeeded" if run.completed else "failed", None)

    def _end(self, task: RecordedTask[Any], state: State, reason: str | None) -> None:
        task._state = state
        task.reason = reason
        self.live.remove(task.task)
        kind = cast("EventKind", state)
        self._note(kind, task, error=task.error if state == "failed" else None, detail=reason or "")

    def phase_opened(self, phase: PhaseInfo, outcome: Outcome) -> None:
        with self.monitor.lock:
            self.live.open(phase)
            request = self._by_origin.get(id(phase.origin))
            waiting = sum(task.task.phase is phase and not task.terminal for task in self.tasks)
            if phase.name != "immediate" and (request or waiting):
                only_for = "" if outcome == "success" else f", for when={outcome!r}"
                self._add("phase_opened", request=request, phase=phase.name, detail=f"({waiting}){only_for}")
        self.monitor.changed()

    def service_starting(self, service: Service) -> None:
        self.queue.service_starting(service)
        if service.periodic is not None and self in routing.owners():
            self.periodic[service.name] = service

    def service_started(self, service: Service) -> None:
        self.queue.service_started(service, self.queue)
        if service.periodic is None and self in routing.owners() and service not in self.services:
            self.services.append(service)

    def service_ended(self, service: Service) -> None:
        self.queue.service_ended(service)

    def phase_discarded(self, phase: PhaseInfo, reason: str) -> None:
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

    def shutdown_started(self, tasks: Sequence[Task[Any]], grace_period: float) -> None:
        mine = [task for task in tasks if self.find(task) is not None]
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
            at=monotonic() - self._began,
            clock=self.now(),
            kind=kind,
            thread=threading.current_thread().name,
            **fields,
        )
        self.events.append(event)
        return event

"""What is checked when a test is over."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable
from typing import Any

from tasks_testing._messages import findings
from tasks_testing._recording.call import Target
from tasks_testing._recording.record import RecordedTask, is_named_by
from tasks_testing._recording.recording import Recording
from tasks_testing._settings import Settings
from tasks_testing._time.monitor import Steps, Wait, in_event_loop


class TaskLostWarning(UserWarning):
    """A task was cancelled or discarded because its app shut down, and the test may not notice that."""


def add_findings(error: BaseException, findings: Iterable[str]) -> None:
    """Add findings to an exception as notes."""
    for finding in findings:
        try:
            error.add_note(finding)
        except Exception:  # a frozen dataclass refuses every assignment
            error.__dict__.setdefault("__notes__", []).append(finding)


class EndOfTestChecks:
    """Finds what the test does not expect, and reports each finding once."""

    def __init__(self, recording: Recording, settings: Settings) -> None:
        self._recording = recording
        self._settings = settings
        self._expected: list[tuple[Target | None, type[BaseException] | tuple[type[BaseException], ...]]] = []
        self._reported: set[int] = set()

    def expect_failure(
        self, target: Target | None, error: type[BaseException] | tuple[type[BaseException], ...]
    ) -> None:
        """Expect that the tasks which *target* names fail with *error*."""
        self._expected.append((target, error))

    def after_body(self) -> list[str]:
        """Return the findings when the body of the test has ended."""
        return [*self._failures(), *self._not_asserted(), *self._not_attributed(), *self._closed_sessions()]

    def after_teardown(self, timeout: float | None, *, wait: bool) -> list[str]:
        """Return the findings when every fixture is torn down; with *wait*, running tasks may end before."""
        if wait and self._settings.leaks == "error" and not in_event_loop():
            self._recording.monitor.run(self._waiting(timeout))
        return [*self._failures(), *self._leaks(), *self._closed_sessions()]

    def warn_of_losses(self) -> None:
        """Warn of each task that shutdown has cancelled or discarded."""
        for task in self._recording.tasks:
            if task._lost and task.terminal and not task._allowed_to_run and task.id not in self._reported:
                self._reported.add(task.id)
                path, _, line = task.where.rpartition(":")
                warnings.warn_explicit(findings.lost(task), TaskLostWarning, path, int(line))

    def _waiting(self, timeout: float | None) -> Steps[bool]:
        return (yield Wait(lambda: not any(map(_can_end, self._recording.live_tasks())), timeout))

    def _failures(self) -> Iterable[str]:
        if self._settings.failures == "ignore":
            return
        failed = [task for task in self._recording.tasks if task.state == "failed" and not self._is_expected(task)]
        if failed:
            self._reported.update(task.id for task in failed)
            yield findings.unexpected_failures(failed)

    def _is_expected(self, task: RecordedTask[Any]) -> bool:
        return (
            task.id in self._reported
            or task._failure_expected
            or any(task.error is error for error in task._injected)
            or any(is_named_by(task, target) and isinstance(task.error, error) for target, error in self._expected)
        )

    def _not_asserted(self) -> Iterable[str]:
        if self._settings.strict:
            yield from self.not_asserted()

    def not_asserted(self) -> Iterable[str]:
        """Find the tasks that no assertion was about."""
        tasks = [task for task in self._recording.tasks if not task._asserted and not task._allowed_to_run]
        if tasks:
            yield findings.not_asserted(tasks)

    def _not_attributed(self) -> Iterable[str]:
        tasks, self._recording.unattributed = self._recording.unattributed, []
        if tasks:
            yield findings.not_attributed(tasks)

    def _closed_sessions(self) -> Iterable[str]:
        found, self._recording.sessions.found = self._recording.sessions.found, []
        tasks = [task for task in map(self._recording.find, found) if task is not None]
        if tasks and self._settings.leaks == "error":
            yield findings.closed_sessions(tasks)

    def _leaks(self) -> Iterable[str]:
        live = self._recording.live_tasks()
        if live and self._settings.leaks == "error":
            yield findings.leaks(live)


def _can_end(task: RecordedTask[Any]) -> bool:
    """Return whether the task can end while this thread blocks: not if its event loop runs in this thread."""
    return task._loop_thread != threading.get_ident()

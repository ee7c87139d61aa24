"""What is wrong with the tasks of a test when the test is over."""

from __future__ import annotations

import threading
import traceback
import warnings
from collections.abc import Iterable
from typing import Any

from tasks_testing._recording.call import Target
from tasks_testing._recording.record import RecordedTask, is_meant, written
from tasks_testing._recording.recording import Recording
from tasks_testing._settings import Settings
from tasks_testing._text import number_of, show_where
from tasks_testing._time.monitor import Steps, Wait, in_event_loop

# How many frames of the traceback of a task are shown, the innermost.
_FRAMES = 3


class TaskLostWarning(UserWarning):
    """A task was cancelled or dropped because its app shut down; a test that does not wait for it may not see that."""


class Verdict:
    """Finds what nobody expected; each finding is told once."""

    def __init__(self, recording: Recording, settings: Settings) -> None:
        self._recording = recording
        self._settings = settings
        self._expected: list[tuple[Target | None, type[BaseException] | tuple[type[BaseException], ...]]] = []
        self._told: set[int] = set()

    def expect_failure(
        self, target: Target | None, error: type[BaseException] | tuple[type[BaseException], ...]
    ) -> None:
        self._expected.append((target, error))

    def of_body(self) -> list[str]:
        """Judge what the body of the test has left."""
        return [*self._failures(), *self._not_asserted(), *self._not_attributed()]

    def of_end(self, timeout: float | None, *, wait: bool) -> list[str]:
        """Judge what is left when everything has been torn down; *wait* for tasks that are about to end."""
        if wait and self._settings.leaks == "error" and not in_event_loop():
            self._recording.monitor.run(self._waiting(timeout))
        return [*self._failures(), *self._leaks()]

    def warn_of_losses(self) -> None:
        """Warn of work that vanished when its app shut down."""
        for task in self._recording.tasks:
            if task._lost and task.terminal and not task._allowed_to_run and task.id not in self._told:
                self._told.add(task.id)
                path, _, line = task.where.rpartition(":")
                message = (
                    f"{task} was {task.state} when its app shut down: {task.reason}. "
                    "Drain first: tasks_recorder.drain(), or 'await tasks_recorder.adrain()'"
                )
                warnings.warn_explicit(message, TaskLostWarning, path, int(line))

    def _waiting(self, timeout: float | None) -> Steps[bool]:
        return (yield Wait(lambda: not any(map(_runs_elsewhere, self._recording.live_tasks())), timeout))

    def _failures(self) -> Iterable[str]:
        if self._settings.failures == "ignore":
            return
        failed = [task for task in self._recording.tasks if task._progress == "failed" and not self._is_expected(task)]
        if not failed:
            return
        self._told.update(task.id for task in failed)
        first = failed[0]
        what = f"{written(first)}, {type(first.error).__name__}"
        yield "\n".join(
            [
                f"{number_of(len(failed), 'background task')} failed, and the test does not expect it",
                *(line for task in failed for line in _describe_failure(task)),
                f"  hint: where it should fail, write tasks_recorder.assert_failed({what});",
                "        failures='ignore' turns this check off, for a test (marker) or for all (ini file)",
            ]
        )

    def _is_expected(self, task: RecordedTask[Any]) -> bool:
        return (
            task.id in self._told
            or task._acknowledged
            or any(task.error is error for error in task._injected)
            or any(is_meant(task, target) and isinstance(task.error, error) for target, error in self._expected)
        )

    def _not_asserted(self) -> Iterable[str]:
        if self._settings.strict:
            yield from self.not_asserted()

    def not_asserted(self) -> Iterable[str]:
        """Find the tasks that no assertion has dealt with."""
        tasks = [task for task in self._recording.tasks if not task._asserted and not task._allowed_to_run]
        if tasks:
            yield "\n".join(
                [
                    f"{number_of(len(tasks), 'task')} not asserted by the test",
                    *map(_describe, tasks),
                    "  hint: assert them; strict=False allows tasks that no assertion is about",
                ]
            )

    def _not_attributed(self) -> Iterable[str]:
        told, self._recording.unattributed = self._recording.unattributed, []
        if told:
            yield "\n".join(
                [
                    "several recorders are active side by side, and cannot tell whose these tasks are",
                    *(f"  {task}" for task in told),
                    "  hint: run tests that record tasks one after another, or in processes of their own",
                ]
            )

    def _leaks(self) -> Iterable[str]:
        live = self._recording.live_tasks()
        if live and self._settings.leaks == "error":
            yield "\n".join(
                [
                    f"{number_of(len(live), 'task')} still running at the end of the test",
                    *map(_describe, live),
                    "  hint: wait for it with tasks_recorder.drain() or 'await tasks_recorder.adrain()',",
                    f"        or say that it may run on: allow_running({written(live[0])})",
                ]
            )


def _describe(task: RecordedTask[Any]) -> str:
    return f"  {task}  {task.phase or '-'}  {task.state}, scheduled at {show_where(task.where)}"


def _describe_failure(task: RecordedTask[Any]) -> Iterable[str]:
    yield _describe(task)
    error = task.error
    lines = [] if error is None else traceback.format_exception(type(error), error, error.__traceback__, -_FRAMES)
    for line in "".join(lines).splitlines():
        if line != "Traceback (most recent call last):":
            yield f"    {line}"


def _runs_elsewhere(task: RecordedTask[Any]) -> bool:
    """Whether the task can end while this thread waits: its event loop is not the one that this thread would run."""
    return task._loop_thread != threading.get_ident()

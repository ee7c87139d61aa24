"""The recording of one test that pytest runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import SkipTest

import pytest

from tasks_testing._recorder import TasksRecorder
from tasks_testing._settings import NAMES, Settings
from tasks_testing._text import show


class RecordedItem:
    """A test, its recorder, and what the recorder has to say in its report."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        __tracebackhide__ = True
        debugging = bool(item.config.getoption("usepdb", False) or item.config.getoption("trace", False))
        self.recorder = TasksRecorder(settings_of(item), debugging=debugging)
        self.recorder._start()

    def body_raised(self, error: BaseException) -> None:
        """Add what is wrong with the tasks to an error that comes first."""
        if isinstance(error, (Exception, pytest.fail.Exception)) and not isinstance(error, SkipTest):
            self._add_notes(error, self.recorder._end_of_body())
            self._add_timeline("call", failed=True)

    def body_returned(self) -> None:
        problems = self.recorder._end_of_body()
        self._add_timeline("call", failed=bool(problems))
        _fail(problems)

    def teardown_raised(self, error: BaseException) -> None:
        self._add_notes(error, self.recorder._end(wait=False))
        self._add_timeline("teardown", failed=True)

    def teardown_returned(self) -> None:
        problems = self.recorder._end(wait=True)
        if problems:
            self._add_timeline("teardown", failed=True)
        _fail(problems)

    def _add_notes(self, error: BaseException, problems: Sequence[str]) -> None:
        for problem in problems:
            error.add_note(problem)

    def _add_timeline(self, when: str, *, failed: bool) -> None:
        wanted = self._item.config.getoption("tasks_timeline")
        if wanted == "all" or (wanted == "failed" and failed):
            self._item.add_report_section(when, "tasks timeline", self.recorder.timeline())


def settings_of(item: pytest.Item) -> Settings:
    """
    Read the settings of a test: from the ini file, and over that from its markers.

    Raises:
        pytest.UsageError: one of them makes no sense.
    """
    __tracebackhide__ = True
    values: dict[str, Any] = {}
    for name in NAMES:
        value = item.config.getini(f"tasks_recorder_{name}")
        if value is not None:
            values[name] = value
    for marker in reversed(list(item.iter_markers("tasks_recorder"))):
        unknown = [*map(show, marker.args), *(name for name in marker.kwargs if name not in NAMES)]
        if unknown:
            raise pytest.UsageError(
                f"@pytest.mark.tasks_recorder has no setting {', '.join(unknown)}; it has {', '.join(NAMES)}"
            )
        values.update(marker.kwargs)
    try:
        return Settings(**values)
    except ValueError as error:
        raise pytest.UsageError(f"tasks_recorder: {error}") from None


def _fail(problems: Sequence[str]) -> None:
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)

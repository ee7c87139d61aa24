"""The recording of one test that pytest runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import SkipTest

import pytest

from tasks_testing import _refusals
from tasks_testing._assertions.end_of_test import add_findings
from tasks_testing._recorder import TasksRecorder
from tasks_testing._settings import NAMES, Settings
from tasks_testing._text import show


class RecordedItem:
    """A test with its recorder; it adds the findings of the recorder to the report of the test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        __tracebackhide__ = True
        debugging = bool(item.config.getoption("usepdb", False) or item.config.getoption("trace", False))
        seed = int(item.config.getoption("tasks_seed"))
        self.recorder = TasksRecorder(settings_of(item), debugging=debugging, seed=seed)
        self.recorder._start()

    def body_raised(self, error: BaseException) -> None:
        """Add the findings to the exception of the body; a skipped test has its findings at teardown."""
        if isinstance(error, (Exception, pytest.fail.Exception)) and not isinstance(error, SkipTest):
            add_findings(error, self.recorder._end_of_body())
            self._add_timeline("call", failed=True)

    def body_returned(self) -> None:
        """Fail the test if there are findings."""
        problems = self.recorder._end_of_body()
        self._add_timeline("call", failed=bool(problems))
        _fail(problems)

    def teardown_raised(self, error: BaseException) -> None:
        """Add the findings to the exception of a fixture."""
        add_findings(error, self.recorder._end(wait=False))
        self._add_timeline("teardown", failed=True)

    def teardown_returned(self) -> None:
        """Fail the teardown if there are findings."""
        problems = self.recorder._end(wait=True)
        if problems:
            self._add_timeline("teardown", failed=True)
        _fail(problems)

    def _add_timeline(self, when: str, *, failed: bool) -> None:
        wanted = self._item.config.getoption("tasks_timeline")
        if wanted == "all" or (wanted == "failed" and failed):
            self._item.add_report_section(when, "tasks timeline", self.recorder.timeline())


def settings_of(item: pytest.Item) -> Settings:
    """
    Return the settings of a test: those of its markers, and for the rest those of the ini file.

    Raises:
        pytest.UsageError: A setting is unknown, or has a value that is not allowed.
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
            raise pytest.UsageError(_refusals.unknown_settings(unknown, NAMES))
        values.update(marker.kwargs)
    try:
        return Settings(**values)
    except ValueError as error:
        raise pytest.UsageError(_refusals.wrong_ini_or_marker(error)) from None


def _fail(problems: Sequence[str]) -> None:
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)

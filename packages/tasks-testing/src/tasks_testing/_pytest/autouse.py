"""A plugin of its own, registered if every test is to be recorded."""

import pytest

from tasks_testing._recorder import TasksRecorder


@pytest.fixture(autouse=True)
def _record_all_tests(tasks_recorder: TasksRecorder) -> None:
    """Use the fixture in every test."""

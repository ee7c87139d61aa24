"""The hooks around each test, registered in a run in which a test is recorded."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from tasks_testing._recorder import TasksRecorder

from .recorded_item import RecordedItem

_RECORDED: pytest.StashKey[RecordedItem] = pytest.StashKey()


def recorder_of(item: pytest.Item) -> TasksRecorder:
    """Return the recorder of a test; begin to record if the test did not name the fixture in its parameters."""
    __tracebackhide__ = True
    return (item.stash.get(_RECORDED, None) or _begin(item)).recorder


def _begin(item: pytest.Item) -> RecordedItem:
    __tracebackhide__ = True
    recorded = item.stash[_RECORDED] = RecordedItem(item)
    return recorded


# The recording begins before the first fixture and ends after the last one, so that the order of fixtures does not
# matter: an app that a fixture starts is recorded from its start, and an app that is closed late until its end.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    __tracebackhide__ = True
    if "tasks_recorder" in getattr(item, "fixturenames", ()):
        _begin(item)


# Innermost: it gets the exception of the test before other plugins, one of which fails on a frozen exception.
@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    recorded = item.stash.get(_RECORDED, None)
    try:
        result = yield
    except BaseException as error:
        if recorded is not None:
            recorded.body_raised(error)
        raise
    if recorded is not None:
        recorded.body_returned()
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    recorded = item.stash.get(_RECORDED, None)
    if recorded is not None:
        del item.stash[_RECORDED]  # another plugin may run the same item again
    try:
        result = yield
    except BaseException as error:
        if recorded is not None:
            recorded.teardown_raised(error)
        raise
    if recorded is not None:
        recorded.teardown_returned()
    return result

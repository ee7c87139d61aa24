"""
The pytest plugin of tasks-testing: its options and the fixture `tasks_recorder`.

pytest imports this module in every run in an environment where tasks-testing is installed. It is a module of its own,
beside the package, and has no hook around tests, because a run that records nothing must not pay for the package.
`tasks_testing/_pytest/hooks.py` has the hooks that a run with recorded tests gets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tasks_core import TaskScheduler
    from tasks_testing import TasksRecorder

_MARKER = (
    "tasks_recorder(mode='spy', virtual_time=False, strict=False, failures='error', leaks='error', timeout=5.0): "
    "settings of the fixture tasks_recorder; the closest marker decides each setting"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    ini = parser.addini
    ini("tasks_recorder_autouse", "record the background tasks of every test", type="bool", default=False)
    ini("tasks_recorder_mode", "spy (default): tasks run; hold: tasks start when the test releases them", default=None)
    ini("tasks_recorder_virtual_time", "delays, retry pauses and timeouts take no time", type="bool", default=None)
    ini("tasks_recorder_strict", "a task that no assertion covers fails the test", type="bool", default=None)
    ini("tasks_recorder_failures", "error (default) or ignore: tasks that fail unexpectedly", default=None)
    ini("tasks_recorder_leaks", "error (default) or ignore: tasks that still run at the end of a test", default=None)
    ini("tasks_recorder_timeout", "longest wait of the recorder, in seconds (default: 5)", type="float", default=None)
    group = parser.getgroup("tasks_testing", "background tasks")
    group.addoption(
        "--tasks-timeline",
        choices=("failed", "all", "none"),
        default="failed",
        help="which tests show the timeline of their background tasks (default: failed)",
    )
    group.addoption(
        "--tasks-seed",
        type=int,
        default=0,
        help="the number that selects which orders explore_orders() runs (default: 0)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    if config.getini("tasks_recorder_autouse"):
        from tasks_testing._pytest import autouse

        config.pluginmanager.register(autouse, "tasks_testing_autouse")


def _exempt_from_freezegun() -> None:
    # With a frozen clock, a timeout ends at once, and a shutdown never. Only the clocks are exempt, because freezegun
    # looks at the callers: if the whole package were exempt, the functions that it calls would get the real time.
    freezegun = sys.modules.get("freezegun")
    if freezegun is not None:
        freezegun.configure(extend_ignore_list=["tasks_core._clock", "tasks_testing._time.real_time"])


# Before each module: its decorators keep the list that is in force when it is imported.
def pytest_collectstart() -> None:
    _exempt_from_freezegun()


def pytest_collection_finish(session: pytest.Session) -> None:
    _exempt_from_freezegun()
    if any("tasks_recorder" in getattr(item, "fixturenames", ()) for item in session.items):
        _hooks(session.config)


def _hooks(config: pytest.Config) -> ModuleType:
    from tasks_testing._pytest import hooks

    if not config.pluginmanager.is_registered(hooks):
        config.pluginmanager.register(hooks, "tasks_testing_hooks")
    return hooks


@pytest.fixture
def tasks_recorder(request: pytest.FixtureRequest) -> TasksRecorder:
    """Record the background tasks of the test; see `tasks_testing.TasksRecorder`."""
    __tracebackhide__ = True
    recorder: TasksRecorder = _hooks(request.config).recorder_of(request.node)
    return recorder


@pytest.fixture
def tasks_scheduler(request: pytest.FixtureRequest) -> Iterator[TaskScheduler]:
    """
    Run a scheduler during the test, for code that is called without its app.

    `current_scheduler()` finds it in the test, and in what the test calls. In an async test, the scheduler runs on the
    event loop of the test. It starts when the body of the test starts, after the fixtures. In any other test, it runs
    on an event loop of its own in another thread.
    """
    from tasks_testing._pytest.scheduler import scheduler_of

    yield from scheduler_of(request.node)


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    if op != "==" or "tasks_testing" not in sys.modules:
        return None
    from tasks_testing._messages.comparison import compare_calls

    return compare_calls(left, right)

"""The pytest plugin: settings, the checks at the end of a test, and what a report shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tasks_fastapi
from asgi_lifespan import LifespanManager
from httpx import ASGITransport
from starlette.testclient import TestClient
from tasks_testing import record_tasks

# Imported here, so that the suites that run in this process do not import them anew, each for itself.
IMPORTED = (tasks_fastapi, LifespanManager, ASGITransport, TestClient, record_tasks)

pytest_plugins = ["pytester"]

HEAD = """
import anyio
import pytest
import time
from app import app, audit, charge, send_email
from starlette.testclient import TestClient
from tasks_core import TaskScheduler
from tasks_testing import TasksRecorder, call, call_like, finished, opened, scheduled, started

ANN = {"email": "ann@x"}

@pytest.fixture
def client():
    with TestClient(app) as client:
        yield client

async def boom(*args):
    raise RuntimeError("boom")
"""


def run(pytester: pytest.Pytester, suite: str, *args: str, ini: str = "") -> pytest.RunResult:
    """Run a suite against the application next to it."""
    pytester.makepyfile(app=Path(__file__).with_name("testing_app.py").read_text())
    pytester.makepyfile(test_suite=HEAD + suite)
    pytester.makeini(f"[pytest]\naddopts = -p no:asyncio --strict-markers\n{ini}")
    return pytester.runpytest("-p", "no:cacheprovider", *args)


# ---- settings ----


def test_ini_options_and_markers_are_merged_and_the_closest_counts(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
pytestmark = pytest.mark.tasks_recorder(mode="hold", timeout=3)

def settings(recorder):
    s = recorder._settings
    return s.mode, s.virtual_time, s.strict, s.failures, s.leaks, s.timeout

def test_module(tasks_recorder):
    assert settings(tasks_recorder) == ("hold", True, True, "ignore", "ignore", 3)

@pytest.mark.tasks_recorder(mode="spy")
class TestClass:
    def test_class(self, tasks_recorder):
        assert settings(tasks_recorder) == ("spy", True, True, "ignore", "ignore", 3)

    @pytest.mark.tasks_recorder(strict=False, virtual_time=False, failures="error")
    def test_function(self, tasks_recorder):
        assert settings(tasks_recorder) == ("spy", False, False, "error", "ignore", 3)
""",
        ini="tasks_recorder_virtual_time = true\ntasks_recorder_strict = true\ntasks_recorder_failures = ignore\n"
        "tasks_recorder_leaks = ignore\ntasks_recorder_timeout = 9\n",
    )
    result.assert_outcomes(passed=3)


def test_all_ini_options_count(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_settings(tasks_recorder):
    s = tasks_recorder._settings
    assert (s.mode, s.virtual_time, s.strict) == ("hold", False, False)
    assert (s.failures, s.leaks, s.timeout) == ("error", "error", 9)
""",
        ini="tasks_recorder_mode = hold\ntasks_recorder_timeout = 9\n",
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "marker, ini, text",
    [
        (
            "colour='red'",
            "",
            "*UsageError: @pytest.mark.tasks_recorder has no setting colour; "
            "it has mode, virtual_time, strict, failures, leaks, timeout",
        ),
        ("'hold'", "", "*UsageError: @pytest.mark.tasks_recorder has no setting 'hold'; it has mode, *"),
        ("mode='fake'", "", "*UsageError: tasks_recorder: mode must be 'spy' or 'hold', not 'fake'"),
        ("", "tasks_recorder_leaks = no", "*UsageError: tasks_recorder: leaks must be 'error' or 'ignore', not 'no'"),
        ("", "tasks_recorder_timeout = 0", "*UsageError: tasks_recorder: timeout must be a number * above 0, not 0.0"),
        ("", "tasks_recorder_timeout = long", "*could not convert string to float: 'long'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(pytester: pytest.Pytester, marker: str, ini: str, text: str) -> None:
    result = run(pytester, f"@pytest.mark.tasks_recorder({marker})\ndef test(tasks_recorder): pass", ini=ini)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([text])


def test_all_tests_are_recorded(pytester: pytest.Pytester) -> None:
    suite = """
def test_failure(client):
    client.post("/orders", headers={"x-fail": "1"})
    client.portal.call(fail_later)

async def fail_later():
    async with TaskScheduler() as scheduler:
        scheduler.schedule(boom)
"""
    run(pytester, suite).assert_outcomes(passed=1)
    result = run(pytester, suite, ini="tasks_recorder_autouse = true\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*1 background task failed, and the test does not expect it"])


def test_the_marker_is_listed(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--markers", "-p", "no:asyncio")
    result.stdout.fnmatch_lines(["@pytest.mark.tasks_recorder(mode='spy', virtual_time=False, strict=False, *"])


def test_the_fixture_is_listed(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--fixtures", "-p", "no:asyncio")
    result.stdout.fnmatch_lines(["tasks_recorder*", "*Record the background tasks of the test; see*"])


def test_there_is_no_timeout_when_somebody_debugs(pytester: pytest.Pytester) -> None:
    suite = """
def test_timeout(tasks_recorder):
    assert tasks_recorder._timeout is None
"""
    run(pytester, suite, "--pdb").assert_outcomes(passed=1)
    run(pytester, suite).assert_outcomes(failed=1)


def test_there_is_no_timeout_under_a_trace_function_of_a_debugger(monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(*args: object) -> None:
        pass

    with record_tasks() as recorder:
        assert recorder._timeout == 5
    trace.__module__ = "pydevd"
    monkeypatch.setattr(sys, "gettrace", lambda: trace)
    with record_tasks() as recorder:
        assert recorder._timeout is None
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    monitoring = SimpleNamespace(DEBUGGER_ID=0, get_tool=lambda number: "debugger" if number == 0 else None)
    monkeypatch.setattr(sys, "monitoring", monitoring, raising=False)
    with record_tasks() as recorder:
        assert recorder._timeout is None


# ---- the end of a test ----


def test_an_unexpected_failure_fails_the_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_unnoticed(client, tasks_recorder):
    tasks_recorder.stub(send_email, boom)
    client.post("/users", json=ANN)
    tasks_recorder.drain()
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*_ test_unnoticed _*",
            "1 background task failed, and the test does not expect it",
            "  #2 send_email('ann@x')  after_response  failed, scheduled at *app.py:*",
            '      File "*test_suite.py", line *, in boom',
            '        raise RuntimeError("boom")',
            "    RuntimeError: boom",
            "  hint: where it should fail, write tasks_recorder.assert_failed(send_email, RuntimeError);",
            "        failures='ignore' turns this check off, for a test (marker) or for all (ini file)",
            "*- Captured tasks timeline call -*",
            "*FAILED test_suite.py::test_unnoticed - Failed: 1 background task failed*",
        ]
    )
    result.stdout.no_fnmatch_line("*During handling*")


def test_a_failure_does_not_hide_that_of_the_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_both(client, tasks_recorder):
    tasks_recorder.stub(send_email, boom)
    client.post("/users", json=ANN)
    tasks_recorder.drain()
    assert 1 == 2
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E       assert 1 == 2",
            "E       1 background task failed, and the test does not expect it",
            "E *RuntimeError: boom",
        ]
    )


def test_a_frozen_exception_of_the_test_is_reported_with_the_findings(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
from dataclasses import dataclass

@dataclass(frozen=True)
class Declined(Exception):
    code: int

def test_both(client, tasks_recorder):
    tasks_recorder.stub(send_email, boom)
    client.post("/users", json=ANN)
    tasks_recorder.drain()
    raise Declined(7)
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E       test_suite.Declined*", "E       1 background task failed, and the test does not expect it"]
    )


def test_a_failure_after_the_body_is_an_error_at_teardown(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture
def failing():
    yield
    async def fail():
        async with TaskScheduler() as scheduler:
            scheduler.schedule(boom)
    anyio.run(fail)

def test_late(tasks_recorder, failing): pass
""",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*_ ERROR at teardown of test_late _*",
            "1 background task failed, and the test does not expect it",
            "*- Captured tasks timeline teardown -*",
        ]
    )


def test_expected_failures_do_not_fail_the_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_asserted(client, tasks_recorder):
    tasks_recorder.stub(send_email, boom)
    client.post("/users", json=ANN)
    tasks_recorder.assert_failed(send_email, RuntimeError, match="boom")

def test_allowed(client, tasks_recorder):
    tasks_recorder.expect_failure(send_email)
    tasks_recorder.stub(send_email, boom)
    client.post("/users", json=ANN)

def test_asked_for(client, tasks_recorder):
    tasks_recorder.fail(send_email, RuntimeError)
    client.post("/users", json=ANN)

@pytest.mark.tasks_recorder(failures="ignore")
def test_ignored(client, tasks_recorder):
    tasks_recorder.stub(send_email, boom)
    client.post("/users", json=ANN)

@pytest.mark.xfail(strict=True)
def test_expected_to_fail(client, tasks_recorder):
    tasks_recorder.stub(send_email, boom)
    client.post("/users", json=ANN)
    tasks_recorder.drain()

def test_skipped(client, tasks_recorder):
    tasks_recorder.stub(send_email, boom)
    client.post("/users", json=ANN)
    tasks_recorder.drain()
    tasks_recorder.expect_failure()
    pytest.skip("no reason")
""",
    )
    result.assert_outcomes(passed=4, xfailed=1, skipped=1)


LEAK = """
@pytest.fixture(scope="session")
def client():
    with TestClient(app) as client:
        yield client

def sleep(seconds): time.sleep(seconds)
"""


def test_a_task_that_outlives_the_test_fails_it(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        LEAK
        + """
@pytest.mark.tasks_recorder(timeout=0.1)
def test_leak(client, tasks_recorder):
    tasks_recorder.stub(send_email, lambda to: sleep(0.5))
    client.post("/users", json=ANN)

@pytest.mark.tasks_recorder(timeout=0.1, leaks="ignore")
def test_ignored(client, tasks_recorder):
    tasks_recorder.stub(send_email, lambda to: sleep(0.3))
    client.post("/users", json=ANN)

@pytest.mark.tasks_recorder(timeout=0.1)
def test_allowed(client, tasks_recorder):
    tasks_recorder.allow_running(send_email)
    tasks_recorder.stub(send_email, lambda to: sleep(0.3))
    client.post("/users", json=ANN)

def test_waited_for(client, tasks_recorder):
    tasks_recorder.stub(send_email, lambda to: sleep(0.1))
    client.post("/users", json=ANN)
""",
        "-W",
        "error",
    )
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*_ ERROR at teardown of test_leak _*",
            "1 task still running at the end of the test",
            "  #2 send_email('ann@x')  after_response  running, scheduled at *app.py:*",
            "  hint: wait for it with tasks_recorder.drain() or 'await tasks_recorder.adrain()',",
            "        or allow it to run on: tasks_recorder.allow_running(send_email)",
        ]
    )


def test_tasks_of_one_test_are_not_in_the_record_of_the_next(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        LEAK
        + """
@pytest.mark.tasks_recorder(timeout=0.01, leaks="ignore")
def test_one(client, tasks_recorder):
    tasks_recorder.stub(send_email, lambda to: sleep(0.2))
    client.post("/users", json=ANN)

def test_two(client, tasks_recorder):
    time.sleep(0.3)
    assert tasks_recorder.events == ()
    assert len(tasks_recorder) == 0
""",
    )
    result.assert_outcomes(passed=2)


def test_work_lost_at_shutdown_is_warned_of(pytester: pytest.Pytester) -> None:
    suite = """
from tasks_fastapi import Tasks, add_tasks
from fastapi import FastAPI
hasty = FastAPI()
add_tasks(hasty, grace_period=0)
@hasty.post("/")
async def endpoint(tasks: Tasks): tasks.after_response.schedule(anyio.sleep, 60)

@pytest.fixture
def client():
    with TestClient(hasty) as client:
        yield client

def test_lost(client, tasks_recorder):
    client.post("/")
    tasks_recorder.wait_for(anyio.sleep, "running")

def test_lost_in_the_body(tasks_recorder):
    with TestClient(hasty) as client:
        client.post("/")
        tasks_recorder.wait_for(anyio.sleep, "running")
"""
    result = run(pytester, suite, "-W", "default::tasks_testing.TaskLostWarning")
    result.assert_outcomes(passed=2, warnings=2)
    result.stdout.fnmatch_lines(
        ["*TaskLostWarning: #1 sleep(60) was cancelled when its app shut down: the grace period of the shutdown was *"]
    )
    run(pytester, suite, "-W", "error").assert_outcomes(passed=2, errors=2)
    run(pytester, suite, "-W", "error", "-W", "ignore::tasks_testing.TaskLostWarning").assert_outcomes(passed=2)


CHECKED = """
from fastapi import FastAPI
from tasks_fastapi import Tasks, add_tasks

hasty = FastAPI()
add_tasks(hasty, grace_period=0)

async def fail(): raise ValueError
async def stay(): await anyio.sleep_forever()

@hasty.post("/fail")
async def failing(tasks: Tasks): tasks.schedule(fail)
@hasty.post("/stay")
async def staying(tasks: Tasks): tasks.schedule(stay)

@pytest.fixture(scope="session")
def client():
    with TestClient(hasty) as client:
        yield client

MODULE
OFF = pytest.mark.tasks_recorder(failures="ignore", leaks="ignore")
NO_WARNING = pytest.mark.filterwarnings("ignore::tasks_testing.TaskLostWarning")

TEST
def test_failure(client, tasks_recorder):
    client.post("/fail")
    tasks_recorder.drain()

TEST
def test_leak(client, tasks_recorder):
    client.post("/stay")
    tasks_recorder.wait_for(stay, "running")

TEST
def test_loss(tasks_recorder):
    with TestClient(hasty) as client:
        client.post("/stay")
        tasks_recorder.wait_for(stay, "running")
"""


@pytest.mark.parametrize(
    "module, test, ini, outcomes",
    [
        ("", "", "", {"passed": 2, "failed": 1, "errors": 2}),
        ("", "@OFF\n@NO_WARNING", "", {"passed": 3}),
        (
            "pytestmark = [pytest.mark.tasks_recorder(failures='ignore', leaks='ignore'), "
            "pytest.mark.filterwarnings('ignore::tasks_testing.TaskLostWarning')]",
            "",
            "",
            {"passed": 3},
        ),
        (
            "",
            "",
            "tasks_recorder_failures = ignore\ntasks_recorder_leaks = ignore\n"
            "filterwarnings = ignore::tasks_testing.TaskLostWarning\n",
            {"passed": 3},
        ),
    ],
    ids=["on", "off for a test", "off for a module", "off for a project"],
)
def test_each_check_can_be_turned_off(
    pytester: pytest.Pytester, module: str, test: str, ini: str, outcomes: dict[str, int]
) -> None:
    suite = CHECKED.replace("MODULE", module).replace("TEST\n", f"{test}\n")
    errors = "" if "filterwarnings" in ini else "filterwarnings = error\n"
    run(pytester, suite, ini="tasks_recorder_timeout = 0.2\n" + errors + ini).assert_outcomes(**outcomes)


def test_strict(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.tasks_recorder(strict=True)
def test_strict(client, tasks_recorder):
    client.post("/users", json=ANN)
    tasks_recorder.assert_ran(audit)
    tasks_recorder.drain()

@pytest.mark.tasks_recorder(strict=True)
def test_all_asserted(client, tasks_recorder):
    client.post("/users", json=ANN)
    tasks_recorder.assert_order(started(audit), started(send_email))
""",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "1 task not asserted by the test",
            "  #2 send_email('ann@x')  after_response  succeeded, scheduled at *app.py:*",
            "  hint: assert them; strict=False allows tasks that no assertion covers",
        ]
    )


def test_an_error_at_teardown_comes_first(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture
def broken():
    yield
    async def fail():
        async with TaskScheduler() as scheduler:
            scheduler.schedule(boom)
    anyio.run(fail)
    raise KeyError("mine")

def test_late(tasks_recorder, broken): pass
""",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["E * KeyError: 'mine'", "E * 1 background task failed, and the test does not expect it"]
    )


def test_errors_without_a_recorder_are_as_ever(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture
def broken():
    yield
    raise KeyError("mine")

def test_one(broken): pass
def test_two(): assert 1 == 2
def test_three(tasks_recorder): raise SystemExit(3)
""",
    )
    result.assert_outcomes(passed=1, failed=2, errors=1)
    result.stdout.fnmatch_lines(["*KeyError*", "*assert 1 == 2*", "*SystemExit: 3*"])


# ---- other libraries that change time ----


FROZEN = """
from freezegun import freeze_time
from datetime import datetime
from fastapi import FastAPI
from tasks_fastapi import Tasks, add_tasks

service = FastAPI()
add_tasks(service)
seen = []

async def note():
    await anyio.sleep(0.01)
    seen.append(datetime.now().year)

@service.post("/")
async def endpoint(tasks: Tasks): tasks.after_response.task(timeout=30).schedule(note)

@pytest.fixture
def client():
    with TestClient(service) as client: yield client
"""


def test_a_frozen_time_is_seen_by_tasks_and_ends_no_timeout(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        FROZEN
        + """
def test_frozen(client, tasks_recorder):
    with freeze_time("2001-01-01", real_asyncio=True):
        client.post("/")
        tasks_recorder.assert_ran(note)
    assert seen == [2001]

def test_an_app_that_starts_in_frozen_time(tasks_recorder):
    with freeze_time("2001-01-01", real_asyncio=True):
        with TestClient(service) as client:
            client.post("/")
            tasks_recorder.drain()
        tasks_recorder.assert_ran(note)
""",
    )
    result.assert_outcomes(passed=2)


# ---- messages ----


def test_the_nearest_task_and_the_parameter_that_differs(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_arguments(client, tasks_recorder):
    client.post("/users", json={"email": "bob@x"})
    tasks_recorder.after_response.assert_ran(call(send_email, "ann@x"))
""",
    )
    result.stdout.fnmatch_lines(
        [
            "E       AssertionError: after_response: expected send_email('ann@x') to have run, it did not",
            "E         closest:  #2 send_email('bob@x')  after_response  succeeded",
            "E                     to: 'bob@x' != 'ann@x'",
            "E         also:     #1 audit('created', 1)  immediate       succeeded",
            "E         hint: the arguments differ; call_like() compares only the parameters that you name",
            "",
            "test_suite.py:*: AssertionError",
            "*- Captured tasks timeline call -*",
            " #1 POST /users -> 201",
            "    +0.0  request_started",
            "*  immediate       #1 audit('created', 1)  scheduled  *app.py:*",
            "*  after_response  #2 send_email('bob@x')  scheduled  *app.py:*",
            "*  route_returned",
            "*  after_route opened (0)",
            "*  response_started 201",
            "*  response_sent",
            "*  after_response opened (1)",
            "*  request_finished",
            "*  after_response  #2 send_email  *  started",
            "*  after_response  #2 send_email  *  succeeded",
        ]
    )
    begin = next(index for index, line in enumerate(result.outlines) if "Captured tasks timeline" in line)
    end = next(index for index, line in enumerate(result.outlines) if index > begin and line.startswith(("-", "=")))
    assert max(map(len, result.outlines[begin:end])) <= 80


def test_the_phase_that_was_meant(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_phase(client, tasks_recorder):
    client.post("/users", json=ANN)
    tasks_recorder.after_response.assert_ran(audit)

def test_immediate(client, tasks_recorder):
    client.post("/users", json=ANN)
    tasks_recorder.immediate.assert_ran(send_email)

def test_request(client, tasks_recorder):
    client.post("/users", json=ANN)
    client.get("/health")
    tasks_recorder.request().assert_ran(send_email)

def test_state(client, tasks_recorder):
    client.post("/users", json=ANN)
    tasks_recorder.drain()
    tasks_recorder.in_state("failed").assert_scheduled(send_email)

def test_of(client, tasks_recorder):
    client.post("/users", json=ANN)
    tasks_recorder.of(audit).assert_scheduled(send_email)

def test_capture(client, tasks_recorder):
    client.post("/users", json=ANN)
    with tasks_recorder.capture() as captured: pass
    captured.assert_scheduled(send_email)

def test_outside(client, tasks_recorder):
    client.get("/health")
    async def direct():
        async with TaskScheduler() as scheduler:
            scheduler.schedule(send_email, "ann@x")
    anyio.run(direct)
    tasks_recorder.request().assert_ran(send_email)
""",
    )
    result.stdout.fnmatch_lines(
        [
            "E         closest:  #1 audit('created', *)  immediate       succeeded",
            "E                     in another phase",
            "E         hint: found in phase immediate: use tasks.after_response.schedule(...) at *app.py:*?",
            "E         hint: found in phase after_response: use tasks.schedule(...) at *app.py:*?",
            "E         hint: it is of another request, #1 POST /users -> 201; scheduled at *app.py:*",
            "E         hint: it is in state succeeded; scheduled at *app.py:*",
            "E         hint: it is another task than the view is of; scheduled at *app.py:*",
            "E         hint: it is outside of the captured block; scheduled at *app.py:*",
            "E         hint: it is outside of any request; scheduled at *test_suite.py:*",
        ]
    )


def test_other_hints(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.tasks_recorder(mode="hold")
def test_a_held(client, tasks_recorder):
    client.post("/users", json=ANN)
    tasks_recorder.assert_ran(send_email)

def test_b_failed(client, tasks_recorder):
    tasks_recorder.stub(send_email, boom)
    client.post("/users", json=ANN)
    tasks_recorder.assert_ran(send_email)

def test_c_no_task(client, tasks_recorder):
    for _ in range(4): client.get("/health")
    tasks_recorder.assert_ran(send_email)

def test_d_no_request(tasks_recorder):
    tasks_recorder.assert_ran(send_email)

def test_e_others(client, tasks_recorder):
    client.post("/orders")
    tasks_recorder.assert_ran(send_email)

def test_f_namesake(client, tasks_recorder):
    async def send_email(to): pass
    client.post("/users", json=ANN)
    tasks_recorder.assert_ran(send_email)

def test_g_succeeded(client, tasks_recorder):
    client.post("/users", json=ANN)
    tasks_recorder.assert_failed(send_email)

def test_h_cancelled(client, tasks_recorder):
    with tasks_recorder.hold():
        client.post("/users", json=ANN)
        next(iter(tasks_recorder.of(send_email))).task.cancel()
        tasks_recorder.wait_for(send_email, "cancelled")
    tasks_recorder.assert_ran(send_email)
""",
    )
    result.stdout.fnmatch_lines(
        [
            "E         closest:  #2 send_email('ann@x')*  after_response  held",
            "E         hint: it is held: tasks_recorder.release(send_email) starts it",
            "E         closest:  #2 send_email('ann@x')*  after_response  failed",
            "E                     RuntimeError: boom",
            "E         hint: it failed at test_suite.py:*; if it should, write assert_failed(send_email, RuntimeErr*",
            "E         hint: no task was scheduled in 4 requests: #1 GET /health -> 200, #2 *, ...",
            "E         hint: no request was served while recording, and nothing was scheduled",
            "E         recorded: #1 charge(7)  after_response  succeeded",
            "E         hint: other tasks were scheduled, this one was not",
            "E         hint: another function of that name was scheduled: app.send_email, not test_suite.*.send_email",
            "E         hint: it succeeded; see the timeline",
            "E         hint: it was cancelled: task.cancel() was called",
        ]
    )


def test_what_was_not_wanted(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_not(client, tasks_recorder):
    client.post("/users", json=ANN)
    tasks_recorder.assert_not_scheduled(send_email)

def test_nothing(client, tasks_recorder):
    client.post("/users", json=ANN)
    tasks_recorder.drain()  # for the states in the message
    tasks_recorder.assert_nothing_scheduled()

def test_once(client, tasks_recorder):
    client.post("/users", json=ANN)
    client.post("/users", json=ANN)
    tasks_recorder.assert_ran(send_email, times=1)
""",
    )
    result.stdout.fnmatch_lines(
        [
            "E       AssertionError: expected send_email not to have been scheduled, it was, once",
            "E         recorded: #2 send_email('ann@x')  after_response  succeeded",
            "E                     scheduled at *app.py:*",
            "E       AssertionError: expected nothing to have been scheduled, 2 tasks were",
            "E         recorded: #1 audit('created', *)  immediate       succeeded",
            "E       AssertionError: expected send_email to have run once, it did 2 times",
        ]
    )


def test_a_long_list_is_capped(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
async def work(number): pass

def test_many(tasks_recorder):
    async def schedule():
        async with TaskScheduler() as scheduler:
            for number in range(80):
                scheduler.schedule(work, number)
    anyio.run(schedule)
    tasks_recorder.assert_ran(call(work, 100))

def test_order(tasks_recorder):
    test_many.__wrapped__ if False else None
    async def schedule():
        async with TaskScheduler() as scheduler:
            for number in range(20):
                scheduler.schedule(work, number)
    anyio.run(schedule)
    tasks_recorder.assert_order(finished(call(work, 100)))

@pytest.mark.tasks_recorder(timeout=0.1)
def test_unsettled(tasks_recorder):
    with anyio.from_thread.start_blocking_portal() as portal:
        with portal.wrap_async_context_manager(TaskScheduler(grace_period=0)) as scheduler:
            for number in range(12):
                scheduler.schedule(anyio.sleep, 100 + number)
            tasks_recorder.drain()
""",
        "-W",
        "ignore::tasks_testing.TaskLostWarning",
    )
    result.stdout.fnmatch_lines(
        [
            "E *  #9 work(8)  *",
            "E *  #10 work(9)  *",
            "E                   and 70 more tasks",
            " (earlier 41 omitted)",
            "E         (earlier 30 omitted)",
            "E *     #10 sleep(109)  running, scheduled at test_suite.py:*",
            "E *     and 2 more tasks",
        ]
    )


def test_lists_of_calls_are_compared(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_missing(client, tasks_recorder):
    client.post("/users", json=ANN)
    assert tasks_recorder.calls == [call(send_email, "bob@x"), call(charge, 1)]

def test_order(client, tasks_recorder):
    client.post("/users", json=ANN)
    assert tasks_recorder.calls == [call(send_email, "ann@x"), call_like(audit)]

def test_many(client, tasks_recorder):
    client.post("/users", json=ANN)
    assert tasks_recorder.of(charge).calls == [call(charge, n) for n in range(15)]

def test_other_lists():
    assert [1] == [2]

def test_mixed_lists():
    assert [call(charge, 1)] == [2]

def test_empty(tasks_recorder):
    assert tasks_recorder.calls == (1,)
""",
        "-vv",
    )
    result.stdout.fnmatch_lines(
        [
            "E       AssertionError: assert 2 calls == 2 calls",
            "E         missing: send_email('bob@x')",
            "E                  to: 'ann@x' != 'bob@x'",
            "E         missing: charge(1)",
            "E         extra:   audit('created', *)",
            "E         extra:   send_email('ann@x')",
            "E         the same calls in another order, recorded:",
            "E           audit('created', *)",
            "E           send_email('ann@x')",
            "E       assert 0 calls == 15 calls",
            "E         missing: charge(9)",
            "E         and 5 more",
            "E       assert [1] == [2]",
            "E       assert [charge(1)] == [2]",
            "E       assert [] == (1,)",
        ]
    )


# ---- the timeline ----

TIMELINE = """
async def work(text): pass

def test_passes(client, tasks_recorder):
    client.post("/users", json=ANN)
    tasks_recorder.drain()

def test_fails(client, tasks_recorder):
    assert "nothing was recorded" == tasks_recorder.timeline()
    assert 1 == 2
"""


@pytest.mark.parametrize("option, sections", [("failed", 1), ("all", 2), ("none", 0)])
def test_whose_timeline_is_shown(pytester: pytest.Pytester, option: str, sections: int) -> None:
    result = run(pytester, TIMELINE, f"--tasks-timeline={option}", "-rP")
    result.assert_outcomes(passed=1, failed=1)
    assert result.stdout.str().count("Captured tasks timeline call") == sections


def test_the_timeline_fits_into_80_columns(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
from tasks_core import retry

async def a_function_with_a_rather_long_name_that_goes_on_and_on(text): pass

@pytest.mark.tasks_recorder(virtual_time=True)
def test_timeline(client, tasks_recorder):
    tasks_recorder.hold(send_email)
    tasks_recorder.fail(charge, ConnectionError("the connection to the bank was down " * 3), times=2)
    tasks_recorder.fail(audit, ValueError("no"))
    client.post("/orders")
    client.post("/users", json=ANN)
    tasks_recorder.drain()
    tasks_recorder.release(send_email)
    async def direct():
        async with TaskScheduler() as scheduler:
            scheduler.schedule(a_function_with_a_rather_long_name_that_goes_on_and_on, "x" * 100)
            scheduler.schedule(anyio.sleep_forever).cancel()
    anyio.run(direct)
    tasks_recorder.drain()
    print(tasks_recorder.timeline())
    assert max(map(len, tasks_recorder.timeline().splitlines())) <= 80
""",
        "-s",
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "* #1 POST /orders -> 200",
            "*  after_response  #1 charge(7)  scheduled  *",
            "*  after_response  #1 charge     started",
            "*  after_response  #1 charge     retrying",
            "   *in 1 s (virtual), after Connection*down*",
            "*  after_response  #1 charge     started  attempt 2",
            "*  after_response  #1 charge     started  attempt 3",
            "*  after_response  #1 charge     succeeded",
            " #2 POST /users -> 201",
            "*  after_response  #3 send_email*  released",
            "*  after_response  #3 send_email*  succeeded",
            " outside of requests",
            "*  -               #4 a_function_with_a*xxxxxxx')  scheduled",
            "*  -               #5 sleep_forever *  cancelled",
            "*task.cancel() was called",
        ]
    )
    # How soon a task that starts now has its turn is for the client to say: they differ from release to release.
    result.stdout.fnmatch_lines_random(
        ["*  immediate       #2 audit*  failed*", "*  after_response  #3 send_email*  held"]
    )


# ---- what it costs ----


MEASURE = """
import sys, time, pytest
before = set(sys.modules)
start = time.perf_counter()
import pytest_tasks_testing
took = time.perf_counter() - start
print(took, *set(sys.modules) - before)
"""


def test_a_run_without_it_imports_one_module_in_less_than_five_milliseconds() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True).stdout.split()
        for _ in range(5)  # the machine may be busy: the fastest says what the work is
    ]
    assert {tuple(modules) for _, *modules in runs} == {("pytest_tasks_testing",)}
    assert min(float(took) for took, *_ in runs) < 0.005


def test_a_run_without_it_has_no_hook_around_its_tests(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
import sys

def pytest_sessionfinish(session):
    assert "tasks_testing" not in sys.modules
    plugin = session.config.pluginmanager.get_plugin("tasks_testing")
    assert plugin is not None
    for hook in ("pytest_runtest_setup", "pytest_runtest_call", "pytest_runtest_teardown"):
        assert not hasattr(plugin, hook)
    assert not session.config.pluginmanager.has_plugin("tasks_testing_hooks")
""")
    pytester.makepyfile("def test_one(): pass")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    assert result.ret == 0


def test_it_begins_before_the_first_fixture_and_is_forgotten_behind_the_last(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
import gc
import weakref

import anyio
import pytest
from tasks_core import TaskScheduler

seen = []

async def work(): pass

async def main():
    async with TaskScheduler() as scheduler:
        scheduler.schedule(work)

@pytest.fixture
def around():
    anyio.run(main)
    yield
    anyio.run(main)
    seen[0] = len(seen[0])

def test_one(around, tasks_recorder):
    tasks_recorder.assert_ran(work, times=1)
    seen[:] = [tasks_recorder, weakref.ref(tasks_recorder)]

def test_two():
    gc.collect()
    assert (seen[0], seen[1]()) == (2, None)

def test_a_fixture_that_is_asked_for_late(around, request):
    recorder = request.getfixturevalue("tasks_recorder")
    assert len(recorder) == 0
    seen[:] = [recorder]
""",
    )
    result.assert_outcomes(passed=3)


@pytest.mark.parametrize("skip", ["pytest.skip('not today')", "raise unittest.SkipTest('not today')"])
def test_a_task_that_fails_is_told_although_the_test_skips_itself(pytester: pytest.Pytester, skip: str) -> None:
    result = run(
        pytester,
        f"""
import unittest

async def boom(to):
    raise ValueError(to)

def test_one(client, tasks_recorder):
    tasks_recorder.stub(send_email, boom)
    client.post("/users", json=ANN)
    tasks_recorder.drain()
    {skip}
""",
        "-rs",
    )
    result.assert_outcomes(skipped=1, errors=1)
    result.stdout.fnmatch_lines(["1 background task failed, and the test does not expect it", "SKIPPED*: not today"])


@pytest.mark.parametrize(
    "function, name, shown",
    [
        ("lambda: 1 / 0", None, "'test_one.main.<lambda>'"),
        ("lambda: 1 / 0", "divide", "'divide'"),
        ("Division()", None, "'Division'"),
        ("Division().divide", None, "Division.divide"),
        ("partial(operator.truediv, 1, 0)", None, "truediv"),
    ],
)
def test_what_a_hint_has_you_write_works(
    pytester: pytest.Pytester, function: str, name: str | None, shown: str
) -> None:
    suite = f"""
import operator
from functools import partial

class Division:
    def __call__(self): self.divide()
    def divide(self): 1 / 0

def test_one(tasks_recorder):
    async def main():
        async with TaskScheduler() as scheduler:
            scheduler.task(name={name!r}).schedule({function})
    anyio.run(main)
"""
    result = run(pytester, suite)
    result.assert_outcomes(failed=1)
    line = f"tasks_recorder.assert_failed({shown}, ZeroDivisionError)"
    result.stdout.fnmatch_lines([f"  hint: where it should fail, write {line.replace('[', '[[]')};"])
    run(
        pytester, f"{suite}    {line}\n".replace("import partial\n", "import partial\nfrom operator import truediv\n")
    ).assert_outcomes(passed=1)

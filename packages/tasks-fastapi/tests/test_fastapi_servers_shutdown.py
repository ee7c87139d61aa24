"""Real servers get a signal while tasks run, a request is open, and a client opens another connection."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from servers.event_log import EventLog
from servers.process import ONE_WORKER, Client, ServerProcess, request

EXIT_CODES = {"uvicorn": -signal.SIGTERM, "uvicorn-uvloop": -signal.SIGTERM}
"""Of SIGTERM, where it is not 0: uvicorn ends by the signal that it was sent."""


class Stopped(NamedTuple):
    """What is left of a server."""

    exit_code: int
    events: list[str]
    lines: str
    open_request: bytes
    late_request: bytes
    output: str

    def assert_order(self, *expected: str) -> None:
        assert [event for event in self.events if event in expected] == list(expected), "\n".join(self.events)


def stop(server: ServerProcess, press: Callable[[], None], press_again: Callable[[], None] | None) -> Stopped:
    """Have work of all kinds and an open request, stop the server, and let the work end step by step."""
    server.wait_ready()
    assert b"all started" in request(server.port, "POST", "/work")
    with Client(server.port, "GET", "/patient") as client:
        server.log.wait_for("endpoint waits")
        press()
        server.log.note("client wants response")
        open_request = client.read_response()
    server.log.wait_for("stubborn cancelled")
    if press_again is not None:
        press_again()
    late_request = b""
    with suppress(ConnectionRefusedError), Client(server.port, "GET", "/late") as client:
        server.log.note("precious may finish")
        late_request = client.read_response()
    if "precious may finish" not in server.log.names():
        server.log.note("precious may finish")
    exit_code = server.wait()
    names, lines = server.log.names(), "\n".join(server.log.matching("log "))
    return Stopped(exit_code, names, lines, open_request, late_request, server.output)


@pytest.fixture(scope="module", params=ONE_WORKER)
def terminated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """A server that was sent SIGTERM, once, as orchestrators do."""
    with ServerProcess(request.param, tmp_path_factory.mktemp("server")) as server:
        stopped = stop(server, lambda: server.signal(signal.SIGTERM), None)
    assert stopped.exit_code == EXIT_CODES.get(request.param, 0)
    return stopped


# Of these a second SIGINT does not change what becomes of an open request. The other servers have tests of their own.
UNIMPRESSED = ["hypercorn", "hypercorn-trio", "granian"]


@pytest.fixture(scope="module", params=["uvicorn", *UNIMPRESSED, "gunicorn"])
def interrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """A server after Ctrl-C, and a second Ctrl-C while it drained."""
    with ServerProcess(request.param, tmp_path_factory.mktemp("server")) as server:

        def interrupt() -> None:
            # A worker of granian that gets two signals at once may hang in the handler of granian 2.8, and the
            # parent sends it SIGTERM right behind the SIGINT of the terminal. So only the parent gets SIGINT here.
            if request.param == "granian":
                server.signal(signal.SIGINT)
            else:
                server.press_ctrl_c()

        def press() -> None:
            interrupt()
            if request.param in UNIMPRESSED:
                interrupt()

        return stop(server, press, interrupt)


def test_user_lifespan_closes_last(terminated: Stopped) -> None:
    terminated.assert_order("stubborn cancelled", "precious finished", "lifespan closed")
    assert terminated.events[-1] == "lifespan closed"


def test_shielded_work_is_finished(terminated: Stopped) -> None:
    terminated.assert_order("precious may finish", "precious finished")
    assert "precious cancelled" not in terminated.events


def test_others_have_the_grace_period(terminated: Stopped) -> None:
    terminated.assert_order("obliging finished in the grace period", "stubborn cancelled")


def test_losses_are_named_and_counted(terminated: Stopped) -> None:
    cancelled = [line for line in terminated.lines.split("\n") if " was cancelled: the grace period " in line]
    assert sorted(line.split("'")[1] for line in cancelled) == ["hanging_thread", "stubborn"]
    [report] = [line for line in terminated.lines.split("\n") if "Tasks drained" in line]
    assert report.endswith(": 2 succeeded, 2 cancelled, 1 abandoned")


def test_hanging_thread_is_abandoned_and_the_process_ends(terminated: Stopped) -> None:
    """The process has ended, which the fixture checks, and the thread was never woken."""
    [line] = [line for line in terminated.lines.split("\n") if " was abandoned: " in line]
    assert "Task 'hanging_thread' " in line


def test_open_request_is_answered_and_its_tasks_run_before_the_drain_is_over(terminated: Stopped) -> None:
    assert terminated.open_request.endswith(b'"patient"')
    terminated.assert_order("committed", "after_response ran", "lifespan closed")
    terminated.assert_order("committed", "after_response always ran", "lifespan closed")
    assert "after_response on error ran" not in terminated.events


def test_nobody_is_served_while_the_server_drains(terminated: Stopped) -> None:
    """All of them have closed the port by then, or keep it open in a parent process that does not accept."""
    assert terminated.late_request == b""


def test_ctrl_c_once_more_does_not_cut_the_drain_short(interrupted: Stopped) -> None:
    """No server stops waiting for the lifespan because of a second SIGINT; that takes SIGKILL."""
    assert interrupted.open_request.endswith(b'"patient"')
    interrupted.assert_order("committed", "after_response ran", "lifespan closed")
    interrupted.assert_order("stubborn cancelled", "precious may finish", "precious finished", "lifespan closed")
    assert interrupted.exit_code == 0
    assert "2 succeeded, 2 cancelled, 1 abandoned" in interrupted.lines


def test_the_server_has_nothing_to_say_against_the_lifespan(interrupted: Stopped) -> None:
    """uvicorn would, if the lifespan took another turn of the event loop after it has reported that it is complete."""
    assert "unsupported" not in interrupted.output
    assert "Traceback" not in interrupted.output


def assert_named(log: EventLog, *names: str) -> None:
    """Each of the tasks has a line that says how it was lost."""
    for name in names:
        assert [line for line in log.matching(f"log WARNING Task '{name}' ") if " was cancelled: " in line], str(log)


def test_ctrl_c_twice_while_a_request_is_open_makes_uvicorn_skip_the_lifespan(tmp_path: Path) -> None:
    """
    It then cancels everything on its event loop, shielded or not.

    That is what it calls "force quit". There is no shutdown for the tasks, but they are named.
    """
    with ServerProcess("uvicorn", tmp_path) as server:
        server.wait_ready()
        request(server.port, "POST", "/work")
        with Client(server.port, "GET", "/patient"):
            server.log.wait_for("endpoint waits")
            server.press_ctrl_c()
            server.log.wait_until(lambda: not server.accepts(), "the end of the port")  # it has seen the first
            server.press_ctrl_c()
        server.wait()  # for whom the client must be gone: on Python 3.12 it waits for open connections
        assert_named(server.log, "obliging", "stubborn", "precious", "hanging_thread")
        server.log.assert_order("endpoint cancelled", "rolled back", "after_response always ran")
        assert "lifespan closed" not in server.log.names()


def test_ctrl_c_twice_while_a_request_is_open_kills_the_worker_of_gunicorn(tmp_path: Path) -> None:
    """
    uvicorn's worker for gunicorn raises the signal again, to its own death: no line of Python runs after that.

    Tasks are lost without a word, as with SIGKILL. The second Ctrl-C says "now".
    """
    with ServerProcess("gunicorn", tmp_path) as server:
        server.wait_ready()
        request(server.port, "POST", "/work")
        with Client(server.port, "GET", "/patient"):
            server.log.wait_for("endpoint waits")
            server.press_ctrl_c()
            server.log.wait_until(lambda: not server.accepts(), "the end of the port")
            server.log.wait_until(lambda: "Waiting for connections to close" in server.output, "the shutdown")
            server.press_ctrl_c()
            server.wait()
        assert server.log.names()[-1] == "endpoint waits"


# Where the server itself can end a request that takes too long.
TIMEOUTS = {
    "uvicorn": ["--timeout-graceful-shutdown", "1"],
    "hypercorn": ["--graceful-timeout", "1"],
    "hypercorn-trio": ["--graceful-timeout", "1"],
    "gunicorn": ["--worker-class", "servers.patient_worker.PatientWorker"],
}
ENDLESS = pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="hypercorn 0.18 first waits in Server.wait_closed(), which from Python 3.12 is for the client to go away",
)


@pytest.mark.parametrize(
    "server_name", [pytest.param(name, marks=[ENDLESS] if name == "hypercorn" else []) for name in TIMEOUTS]
)
def test_request_that_the_server_cancels_is_an_error_and_its_tasks_are_drained(
    server_name: str, tmp_path: Path
) -> None:
    with ServerProcess(server_name, tmp_path, *TIMEOUTS[server_name]) as server:
        server.wait_ready()
        with Client(server.port, "GET", "/patient") as client:
            server.log.wait_for("endpoint waits")
            server.signal(signal.SIGTERM)
            assert b" 200 " not in client.read_response()
        server.wait()
        server.log.assert_order(
            "endpoint waits", "endpoint cancelled", "rolled back", "after_response always ran", "lifespan closed"
        )
        server.log.assert_order("rolled back", "after_response on error ran", "lifespan closed")
        assert "after_response ran" not in server.log.names()
        [line] = server.log.matching(" was discarded: ")
        assert "it is for when='success', and after_response ended in error" in line


@contextmanager
def stopped_with_short_lifespan(server_name: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A hypercorn that waits one second for the lifespan to end, stopped while shielded work runs."""
    (tmp_path / "hypercorn.toml").write_text("shutdown_timeout = 1")
    with ServerProcess(server_name, tmp_path, "--config", str(tmp_path / "hypercorn.toml")) as server:
        server.wait_ready()
        request(server.port, "POST", "/work")
        server.signal(signal.SIGTERM)
        server.log.wait_for("stubborn cancelled")
        yield server


def test_hypercorn_stops_the_event_loop_when_the_lifespan_takes_too_long(tmp_path: Path) -> None:
    """On asyncio it raises out of its main function: what still runs is cancelled, shielded or not, and is named."""
    with stopped_with_short_lifespan("hypercorn", tmp_path) as server:
        server.wait()
        server.log.assert_order("stubborn cancelled", "precious cancelled")
        [_] = [line for line in server.log.matching(" was cancelled: ") if "Task 'precious' " in line]
        [report] = server.log.matching("Tasks drained")
        assert report.endswith(": 1 succeeded, 3 cancelled, 1 abandoned")
        assert "LifespanTimeoutError" in server.output


def test_hypercorn_waits_for_shielded_work_on_trio_when_the_lifespan_takes_too_long(tmp_path: Path) -> None:
    """On trio nothing cancels a shielded scope, so the process ends when the work has."""
    with stopped_with_short_lifespan("hypercorn-trio", tmp_path) as server:
        server.log.wait_for("lifespan cancelled")
        server.log.note("precious may finish")
        server.wait()
        server.log.assert_order("lifespan cancelled", "precious may finish", "precious finished")
        [report] = server.log.matching("Tasks drained")
        assert report.endswith(": 2 succeeded, 2 cancelled, 1 abandoned")
        assert "LifespanTimeoutError" in server.output


# Where the parent process ends a worker that takes too long, it does that with SIGKILL.
KILLED = {"granian": ["--workers-kill-timeout", "1"], "gunicorn": ["--graceful-timeout", "1"]}


@pytest.mark.parametrize("server_name", KILLED)
def test_worker_that_is_killed_says_nothing_more(server_name: str, tmp_path: Path) -> None:
    """Nothing in a process can outlive this: grace_period and shield_timeout must fit into the time of the server."""
    with ServerProcess(server_name, tmp_path, *KILLED[server_name]) as server:
        server.wait_ready()
        request(server.port, "POST", "/work")
        server.signal(signal.SIGTERM)
        server.wait()
        assert "stubborn cancelled" in server.log.names()  # the drain had begun, and waited for shielded work
        assert "precious cancelled" not in server.log.names()
        assert "lifespan closed" not in server.log.names()


# What a server makes of an application that does not start. hypercorn reports success; its log says otherwise.
STARTUP_FAILED = {"uvicorn": 3, "hypercorn": 0, "hypercorn-trio": 0, "granian": 1, "gunicorn": 3}


@pytest.mark.parametrize("server_name", STARTUP_FAILED)
def test_application_that_does_not_start(server_name: str, tmp_path: Path) -> None:
    """What its lifespan scheduled before it failed never runs, and is named."""
    with ServerProcess(server_name, tmp_path, TASKS_FAIL_STARTUP="1") as server:
        assert server.wait(40) == STARTUP_FAILED[server_name]
        assert "this application does not start" in server.output
        assert "startup task ran" not in server.log.names()
        [line] = server.log.matching(" was discarded: ")
        assert "log WARNING Task 'ran' " in line
        assert "the scheduler was closed before it was resumed" in line
        assert server.log.names()[-1].endswith("1 discarded")


def test_each_of_several_workers_drains_its_own_tasks(tmp_path: Path) -> None:
    with ServerProcess("uvicorn-workers", tmp_path) as server:
        server.wait_ready(workers=2)
        with Client(server.port, "GET", "/busy") as busy:
            busy.read_until(b"busy\n")
            request(server.port, "POST", "/work")  # taken by the other worker: this one cannot
            server.log.note("worker may go on")
            busy.read_response()
        pids = {event.pid for event in server.log.events() if event.name == "lifespan opened"}
        server.signal(signal.SIGTERM)
        server.log.wait_for("stubborn cancelled")
        server.log.note("precious may finish")
        assert server.wait() == 0
        busy_pid = next(event.pid for event in server.log.events() if event.name == "worker is busy")
        last = {event.pid: event.name for event in server.log.events() if event.pid in pids}
        assert set(last.values()) == {"lifespan closed"}
        reports = {event.pid: event.name for event in server.log.events() if "Tasks drained" in event.name}
        assert reports[busy_pid].endswith("1 succeeded")
        assert reports[(pids - {busy_pid}).pop()].endswith("2 succeeded, 2 cancelled, 1 abandoned")

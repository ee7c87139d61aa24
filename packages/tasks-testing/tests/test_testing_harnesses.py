"""The recorder works the same in every way of testing that is in use."""

from __future__ import annotations

from pathlib import Path

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
from app import app, audit, charge, send_email
from asgi_lifespan import LifespanManager
from httpx import ASGITransport, AsyncClient
from starlette.testclient import TestClient
from tasks_core import TaskScheduler
from tasks_testing import call, finished, opened, record_tasks, started

ANN = {"email": "ann@x"}

def check(recorder):
    recorder.assert_ran(call(audit, "created", recorder.of(audit)[0].call.args[1]), times=1)
    recorder.after_response.assert_ran(call(send_email, "ann@x"), times=1)
    recorder.assert_not_scheduled(charge)
    recorder.request(0).assert_order(
        "route_returned", opened("after_route"), "response_started", "response_sent", opened("after_response"),
        started(send_email), finished(send_email))
    assert recorder.requests[0].status == 201
"""


def run(pytester: pytest.Pytester, suite: str, *args: str) -> pytest.RunResult:
    pytester.makepyfile(app=Path(__file__).with_name("testing_app.py").read_text())
    pytester.makepyfile(test_suite=HEAD + suite)
    return pytester.runpytest("-p", "no:cacheprovider", "-W", "error", *args)


NO_ASYNCIO = ("-p", "no:asyncio")


def test_a_sync_client_on_asyncio_and_trio(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture(params=["asyncio", "trio"])
def client(request):
    with TestClient(app, backend=request.param) as client:
        yield client

def test_client_first(client, tasks_recorder):
    client.post("/users", json=ANN)
    check(tasks_recorder)

def test_recorder_first(tasks_recorder, client):
    client.post("/users", json=ANN)
    check(tasks_recorder)

@pytest.mark.tasks_recorder(virtual_time=True)
def test_virtual_time(client, tasks_recorder):
    tasks_recorder.fail(charge, ConnectionError, times=2)
    client.post("/orders")
    tasks_recorder.drain()
    assert tasks_recorder.one(charge).attempts == 3
    assert tasks_recorder.clock.now == 3
""",
        *NO_ASYNCIO,
    )
    result.assert_outcomes(passed=6)


def test_a_client_without_lifespan(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture
def client():
    return TestClient(app)

def test_request(client, tasks_recorder):
    client.post("/users", json=ANN)
    check(tasks_recorder)

@pytest.mark.tasks_recorder(virtual_time=True)
def test_virtual_time(client, tasks_recorder):
    tasks_recorder.fail(charge, ConnectionError, times=2)
    client.post("/orders")
    assert tasks_recorder.one(charge).attempts == 3
    assert tasks_recorder.clock.now == 3

@pytest.mark.tasks_recorder(mode="hold")
def test_hold(client, tasks_recorder):
    client.post("/users", json=ANN)
    with pytest.raises(AssertionError, match="release inside the 'with TestClient"):
        tasks_recorder.release(send_email)
""",
        *NO_ASYNCIO,
    )
    result.assert_outcomes(passed=3)


def test_a_session_scoped_client(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture(scope="session")
def client():
    with TestClient(app) as client:
        yield client

@pytest.mark.parametrize("number", range(3))
def test_request(client, tasks_recorder, number):
    client.post("/users", json=ANN)
    check(tasks_recorder)

@pytest.mark.tasks_recorder(mode="hold")
def test_hold(client, tasks_recorder):
    client.post("/users", json=ANN)

@pytest.mark.tasks_recorder(virtual_time=True)
def test_virtual_time(client, tasks_recorder):
    tasks_recorder.fail(charge, ConnectionError)
    client.post("/orders")

def test_nothing_is_left(client, tasks_recorder):
    tasks_recorder.drain()
    assert tasks_recorder.events == ()
""",
        *NO_ASYNCIO,
    )
    result.assert_outcomes(passed=6)


def test_a_sync_client_inside_of_async_tests(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
pytestmark = pytest.mark.anyio

@pytest.fixture
def client():
    with TestClient(app) as client:
        yield client

async def test_request(client, tasks_recorder):
    client.post("/users", json=ANN)
    await tasks_recorder.adrain()
    check(tasks_recorder)

@pytest.mark.tasks_recorder(virtual_time=True)
async def test_virtual_time(client, tasks_recorder):
    tasks_recorder.fail(charge, ConnectionError, times=2)
    client.post("/orders")
    await tasks_recorder.adrain()
    assert tasks_recorder.one(charge).attempts == 3
""",
        *NO_ASYNCIO,
    )
    result.assert_outcomes(passed=4)


ASYNC_CLIENT = """
@pytest.fixture
async def client():
    async with LifespanManager(app) as manager:
        async with AsyncClient(transport=ASGITransport(manager.app), base_url="http://test") as client:
            yield client

async def test_client_first(client, tasks_recorder):
    await client.post("/users", json=ANN)
    await tasks_recorder.adrain()
    check(tasks_recorder)

async def test_recorder_first(tasks_recorder, client):
    await client.post("/users", json=ANN)
    await tasks_recorder.adrain()
    check(tasks_recorder)

async def test_inside(tasks_recorder):
    async with LifespanManager(app) as manager:
        async with AsyncClient(transport=ASGITransport(manager.app), base_url="http://test") as client:
            await client.post("/users", json=ANN)
            await tasks_recorder.adrain()
    check(tasks_recorder)

async def test_without_lifespan(tasks_recorder):
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        await client.post("/users", json=ANN)
    check(tasks_recorder)

@pytest.mark.tasks_recorder(virtual_time=True)
async def test_virtual_time(client, tasks_recorder):
    tasks_recorder.fail(charge, ConnectionError, times=2)
    await client.post("/orders")
    await tasks_recorder.adrain()
    assert tasks_recorder.one(charge).attempts == 3
    assert tasks_recorder.clock.now == 3

async def test_scheduler(tasks_recorder):
    async with TaskScheduler() as scheduler:
        scheduler.schedule(send_email, "ann@x")
        await tasks_recorder.adrain()
        assert tasks_recorder.one(send_email).result == "sent to ann@x"
"""


def test_an_async_client_under_the_anyio_plugin(pytester: pytest.Pytester) -> None:
    result = run(pytester, "pytestmark = pytest.mark.anyio\n" + ASYNC_CLIENT, *NO_ASYNCIO)
    result.assert_outcomes(passed=12)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_an_async_client_under_pytest_asyncio(pytester: pytest.Pytester, mode: str) -> None:
    suite = "import pytest_asyncio\npytestmark = pytest.mark.asyncio\n" + ASYNC_CLIENT
    if mode == "strict":
        suite = suite.replace("@pytest.fixture", "@pytest_asyncio.fixture")
    pytester.makeini(
        f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\naddopts = -p no:anyio"
    )
    run(pytester, suite).assert_outcomes(passed=6)


@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
def test_every_loop_scope_of_pytest_asyncio(pytester: pytest.Pytester, scope: str) -> None:
    pytester.makeini(
        "[pytest]\nasyncio_mode = strict\nasyncio_default_fixture_loop_scope = function\naddopts = -p no:anyio"
    )
    result = run(
        pytester,
        f"""
import pytest_asyncio

@pytest_asyncio.fixture(scope="{scope}", loop_scope="{scope}")
async def the_end():
    return anyio.Event()

@pytest_asyncio.fixture(scope="{scope}", loop_scope="{scope}")
async def client(the_end):
    async with LifespanManager(app) as manager:
        async with AsyncClient(transport=ASGITransport(manager.app), base_url="http://test") as client:
            yield client
            the_end.set()

@pytest.mark.asyncio(loop_scope="{scope}")
class TestScope:
    async def test_one(self, client, tasks_recorder):
        await client.post("/users", json=ANN)
        await tasks_recorder.adrain()
        check(tasks_recorder)

    @pytest.mark.tasks_recorder(timeout=30)
    async def test_a_leak_on_a_loop_that_stands_still_is_told_at_once(self, client, the_end, tasks_recorder):
        tasks_recorder.stub(send_email, lambda to: the_end.wait())
        await client.post("/users", json=ANN)
        await tasks_recorder.await_for(send_email, "running")

    async def test_two(self, tasks_recorder, client):
        await client.post("/users", json=ANN)
        await tasks_recorder.adrain()
        check(tasks_recorder)
""",
    )
    result.assert_outcomes(passed=3, errors=1)


def test_xdist(pytester: pytest.Pytester) -> None:
    # Little is imported, because each worker does it again.
    pytester.makepyfile("""
import anyio
import pytest
from tasks_core import TaskScheduler
from tasks_testing import call

async def send(number): pass
async def charge(number): pass

@pytest.mark.parametrize("number", range(4))
def test_request(tasks_recorder, number):
    async def main():
        async with TaskScheduler() as scheduler:
            scheduler.schedule(send, number)
    anyio.run(main)
    tasks_recorder.assert_ran(call(send, number), times=1)
    if number == 3:
        tasks_recorder.assert_ran(charge)
""")
    unused = [option for name in ("asyncio", "examples", "hypothesispytest") for option in ("-p", f"no:{name}")]
    result = pytester.runpytest("-p", "no:cacheprovider", "-W", "error", "-n2", *unused)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E * AssertionError: expected charge to have run, it did not",
            "*- Captured tasks timeline call -*",
            " outside of requests",
            "*  #1 send(3) *scheduled*",
        ]
    )


def test_hypothesis(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
from hypothesis import HealthCheck, given, settings, strategies as st

@given(number=st.integers())
@settings(max_examples=10, deadline=None)
def test_each_example_has_its_record(number):
    async def main():
        async with TaskScheduler() as scheduler:
            scheduler.schedule(charge, number)
            await recorder.adrain()
    with record_tasks(strict=True) as recorder:
        anyio.run(main)
        recorder.assert_ran(call(charge, number), times=1)

@given(number=st.integers())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_fixture_is_cleared(tasks_recorder, number):
    async def main():
        async with TaskScheduler() as scheduler:
            scheduler.schedule(charge, number)
            await tasks_recorder.adrain()
    tasks_recorder.clear()
    anyio.run(main)
    tasks_recorder.assert_ran(call(charge, number), times=1)
""",
        *NO_ASYNCIO,
    )
    result.assert_outcomes(passed=2)


def test_unittest(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
import unittest

class Users(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _recorder(self, tasks_recorder):
        self.recorder = tasks_recorder

    def test_request(self):
        with TestClient(app) as client:
            client.post("/users", json=ANN)
            check(self.recorder)

    def test_failure(self):
        async def fail(to): raise ValueError(to)
        self.recorder.stub(send_email, fail)
        with TestClient(app) as client:
            client.post("/users", json=ANN)

    def test_both(self):
        async def fail(to): raise ValueError(to)
        self.recorder.stub(send_email, fail)
        with TestClient(app) as client:
            client.post("/users", json=ANN)
        self.assertEqual(1, 2)
""",
        *NO_ASYNCIO,
    )
    result.assert_outcomes(passed=1, failed=2)


def test_websockets_and_streams(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        live="""
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from tasks_fastapi import Tasks, add_tasks

app = FastAPI()
add_tasks(app)

async def note(text: str) -> str:
    return text

@app.websocket("/ws")
async def ws(socket: WebSocket, tasks: Tasks) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        tasks.schedule(note, text)
        tasks.after_response.schedule(note, text + " later")
        await socket.send_text(text)

@app.get("/stream")
def stream(tasks: Tasks) -> StreamingResponse:
    tasks.after_response.schedule(note, "sent")
    return StreamingResponse(iter(["a", "b"]))

@app.get("/sync")
def sync(tasks: Tasks) -> None:
    tasks.schedule(note, "thread")
"""
    )
    result = run(
        pytester,
        """
from live import app as live_app, note

@pytest.fixture
def client():
    with TestClient(live_app) as client:
        yield client

def test_websocket(client, tasks_recorder):
    with client.websocket_connect("/ws") as socket:
        socket.send_text("hello")
        socket.receive_text()
        tasks_recorder.immediate.assert_ran(call(note, "hello"))
        with pytest.raises(AssertionError, match="request #1 WEBSOCKET /ws still being served"):
            tasks_recorder._timeout, before = 0.1, tasks_recorder._timeout
            tasks_recorder.assert_not_scheduled(send_email)
    tasks_recorder._timeout = before
    tasks_recorder.after_response.assert_ran(call(note, "hello later"), times=1)
    tasks_recorder.assert_not_scheduled(send_email)

def test_stream(client, tasks_recorder):
    assert client.get("/stream").text == "ab"
    tasks_recorder.assert_order("response_started", "response_sent", started(note))

def test_sync_endpoint(client, tasks_recorder):
    client.get("/sync")
    tasks_recorder.immediate.assert_ran(call(note, "thread"), times=1)
""",
        *NO_ASYNCIO,
    )
    result.assert_outcomes(passed=3)


WITHOUT_APP = """
import anyio
import pytest
from fastapi import FastAPI
from tasks_core import TaskScheduler, current_scheduler, current_task
from tasks_fastapi import Tasks, add_tasks, current_tasks
from tasks_testing import call

ran = []

async def mail(to):
    ran.append(to)

class Orders:
    def create(self, to):
        current_scheduler().schedule(mail, to)

async def create_order(to: str, tasks: Tasks):
    tasks.schedule(mail, "now")
    tasks.after_response.schedule(mail, to)

def test_a_service(tasks_scheduler, tasks_recorder):
    Orders().create("ann")
    tasks_recorder.assert_ran(call(mail, "ann"), times=1)
    assert current_scheduler() is tasks_scheduler

ASYNC
class TestMethods:
    async def test_a_service_on_an_event_loop(self, tasks_scheduler, tasks_recorder):
        Orders().create("ann")
        await tasks_recorder.adrain()
        tasks_recorder.assert_ran(call(mail, "ann"), times=1)
        assert current_scheduler() is tasks_scheduler

    async def test_an_endpoint_that_is_called_directly(self, tasks_scheduler, tasks_recorder):
        await create_order("ann", current_tasks())
        await tasks_recorder.adrain()
        tasks_recorder.immediate.assert_ran(call(mail, "now"), times=1)
        tasks_recorder.after_response.assert_ran(call(mail, "ann"), times=1)

    async def test_the_end_waits_for_tasks(self, tasks_scheduler):
        tasks_scheduler.schedule(mail, "late")

def test_they_have_ended():
    assert ran[-1] == "late"
    with pytest.raises(RuntimeError):
        current_scheduler()
"""


def test_a_scheduler_without_an_app_under_anyio(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(WITHOUT_APP.replace("ASYNC", "@pytest.mark.anyio"))
    pytester.runpytest("-p", "no:cacheprovider", "-W", "error", *NO_ASYNCIO).assert_outcomes(passed=8)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_a_scheduler_without_an_app_under_pytest_asyncio(pytester: pytest.Pytester, mode: str) -> None:
    pytester.makeini(
        f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = session\naddopts = -p no:anyio"
    )
    pytester.makepyfile(WITHOUT_APP.replace("ASYNC", "@pytest.mark.asyncio"))
    pytester.runpytest("-p", "no:cacheprovider", "-W", "error").assert_outcomes(passed=5)


def test_an_event_loop_that_does_not_run_is_named(pytester: pytest.Pytester) -> None:
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = session\naddopts = -p no:anyio"
    )
    pytester.makepyfile("""
import asyncio
import pytest
import pytest_asyncio
from tasks_core import TaskScheduler

@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def scheduler():
    async with TaskScheduler(grace_period=0) as scheduler:
        yield scheduler

async def work(): ...

@pytest.mark.tasks_recorder(timeout=0.1)
@pytest.mark.asyncio(loop_scope="function")
async def test_one(scheduler, tasks_recorder):
    await asyncio.to_thread(scheduler.schedule, work)  # on this event loop, the call is refused
    await tasks_recorder.adrain()
""")
    result = pytester.runpytest("-p", "no:cacheprovider", "-W", "ignore::tasks_testing.TaskLostWarning")
    result.stdout.fnmatch_lines(
        [
            "E * AssertionError: adrain() waited 0.1 s, and 1 task not ended",
            "E * #1 work()  pending, scheduled at *",
            "E *     the event loop of its scheduler does not run: start the scheduler on the event loop of *",
        ]
    )

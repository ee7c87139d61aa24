"""The same test with its tasks in other orders."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from functools import partial

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI
from starlette.testclient import TestClient
from tasks_core import TaskScheduler, retry
from tasks_fastapi import Tasks, add_tasks
from tasks_testing import TasksRecorder, record_tasks

ran: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


@pytest.fixture(params=["asyncio", "trio"])
def scheduler(request: pytest.FixtureRequest) -> Iterator[TaskScheduler]:
    """A scheduler on an event loop in another thread."""
    with (
        start_blocking_portal(request.param) as portal,
        portal.wrap_async_context_manager(TaskScheduler(grace_period=0)) as scheduler,
    ):
        yield scheduler


async def note(name: str) -> None:
    ran.append(name)


def note_in_thread(name: str) -> None:
    ran.append(name)


def schedule(scheduler: TaskScheduler, names: str) -> None:
    for number, name in enumerate(names):
        scheduler.schedule(note_in_thread if number % 2 else note, name)


def test_every_order_is_run_once(scheduler: TaskScheduler) -> None:
    orders: list[str] = []

    def body() -> None:
        schedule(scheduler, "abc")
        recorder.drain()
        orders.append("".join(ran))

    with record_tasks() as recorder:
        explored = recorder.explore_orders(body, restore=ran.clear)
        assert len(recorder) == 3
    assert (explored.run, explored.total) == (6, 6)
    assert orders == ["abc", "acb", "bac", "bca", "cab", "cba"]


def test_some_orders_are_run_when_there_are_too_many(scheduler: TaskScheduler) -> None:
    orders: list[list[str]] = [[], [], []]

    def body(seen: list[str]) -> None:
        schedule(scheduler, "abcdef")
        recorder.drain()
        seen.append("".join(ran))

    with record_tasks() as recorder:
        for seed, seen in zip([1, 1, 2], orders, strict=True):
            explored = recorder.explore_orders(partial(body, seen), restore=ran.clear, limit=20, seed=seed)
            assert (explored.run, explored.total) == (20, 720)
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) == 20


def test_the_fewest_changes_that_fail_are_named(scheduler: TaskScheduler) -> None:
    def body() -> None:
        schedule(scheduler, "abcdef")
        recorder.drain()
        assert ran.index("b") < ran.index("e")

    with record_tasks() as recorder:
        with pytest.raises(AssertionError, match=r"assert") as failure:
            recorder.explore_orders(body, restore=ran.clear, limit=50, seed=3)
        (text,) = failure.value.__notes__
        lines = text.splitlines()
        assert lines[0].startswith("it fails when the tasks start in another order; ")
        assert lines[0].endswith(" of 720 orders were run, with seed 3")
        assert (lines[1], lines[8]) == ("  started in this order:", "  in place of:")
        started = "".join(line[-3] for line in lines[2:8])
        # One of the orders with the fewest changes: "e" before "b", and as little else as possible.
        assert started in {"aebcdf", "acebdf", "acdebf"}
        assert any(line.startswith("  to run this order alone, write explore_orders(..., order=[") for line in lines)
        assert " outside of requests" in lines
        with pytest.raises(AssertionError, match=r"assert"):
            recorder.explore_orders(body, restore=ran.clear, order=[0, 3])
        assert recorder.explore_orders(body, restore=ran.clear, order=[0, 2]).run == 1
        assert ran == ["a", "d", "b", "c", "e", "f"]


def test_a_task_that_schedules_more_has_more_orders(scheduler: TaskScheduler) -> None:
    orders: list[str] = []

    async def first() -> None:
        ran.append("1")
        scheduler.schedule(note, "2")

    def body() -> None:
        scheduler.schedule(first)
        schedule(scheduler, "ab")
        recorder.drain()
        orders.append("".join(ran))

    with record_tasks() as recorder:
        explored = recorder.explore_orders(body, restore=ran.clear)
    assert explored.run == explored.total == len(set(orders)) == 12
    assert {"".join(order) for order in itertools.permutations("12ab") if order.index("1") < order.index("2")} == set(
        orders
    )


def test_a_task_that_fails_in_some_order_fails_the_test(scheduler: TaskScheduler) -> None:
    async def needs_b() -> None:
        if "b" not in ran:
            raise LookupError("b")

    def body() -> None:
        schedule(scheduler, "ab")
        scheduler.schedule(needs_b)
        recorder.drain()

    with record_tasks() as recorder:
        with pytest.raises(AssertionError, match=r"^1 background task failed, and the test does not expect it\n"):
            recorder.explore_orders(body, restore=ran.clear)
        recorder.expect_failure(needs_b)


def test_the_usual_order_comes_first(scheduler: TaskScheduler) -> None:
    def body() -> None:
        schedule(scheduler, "ab")
        recorder.drain()
        raise KeyError

    with record_tasks() as recorder, pytest.raises(KeyError) as failure:
        recorder.explore_orders(body, restore=ran.clear)
    assert failure.value.__notes__ == ["it fails in the usual order: the tasks start as they were scheduled"]


def test_only_one_order_is_an_error(scheduler: TaskScheduler) -> None:
    def body() -> None:
        for name in "ab":
            schedule(scheduler, name)
            recorder.drain()

    with record_tasks() as recorder, pytest.raises(AssertionError, match=r"there is only one order, since no two of t"):
        recorder.explore_orders(body, restore=ran.clear)


def test_assertions_wait_until_every_task_has_started(scheduler: TaskScheduler) -> None:
    async def schedule_more() -> None:
        scheduler.schedule(note, "more")

    def body() -> None:
        scheduler.schedule(schedule_more)
        schedule(scheduler, "a")
        recorder.assert_ran("note", times=2)
        with pytest.raises(AssertionError, match="it was, 2 times"):
            recorder.assert_not_scheduled("note")

    with record_tasks() as recorder:
        assert recorder.explore_orders(body, restore=ran.clear).run == 3


def test_what_the_end_of_the_body_finds_unstarted_is_started(scheduler: TaskScheduler) -> None:
    with record_tasks() as recorder:
        recorder.explore_orders(lambda: schedule(scheduler, "ab"), restore=ran.clear)
    assert sorted(ran) == ["a", "b"]


def test_rules_of_the_body_hold_in_each_run_alone(scheduler: TaskScheduler) -> None:
    def body() -> None:
        recorder.fail(note, ConnectionError, times=1)
        recorder.hold("held")
        scheduler.task(on_error=retry(attempts=2, backoff=60)).schedule(note, "a")
        schedule(scheduler, "b")
        scheduler.task(name="held").schedule(note, "c")
        recorder.drain()
        assert recorder.one("held").state == "held"
        recorder.release("held")
        recorder.drain()
        assert sorted(ran) in (["a", "b", "c"], ["a", "c"])
        recorder.expect_failure(note)

    with record_tasks(virtual_time=True) as recorder:
        recorder.explore_orders(body, restore=ran.clear)


def test_a_task_that_another_one_waits_for_starts_at_once(scheduler: TaskScheduler) -> None:
    async def waits() -> None:
        await event.wait()
        ran.append("waited")

    async def sets() -> None:
        event.set()

    event: anyio.Event

    async def make() -> anyio.Event:
        return anyio.Event()

    def body() -> None:
        nonlocal event
        made: list[anyio.Event] = []
        done = threading.Event()

        async def prepare() -> None:
            made.append(anyio.Event())
            done.set()

        scheduler.task(name="prepare").schedule(prepare)
        done.wait(5)
        (event,) = made
        scheduler.schedule(waits)
        scheduler.schedule(sets)
        schedule(scheduler, "ab")
        recorder.drain()
        assert "waited" in ran

    with record_tasks() as recorder:
        recorder.explore_orders(body, restore=ran.clear, keep=[waits, sets, "prepare"])


app = FastAPI()
add_tasks(app)
stock = {"teapot": 1}
log: list[str] = []


async def reserve(item: str) -> None:
    if stock[item]:
        stock[item] -= 1
        log.append("reserved")


async def count(item: str) -> None:
    log.append(f"{stock[item]} left")


@app.post("/orders")
async def create_order(tasks: Tasks) -> None:
    tasks.after_response.schedule(reserve, "teapot")
    tasks.after_response.schedule(count, "teapot")


def restore() -> None:
    stock["teapot"] = 1
    log.clear()


def test_the_tasks_of_requests(tasks_recorder: TasksRecorder) -> None:
    def body() -> None:
        assert client.post("/orders").status_code == 200
        tasks_recorder.drain()
        assert log == ["reserved", "0 left"]

    with TestClient(app) as client:
        restore()
        body()
        with pytest.raises(AssertionError) as failure:
            tasks_recorder.explore_orders(body, restore=restore)
    (text,) = failure.value.__notes__
    assert text.startswith("it fails when the tasks start in another order; 2 of 2 orders were run, with seed 0\n")
    assert "\n #1 POST /orders -> 200\n" in text


def test_an_app_that_shuts_down_before_its_tasks_have_started(tasks_recorder: TasksRecorder) -> None:
    def body() -> None:
        with TestClient(app) as client:
            client.post("/orders")

    with pytest.raises(AssertionError, match=r"a task had not started when its app shut down\. In the body, drain\(\)"):
        tasks_recorder.explore_orders(body, restore=restore)


@pytest.mark.anyio
async def test_on_an_event_loop() -> None:
    orders: list[str] = []

    async def body() -> None:
        async with TaskScheduler() as scheduler:
            schedule(scheduler, "abc")
            await recorder.adrain()
        orders.append("".join(ran))

    async def restore() -> None:
        ran.clear()

    with record_tasks() as recorder:
        assert (await recorder.aexplore_orders(body, restore=restore)).run == 6
        assert len(set(orders)) == 6
        with pytest.raises(RuntimeError, match="aexplore_orders"):
            recorder.explore_orders(body, restore=restore)


@pytest.mark.anyio
async def test_a_failure_on_an_event_loop() -> None:
    async def body() -> None:
        async with TaskScheduler() as scheduler:
            schedule(scheduler, "ab")
            await recorder.adrain()
        if ran != ["a", "b"]:
            pytest.fail("wrong order")

    with record_tasks() as recorder, pytest.raises(pytest.fail.Exception, match="wrong order") as failure:
        await recorder.aexplore_orders(body, restore=ran.clear)
    assert "order=[1]" in failure.value.__notes__[0]


@pytest.mark.anyio
async def test_a_cancellation_ends_the_exploration() -> None:
    async def body() -> None:
        scope.cancel()
        await anyio.sleep_forever()

    with record_tasks() as recorder:
        with anyio.CancelScope() as scope:
            await recorder.aexplore_orders(body, restore=ran.clear)
        assert scope.cancelled_caught
        async with TaskScheduler() as scheduler:  # which holds nothing any more
            await scheduler.schedule(note, "a")


def test_an_interruption_ends_the_exploration(scheduler: TaskScheduler) -> None:
    bodies: list[int] = []

    def body() -> None:
        schedule(scheduler, "ab")
        recorder.drain()
        bodies.append(1)
        raise KeyboardInterrupt

    with record_tasks() as recorder, pytest.raises(KeyboardInterrupt):
        recorder.explore_orders(body, restore=ran.clear)
    assert bodies == [1]


def test_a_restore_that_fails(scheduler: TaskScheduler) -> None:
    def restore() -> None:
        raise LookupError

    with record_tasks() as recorder, pytest.raises(LookupError):
        recorder.explore_orders(lambda: schedule(scheduler, "ab"), restore=restore)


def test_a_coroutine_function_is_refused_without_an_event_loop() -> None:
    async def body() -> None: ...

    with record_tasks() as recorder, pytest.raises(TypeError, match=r"^body of explore_orders\(\) must be a plain f"):
        recorder.explore_orders(body, restore=ran.clear)


def test_an_order_that_does_not_exist(scheduler: TaskScheduler) -> None:
    def body() -> None:
        schedule(scheduler, "ab")
        recorder.drain()

    with (
        record_tasks() as recorder,
        pytest.raises(ValueError, match=r"^order=\[5\]: at position 0 there were 2 tasks to choose from$"),
    ):
        recorder.explore_orders(body, restore=ran.clear, order=[5])

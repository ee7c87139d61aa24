"""What is recorded, and looking at it."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, get_args

import anyio
import pytest
from tasks_core import TaskPhase, TaskScheduler, emit, report, retry
from tasks_core.frameworks import announce
from tasks_testing import (
    RequestMoment,
    TaskEvent,
    TaskLostWarning,
    TasksRecorder,
    call,
    call_like,
    finished,
    opened,
    record_tasks,
    scheduled,
    started,
)

pytestmark = pytest.mark.anyio


class Request:
    """Stands for a request of tasks-fastapi: an origin that is announced, with three phases."""

    error: BaseException | None = None

    def __init__(self, scheduler: TaskScheduler, path: str = "/users", method: str = "POST") -> None:
        self.method = method
        self.path = path
        self.status = 0
        announce(self, "request_started")
        self.immediate = TaskPhase(scheduler, "immediate", origin=self)
        self.immediate.open()
        self.after_route = TaskPhase(scheduler, "after_route", origin=self)
        self.after_response = TaskPhase(scheduler, "after_response", origin=self)

    def finish(self, status: int = 201) -> None:
        announce(self, "route_returned")
        self.after_route.open()
        self.status = status
        announce(self, "response_started")
        announce(self, "response_sent")
        self.after_response.open()
        announce(self, "request_finished")


async def work(number: int = 0) -> int:
    return number


async def mail(to: str) -> str:
    return to


async def fail() -> None:
    raise ValueError("no")


def kinds(events: tuple[TaskEvent, ...]) -> list[str]:
    return [event.kind for event in events]


async def test_the_events_of_a_request_and_its_tasks() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            request = Request(scheduler)
            request.after_response.schedule(work, 1)
            request.finish()
            await recorder.adrain()
        assert kinds(recorder.events) == [
            "request_started",
            "scheduled",
            "route_returned",
            "phase_opened",
            "response_started",
            "response_sent",
            "phase_opened",
            "request_finished",
            "started",
            "succeeded",
        ]
        assert [event.phase for event in recorder.events if event.kind == "phase_opened"] == [
            "after_route",
            "after_response",
        ]
        assert [event.seq for event in recorder.events] == sorted({event.seq for event in recorder.events})
        assert [event.at for event in recorder.events] == sorted(event.at for event in recorder.events)
        assert {event.thread for event in recorder.events} == {threading.current_thread().name}
        recorded = recorder.requests[0]
        assert (recorded.index, recorded.method, recorded.path, recorded.status, recorded.error) == (
            0,
            "POST",
            "/users",
            201,
            None,
        )
        assert repr(recorded) == "<RecordedRequest #1 POST /users -> 201>"
        assert all(event.request is recorded for event in recorder.events)


async def test_a_task_tells_everything_about_itself() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            request = Request(scheduler)
            handle = request.after_route.task(name="welcome", delay=0.001).schedule(mail, to="ann@x")
            task = recorder[0]
            assert (task.state, task.attempts, task.opened) == ("pending", 0, False)
            request.finish()
            await recorder.adrain()
        assert (task.id, task.name, task.phase, task.state, task.attempts) == (
            1,
            "welcome",
            "after_route",
            "succeeded",
            1,
        )
        assert (task.call, task.result, task.delay) == (call(mail, "ann@x"), "ann@x", 0.001)
        assert (task.error, task.reason, task.request, task.task) == (None, None, recorder.requests[0], handle)
        assert task.where.rpartition(":")[0] == __file__
        assert repr(task) == "<RecordedTask #1 welcome: mail(to='ann@x') after_route succeeded>"


async def test_views_narrow_down() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            for number in (1, 2):
                request = Request(scheduler, f"/{number}")
                request.immediate.schedule(work, number)
                request.after_route.schedule(work, number * 10)
                request.after_response.schedule(mail, f"{number}@x")
                request.finish()
            scheduler.schedule(work, 3)
            await recorder.adrain()

        def seen(view: Any) -> list[Any]:
            return [task.call.args[0] for task in view]

        assert seen(recorder) == [1, 10, "1@x", 2, 20, "2@x", 3]
        assert seen(recorder.immediate) == [1, 2]
        assert seen(recorder.after_route) == [10, 20]
        assert seen(recorder.after_response) == ["1@x", "2@x"]
        assert seen(recorder.in_phase("after_response").of(call(mail, "2@x"))) == ["2@x"]
        assert seen(recorder.request(0)) == [1, 10, "1@x"]
        assert seen(recorder.request().of(work)) == [2, 20]
        assert seen(recorder.in_state("failed")) == []
        assert seen(recorder.in_state("failed", "succeeded").of(call_like(work))) == [1, 10, 2, 20, 3]
        assert recorder.after_response.calls == [call(mail, "1@x"), call(mail, "2@x")]
        assert len(recorder) == 7
        assert seen(recorder[1:3]) == [10, "1@x"]
        assert recorder[-1].call == call(work, 3)
        assert len(recorder.request(0).events) < len(recorder.events)
        assert set(kinds(recorder.of(mail).events)) == {"scheduled", "started", "succeeded"}
        assert repr(recorder) == "<TasksRecorder: 7 tasks (7 succeeded)>"
        assert repr(recorder.request(1).after_route.of(work).in_state("held", "failed")) == (
            "<TaskView request #2 POST /2 -> 201, after_route, of work, failed or held: 0 tasks>"
        )


async def test_there_is_no_such_request() -> None:
    with record_tasks() as recorder:
        with pytest.raises(
            AssertionError,
            match=r"^request\(-1\): 0 requests recorded \(no app with tasks served a request while recording\)$",
        ):
            recorder.request()
        async with TaskScheduler() as scheduler:
            Request(scheduler).finish()
        with pytest.raises(AssertionError, match=r"^request\(1\): 1 request recorded \(#1 POST /users -> 201\)$"):
            recorder.request(1)


async def test_a_view_is_lazy() -> None:
    with record_tasks() as recorder:
        view = recorder.of(work)
        async with TaskScheduler() as scheduler:
            scheduler.schedule(work)
            assert len(view) == 1
            await recorder.adrain()


async def test_capturing_what_a_block_schedules() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.schedule(work, 1)
            Request(scheduler, "/1").finish()
            with recorder.capture() as captured:
                scheduler.schedule(work, 2)
                Request(scheduler, "/2").finish()
                assert len(captured) == 1
            scheduler.schedule(work, 3)
            Request(scheduler, "/3").finish()
            await recorder.adrain()
        assert captured.calls == [call(work, 2)]
        assert captured.request().events[0].request is recorder.requests[1]
        captured.assert_ran(work, times=1)
        assert repr(captured) == "<TaskView captured: 1 task (1 succeeded)>"


async def test_order_is_that_of_the_events() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            request = Request(scheduler)
            request.after_response.schedule(work)
            request.finish()
            await recorder.adrain()
        recorder.request(0).assert_order(
            "request_started",
            scheduled(work),
            "route_returned",
            opened("after_route"),
            "response_started",
            "response_sent",
            opened("after_response"),
            "request_finished",
            started(work),
            finished(work),
        )
        recorder.assert_order(work, finished(work))
        recorder.assert_order()
        with pytest.raises(AssertionError, match=r"  ok started work\n  -> started work   it came earlier\n"):
            recorder.assert_order(work, work)
        with pytest.raises(
            AssertionError, match=r"  ok started work\n  -> response_sent   it came earlier\n     finished wo"
        ):
            recorder.assert_order(work, "response_sent", finished(work))
        with pytest.raises(
            AssertionError, match=r"  -> started mail   it did not happen\nbut it was:\n  request_started\n  sched"
        ):
            recorder.assert_order(mail)
        with pytest.raises(
            AssertionError,
            match=r"  -> started 'mail'   it did not happen\nbut nothing happened\n  hint: no task is called 'mail'",
        ):
            recorder.of(mail).assert_order("mail")


@pytest.mark.parametrize("moment", get_args(RequestMoment))
async def test_each_moment_of_a_request_has_a_name(moment: RequestMoment) -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            Request(scheduler).finish()
        recorder.request(0).assert_order(moment)
        with pytest.raises(AssertionError, match=f"  ok {moment}\n  -> {moment}   it came earlier\nbut it was:\n"):
            recorder.request(0).assert_order(moment, moment)


async def test_a_moment_that_is_misspelt_gets_the_list_of_moments() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            Request(scheduler).finish()
        with pytest.raises(
            AssertionError,
            match=r"\n  hint: no task is called 'request_begun'; the moments of a request are request_started, route_",
        ):
            recorder.assert_order("request_begun")


async def test_counting() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            first = scheduler.schedule(work, 1)
            scheduler.schedule(work, 2)
            scheduler.schedule(fail)
            await recorder.adrain()
        assert recorder.assert_scheduled(work).task is first
        assert recorder.assert_ran(work, times=2).task is first
        assert recorder.one(call(work, 2)).result == 2
        assert recorder.of(call(work, 2)).one().result == 2
        recorder.assert_failed(fail, (KeyError, ValueError), match="n.", times=1)
        recorder.assert_not_scheduled(mail)
        recorder.of(mail).assert_nothing_scheduled()
        with pytest.raises(AssertionError, match=r"^expected work to have been scheduled once, it was 2 times\n"):
            recorder.one(work)
        with pytest.raises(AssertionError, match=r"^expected one task to have been scheduled once, 3 tasks were\n"):
            recorder.one()
        with pytest.raises(AssertionError, match=r"^expected work to have run 3 times, it did 2 times\n"):
            recorder.assert_ran(work, times=3)
        with pytest.raises(
            AssertionError, match=r"^expected fail to have failed with KeyError or OSError, it did not\n"
        ):
            recorder.assert_failed(fail, (KeyError, OSError))
        with pytest.raises(
            AssertionError, match=r"^expected fail to have failed with ValueError matching 'yes', it did n"
        ):
            recorder.assert_failed(fail, ValueError, match="yes")
        with pytest.raises(
            AssertionError, match=r"^expected 'charge' to have run, it did not\n  recorded: #1 work\(1\) "
        ):
            recorder.assert_ran("charge")
        with pytest.raises(
            ValueError, match=r"^times=0: times must be 1 or more; to assert that there is none, write assert_not_sched"
        ):
            recorder.assert_ran(work, times=0)


async def test_clear_forgets() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            event = anyio.Event()
            Request(scheduler).finish()
            scheduler.schedule(event.wait)
            with pytest.raises(
                RuntimeError,
                match=r"^clear\(\) came too early, 1 task not ended\n  #1 Event\.wait\(\)  (pending|running), ",
            ):
                recorder.clear()
            event.set()
            await recorder.adrain()
            recorder.clear()
            assert (len(recorder), recorder.requests, recorder.events) == (0, (), ())
            recorder.assert_nothing_scheduled()
            recorder.allow_running(anyio.sleep_forever)
            task = scheduler.schedule(anyio.sleep_forever)
            recorder.clear()
            task.cancel()
            scheduler.schedule(work)
            await recorder.adrain()
            assert recorder.one().id == 1


async def test_a_batch_of_a_session_is_no_request() -> None:
    class Session:
        pass

    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            batch = TaskPhase(scheduler, "after_commit", origin=Session())
            batch.schedule(work)
            batch.task(when="error").schedule(fail)
            batch.open()
            rolled_back = TaskPhase(scheduler, "after_rollback", origin=Session())
            rolled_back.schedule(mail, "ann@x")
            rolled_back.discard("it was committed")
            await recorder.adrain()
        recorder.assert_order(opened("after_commit"), work)  # type: ignore[arg-type]
        assert recorder.requests == ()
        assert recorder[0].request is None
        assert [(task.state, task.reason) for task in recorder[1:]] == [
            ("discarded", "it is for when='error', and after_commit ended in success"),
            ("discarded", "it was committed"),
        ]


async def test_events_of_what_was_there_before_are_not_recorded() -> None:
    async with TaskScheduler() as scheduler:
        request = Request(scheduler)
        task = request.after_response.task(on_error=retry(backoff=0)).schedule(fail)
        with record_tasks() as recorder:
            request.finish()
            await task.wait()
            assert recorder.events == ()


async def test_a_request_that_began_before_is_known_by_its_tasks() -> None:
    async with TaskScheduler() as scheduler:
        request = Request(scheduler, "/ws", "WEBSOCKET")
        with record_tasks() as recorder:
            request.immediate.schedule(work)
            assert str(recorder.requests[0]) == "#1 WEBSOCKET /ws"
            with pytest.raises(
                AssertionError, match=r"cannot tell, 1 task still running, request #1 WEBSOCKET /ws still be"
            ):
                recorder.assert_not_scheduled(mail)
            request.after_response.schedule(work)
            with pytest.raises(AssertionError, match=r"which is still served: close the WebSocket$"):
                await recorder.adrain(0.01)
            request.finish(0)
            await recorder.adrain()
            assert str(recorder.requests[0]) == "#1 WEBSOCKET /ws"


async def test_a_request_that_failed_says_so() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            request = Request(scheduler)
            request.error = ValueError("broken")
            announce(request, "request_finished")
        assert str(recorder.requests[0]) == "#1 POST /users -> ValueError: broken"
        assert recorder.requests[0].status is None


# ---- several recordings ----


async def test_an_inner_recording_has_what_is_scheduled_until_its_end() -> None:
    async with TaskScheduler() as scheduler:
        with record_tasks() as outer:
            scheduler.schedule(work, 1)
            with record_tasks() as inner:
                scheduler.schedule(work, 2)
                Request(scheduler).finish()
                await inner.adrain()
            scheduler.schedule(work, 3)
            await outer.adrain()
        assert outer.calls == [call(work, 1), call(work, 3)]
        assert outer.requests == ()
        assert inner.calls == [call(work, 2)]
        assert len(inner.requests) == 1


async def test_recordings_may_end_in_any_order() -> None:
    async with TaskScheduler() as scheduler:
        with ExitStack() as first, ExitStack() as second:
            outer = first.enter_context(record_tasks())
            inner = second.enter_context(record_tasks())
            first.close()
            scheduler.schedule(work)
            await inner.adrain()
        assert (len(outer), len(inner)) == (0, 1)


def in_thread(function: Any, *, context: Any = None) -> None:
    thread = threading.Thread(target=function if context is None else lambda: context.run(function))
    thread.start()
    thread.join()


async def test_the_inner_recording_has_what_a_thread_without_a_context_schedules() -> None:
    async with TaskScheduler() as scheduler:
        with record_tasks() as outer, record_tasks() as inner:
            in_thread(lambda: scheduler.schedule(work))
            await inner.adrain()
        assert (len(outer), len(inner)) == (0, 1)


async def test_the_timeline_has_at_most_80_columns() -> None:
    class OhError(Exception): ...

    async def fail_with_a_name_that_is_rather_long(text: str) -> None:
        raise OhError(text)

    with record_tasks(failures="ignore") as recorder:
        async with TaskScheduler() as scheduler:
            request = Request(scheduler, f"/{'long/' * 30}")
            for length in range(30):
                request.immediate.schedule(fail_with_a_name_that_is_rather_long, "x" * length)
            request.finish()
            await recorder.adrain()
    lines = recorder.timeline().splitlines()
    assert max(map(len, lines)) == 80
    assert {" OhError" in line for line in lines if " failed" in line} == {True, False}


async def test_recordings_side_by_side_tell_tasks_by_their_context() -> None:
    async with TaskScheduler() as scheduler:
        with record_tasks() as one:
            other: list[TasksRecorder] = []

            def record() -> None:
                with record_tasks() as recorder:
                    other.append(recorder)
                    scheduler.schedule(work, 2)
                    in_thread(lambda: scheduler.schedule(work, 3), context=copy_context())
                    context.run(scheduler.schedule, work, 1)
                    recorder.drain()

            context = copy_context()
            thread = threading.Thread(target=record)
            thread.start()
            await anyio.to_thread.run_sync(thread.join)
            await one.adrain()
        assert one.calls == [call(work, 1)]
        assert other[0].calls == [call(work, 2), call(work, 3)]


async def test_recordings_side_by_side_that_cannot_tell_say_so() -> None:
    problems: list[str] = []
    async with TaskScheduler() as scheduler:

        def record() -> None:
            try:
                with record_tasks() as recorder:
                    in_thread(lambda: scheduler.schedule(work))
                    recorder.drain()
            except AssertionError as error:
                problems.append(str(error))

        with pytest.raises(AssertionError, match=r"^several recorders are active side by side"), record_tasks():  # noqa: PT012
            thread = threading.Thread(target=record)
            thread.start()
            await anyio.to_thread.run_sync(thread.join)
    assert len(problems) == 1
    assert problems[0].startswith(
        "several recorders are active side by side, and cannot tell to which of them these tasks belong\n  'wo"
    )


# ---- the end of a recording ----


async def fails_at_its_end(**settings: Any) -> str:
    """Return what a recording says in which a task fails and another one goes on."""
    async with TaskScheduler() as scheduler:
        event = anyio.Event()
        try:
            with record_tasks(**settings) as recorder:
                scheduler.schedule(fail)
                scheduler.schedule(event.wait)
                await recorder.await_for(fail, "failed")
                recorder[0]._failure_expected = False
        except AssertionError as error:
            return str(error)
        finally:
            event.set()
    return ""


async def test_an_unexpected_failure_and_a_leak() -> None:
    told = (await fails_at_its_end()).splitlines()
    assert told[0] == "1 background task failed, and the test does not expect it"
    assert told[1].startswith("  #1 fail()  -  failed, scheduled at ")
    assert told[2].startswith("      File ")
    assert told[3:7] == [
        '        raise ValueError("no")',
        "    ValueError: no",
        "  hint: where it should fail, write tasks_recorder.assert_failed(fail, ValueError);",
        "        failures='ignore' turns this check off, for a test (marker) or for all (ini file)",
    ]
    assert told[7] == "1 task still running at the end of the test"
    assert told[8].startswith("  #2 Event.wait()  -  ")
    assert len(told) == 11


async def test_an_error_that_cannot_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise ValueError

    def other_drive(path: str) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    async def fail_oddly() -> None:
        raise Odd

    monkeypatch.setattr("os.path.relpath", other_drive)
    with record_tasks(failures="ignore") as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.schedule(fail_oddly)
        with pytest.raises(
            AssertionError, match=rf"Odd: <str\(\) raised>\n  hint: it failed at {__file__}:\d+; if it should"
        ):
            recorder.assert_ran(fail_oddly)


@pytest.mark.parametrize(
    "settings, number",
    [
        ({"failures": "ignore"}, 1),
        ({"leaks": "ignore"}, 1),
        ({"failures": "ignore", "leaks": "ignore"}, 0),
        ({"failures": "ignore", "leaks": "ignore", "strict": True}, 1),
    ],
)
async def test_checks_can_be_turned_off(settings: dict[str, Any], number: int) -> None:
    told = await fails_at_its_end(**settings)
    assert told.count("hint:") == number


async def test_expected_failures() -> None:
    with record_tasks() as recorder:
        recorder.expect_failure(fail, ValueError)
        async with TaskScheduler() as scheduler:
            scheduler.schedule(fail)
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.schedule(fail)
        recorder.expect_failure()
    with pytest.raises(AssertionError, match="failed, and the test"), record_tasks() as recorder:  # noqa: PT012
        recorder.expect_failure(fail, KeyError)
        recorder.expect_failure(work)
        async with TaskScheduler() as scheduler:
            scheduler.schedule(fail)
    with record_tasks() as recorder, pytest.raises(TypeError, match="names no task"):
        recorder.expect_failure(5)  # type: ignore[arg-type]


async def test_strict_wants_every_task_asserted() -> None:
    with record_tasks(strict=True) as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.schedule(work, 1)
            scheduler.schedule(work, 2)
            scheduler.schedule(work, 3)
            scheduler.schedule(mail, "ann@x")
            recorder.allow_running(mail)
            await recorder.adrain()
        recorder.assert_ran(call(work, 1))
        recorder.assert_order(call(work, 2))
        with pytest.raises(
            AssertionError, match=r"^1 task not asserted by the test\n  #3 work\(3\)  -  succeeded, schedule"
        ):
            recorder.assert_all_asserted()
        assert recorder.of(call(work, 3)).calls == [call(work, 3)]
        recorder.assert_all_asserted()


async def test_whoever_waits_for_a_task_hears_that_it_may_run_on() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler(grace_period=0) as scheduler, anyio.create_task_group() as group:
            scheduler.schedule(anyio.sleep_forever)
            group.start_soon(recorder.adrain)
            await anyio.wait_all_tasks_blocked()
            recorder.allow_running(anyio.sleep_forever)


async def test_what_a_block_raises_comes_first() -> None:
    with pytest.raises(KeyError) as raised, record_tasks(failures="error") as recorder:  # noqa: PT012
        async with TaskScheduler() as scheduler:
            scheduler.schedule(fail)
            await recorder.adrain()
        raise KeyError("mine")
    assert [note.splitlines()[0] for note in raised.value.__notes__] == [
        "1 background task failed, and the test does not expect it"
    ]


async def test_a_frozen_exception_keeps_its_type_and_gets_the_findings() -> None:
    @dataclass(frozen=True)
    class PaymentDeclinedError(Exception):
        code: int

    with pytest.raises(PaymentDeclinedError) as raised, record_tasks() as recorder:  # noqa: PT012
        async with TaskScheduler() as scheduler:
            scheduler.schedule(fail)
            await recorder.adrain()
        with recorder.hold(), recorder.capture():
            raise PaymentDeclinedError(7)
    assert [note.splitlines()[0] for note in raised.value.__notes__] == [
        "1 background task failed, and the test does not expect it"
    ]


async def test_work_that_shutdown_loses_is_warned_of() -> None:
    with pytest.warns(TaskLostWarning) as warned, record_tasks() as recorder:  # noqa: PT031
        async with TaskScheduler(grace_period=0) as scheduler:
            scheduler.schedule(anyio.sleep_forever)
            scheduler.schedule(anyio.sleep, 1000)
            recorder.allow_running(anyio.sleep)
            await anyio.wait_all_tasks_blocked()
    (warning,) = warned
    assert str(warning.message) == (
        "#1 sleep_forever() was cancelled when its app shut down: the grace period of the shutdown was over. "
        "Drain first: tasks_recorder.drain(), or 'await tasks_recorder.adrain()'"
    )
    assert warning.filename == __file__


async def test_a_task_that_was_cancelled_on_purpose_is_not_lost() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            task = scheduler.schedule(anyio.sleep_forever)
            await anyio.wait_all_tasks_blocked()
            task.cancel()
        assert (recorder[0].state, recorder[0].reason) == ("cancelled", "task.cancel() was called")


def test_a_leak_is_waited_for_while_it_can_end() -> None:
    gate = threading.Event()

    def run() -> None:
        gate.wait(10)

    async def serve() -> None:
        async with TaskScheduler() as scheduler:
            schedulers.append(scheduler)
            ready.set()
            await anyio.to_thread.run_sync(stop.wait)

    schedulers: list[TaskScheduler] = []
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=anyio.run, args=(serve,))
    thread.start()
    ready.wait(10)
    with record_tasks():
        schedulers[0].schedule(run)
        threading.Timer(0.05, gate.set).start()
    stop.set()
    thread.join()


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"mode": "fake"}, "mode must be 'spy' or 'hold', not 'fake'"),
        ({"virtual_time": 1.5}, "virtual_time must be True or False, not 1.5"),
        ({"strict": "yes"}, "strict must be True or False, not 'yes'"),
        ({"failures": "warn"}, "failures must be 'error' or 'ignore', not 'warn'"),
        ({"leaks": None}, "leaks must be 'error' or 'ignore', not None"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0, not 0"),
        ({"timeout": True}, "timeout must be a number of seconds above 0, not True"),
        ({"timeout": "5"}, "timeout must be a number of seconds above 0, not '5'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"), record_tasks(**settings):
        raise AssertionError("it should not begin")


async def test_what_a_task_emits_and_reports_is_recorded() -> None:
    async def generate(words: int) -> None:
        for number in range(words):
            emit({"word": number})
        report(1.0)

    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(generate, 2)
            await scheduler.schedule(work)
    recorded = recorder.one(generate)
    assert recorded.emitted == ({"word": 0}, {"word": 1})
    assert recorded.progress == 1.0
    assert [(event.kind, event.detail) for event in recorded.events if event.detail] == [
        ("emitted", '{"word":0}'),
        ("emitted", '{"word":1}'),
        ("reported", "1.0"),
    ]
    assert recorder.one(work).emitted == ()
    assert recorder.one(work).progress is None
    assert '{"word":1}' in recorder.timeline()


async def test_what_tasks_of_another_recording_emit_is_not_recorded() -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(anyio.sleep_forever)
        with record_tasks() as recorder:
            task.emit("a")
            task.report("b")
        task.cancel()
    assert not recorder.events

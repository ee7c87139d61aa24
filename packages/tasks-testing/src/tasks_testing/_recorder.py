"""The recorder: everything that a test can do with background tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import anyio
from tasks_core import Subscription
from tasks_core.engines import DurableCall
from tasks_core.testing import override_engine

from tasks_testing._assertions.end_of_test import Verdict
from tasks_testing._assertions.view import TaskView
from tasks_testing._messages.explanation import show_unsettled
from tasks_testing._messages.timeline import timeline
from tasks_testing._recording.call import Target, check_target, show_target
from tasks_testing._recording.durable_run import PHASE
from tasks_testing._recording.record import RecordedRequest, RecordedTask, State, is_meant
from tasks_testing._recording.recording import HELD_TO_THE_END, Recording, next_seq
from tasks_testing._recording.selection import Part, Window
from tasks_testing._time.monitor import Steps, Wait, in_event_loop

from ._control import Control, holding
from ._engine import KeptCalls
from ._recorder_clock import RecorderClock
from ._settings import Check, Mode, Settings, in_debugger
from ._text import function_name, number_of

# How often virtual time may jump in one drain(): a task that schedules itself again would go on for ever.
_MOST_JUMPS = 1000


class TasksRecorder(TaskView):
    """
    Records the background tasks of a test, whichever app or scheduler they are scheduled in.

    ```python
    def test_welcome(client: TestClient, tasks_recorder: TasksRecorder) -> None:
        client.post("/users", json={"email": "ann@example.org"})
        tasks_recorder.after_response.assert_ran(call(send_email, "ann@example.org"), times=1)
    ```

    Tasks really run, on their own event loop, unless they are held or replaced. At the end of the test, a task that
    failed although nobody expected it fails the test, so does one that still runs, and one that was lost because its
    app shut down is warned of.

    Methods that wait come in two forms: `drain()` blocks, for tests without an event loop; `await adrain()` is for
    tests that run on one. All wait at most the timeout of the recorder (`timeout=`), and then say what they waited for.
    Everything else may be called from any thread.
    """

    clock: RecorderClock
    """What delays, retry pauses and timeouts go by."""

    def __init__(self, settings: Settings, *, debugging: bool = False) -> None:
        recording = Recording()
        super().__init__(Part(recording), None if debugging or in_debugger() else settings.timeout)
        self._settings = settings
        self._recording = recording
        self._control = Control(recording)
        self._kept = KeptCalls(recording)
        self._engine_override: Subscription | None = None
        self._verdict = Verdict(recording, settings)
        self.clock = RecorderClock(recording, self._timeout)

    # ---- what was recorded ----

    @property
    def requests(self) -> Sequence[RecordedRequest]:
        """The requests that apps with tasks have served, in the order in which they began."""
        return tuple(self._part.requests())

    @contextmanager
    def capture(self) -> Iterator[TaskView]:
        """Give a view of what is scheduled inside of a `with` block, and of the requests that begin there."""
        window = Window(next_seq())
        try:
            yield self._narrow(window=window)
        finally:
            window.end = next_seq()

    def clear(self) -> None:
        """
        Forget what has been recorded: for the next example of a property, or the next part of a long test.

        Raises:
            RuntimeError: tasks have not ended; drain first.
        """
        tasks = [task for task in self._recording.tasks if not task.terminal and not task._allowed_to_run]
        if tasks:
            told = show_unsettled(self._recording, tasks)
            raise RuntimeError(f"clear() came too early, {number_of(len(tasks), 'task')} not ended\n{told}")
        self._recording.clear()

    def timeline(self) -> str:
        """Return what happened, request by request, as text: at most 200 lines of 80 characters."""
        return timeline(self._recording)

    # ---- stepping in ----

    def hold(self, *targets: Target, keep: Sequence[Target] = ()) -> AbstractContextManager[None]:
        """
        Keep tasks from starting from here on, although their phase opens; they are recorded as held.

        Used with `with`, it ends with the block, and what it held starts then. Else it stays in force.

        Args:
            targets: Which tasks; none given: all.

            keep: Which of them start all the same.
        """
        return holding(self._control, self._control.hold(targets, keep))

    def release(self, target: Target | None = None, *, count: int | None = None) -> list[RecordedTask[Any]]:
        """
        Let tasks start that are held, or would be, in the order of scheduling; return them. Does not wait for them.

        Args:
            target: Which tasks; `None`: all.

            count: How many at most.

        Raises:
            AssertionError: there is no such task to be released.
        """
        __tracebackhide__ = True
        tasks = self._control.releasable(target)[:count]
        if not tasks:
            raise AssertionError(self._explain_release(target))
        for task in tasks:
            self._recording.release(task)
        return tasks

    def _explain_release(self, target: Target | None) -> str:
        what = "anything" if target is None else show_target(target)
        meant = [task for task in self._recording.tasks if is_meant(task, target)]
        if any(task.reason == HELD_TO_THE_END for task in meant):
            why = "its app has shut down; release inside the 'with TestClient(app)' block"
        elif meant:
            why = f"it is {meant[-1].state}, not held"
        else:
            why = "no such task was scheduled"
        return f"cannot release {what}: {why}"

    def fail(
        self,
        target: Target,
        error: BaseException | type[BaseException],
        *,
        times: int | None = 1,
        after_run: bool = False,
    ) -> None:
        """
        Make the next attempts of a task fail; retries and error handlers do what they do about it.

        A failure that was asked for is an expected one.

        Args:
            target: Which tasks.

            error: What the attempts raise.

            times: How many attempts; `None`: all of them.

            after_run: Whether the function runs before, and the attempt fails in spite of its success.
        """
        self._control.fail(target, error, times, after_run)

    def stub(self, target: Target, replacement: Callable[..., Any] | None = None) -> None:
        """Run *replacement* in place of the function, with the arguments of the task; `None`: run nothing."""
        self._control.stub(target, replacement)

    def virtual_time(self, *, auto: bool = True) -> None:
        """
        Take delays, retry pauses and timeouts from a clock that stands still, and starts at 0.

        Call it before the first task that waits. `anyio.sleep()` inside of tasks takes the time it takes.

        Args:
            auto: Whether `drain()` and `wait_for()` move it on to the next moment that a task waits for, whenever no
                task is live. Else only `clock.advance()` moves it.

        Raises:
            RuntimeError: a task already waits in real time.
        """
        late = [task for task in self._recording.tasks if task.state == "waiting"]
        if late and not self._recording.virtual:
            raise RuntimeError(f"virtual_time() came too late: {late[0]} already waits in real time")
        self._recording.make_time_virtual(auto=auto)

    # ---- waiting ----

    def drain(self, timeout: float | None = None) -> None:
        """
        Block until no task is live, and none waits for a request that is being served to come to its phase.

        Held tasks are not waited for. Errors of tasks are not raised here, but reported at the end of the test.

        Args:
            timeout: Seconds of real time; `None`: the timeout of the recorder.

        Raises:
            AssertionError: tasks are still live after *timeout* seconds.
            RuntimeError: an event loop runs in this thread: write `await tasks_recorder.adrain()`.
        """
        __tracebackhide__ = True
        _refuse_to_block("drain", "adrain")
        self._recording.monitor.run(self._draining("drain", timeout))

    async def adrain(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  the twin of drain()
        """Do what `drain()` does, in a test that runs on an event loop; the tasks may be on this or on another one."""
        __tracebackhide__ = True
        await self._recording.monitor.arun(self._draining("adrain", timeout))

    def wait_for(
        self, target: Target, state: State = "succeeded", *, timeout: float | None = None
    ) -> RecordedTask[Any]:
        """
        Block until a task is in a state, and return it. Waiting for `"failed"` means to expect that.

        Args:
            target: Which task.

            state: Which state.

            timeout: Seconds of real time; `None`: the timeout of the recorder.

        Raises:
            AssertionError: it did not come to that.
            RuntimeError: an event loop runs in this thread: write `await tasks_recorder.await_for(...)`.
        """
        __tracebackhide__ = True
        _refuse_to_block("wait_for", "await_for")
        return self._recording.monitor.run(self._waiting_for("wait_for", target, state, timeout))

    async def await_for(
        self,
        target: Target,
        state: State = "succeeded",
        *,
        timeout: float | None = None,  # noqa: ASYNC109  the twin of wait_for()
    ) -> RecordedTask[Any]:
        """Do what `wait_for()` does, in a test that runs on an event loop."""
        __tracebackhide__ = True
        return await self._recording.monitor.arun(self._waiting_for("await_for", target, state, timeout))

    def _draining(self, method: str, timeout: float | None) -> Steps[None]:
        __tracebackhide__ = True
        limit = self._limit(timeout)
        if not (yield from self._moving_on(method, self._is_drained, limit)):
            tasks = [*self._recording.live_tasks(), *self._recording.awaiting_their_phase()]
            told = show_unsettled(self._recording, tasks)
            raise AssertionError(
                f"{method}() waited {limit:g} s, and {number_of(len(tasks), 'task')} not ended\n{told}"
            )

    def _is_drained(self) -> bool:
        recording = self._recording
        return not recording.live and not recording.awaiting_their_phase() and not self._can_jump()

    def _waiting_for(
        self, method: str, target: Target, state: State, timeout: float | None
    ) -> Steps[RecordedTask[Any]]:
        __tracebackhide__ = True
        check_target(target)
        limit = self._limit(timeout)
        recording = self._recording

        def meant() -> list[RecordedTask[Any]]:
            return [task for task in recording.tasks if is_meant(task, target)]

        def found() -> list[RecordedTask[Any]]:
            return [task for task in meant() if task.state == state]

        def too_late() -> bool:
            return bool(meant()) and all(task.terminal for task in meant()) and self._part.settled()

        in_time = yield from self._moving_on(method, lambda: bool(found()) or too_late(), limit)
        if not found():
            waited = f" in {limit:g} s" if not in_time else ""
            told = show_unsettled(recording, meant() or recording.live_tasks()) or "  nothing was scheduled"
            raise AssertionError(f"{method}(): {show_target(target)} did not come to be {state}{waited}\n{told}")
        task = found()[0]
        task._asserted = True
        task._acknowledged = task._acknowledged or state == "failed"
        return task

    def _moving_on(self, method: str, done: Callable[[], bool], timeout: float | None) -> Steps[bool]:
        """Wait until something is true, and let virtual time jump meanwhile."""
        __tracebackhide__ = True
        deadline = None if timeout is None else time.monotonic() + timeout
        jumpers: dict[str, None] = {}
        for _ in range(_MOST_JUMPS):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            in_time = yield Wait(lambda: done() or self._can_jump(), left)
            if done() or not in_time:
                return in_time
            jumpers = dict.fromkeys(function_name(task.call.fn) for task in self._recording.parked())
            self._recording.queue.move_to(self._recording.queue.next_deadline())
        raise AssertionError(
            f"{method}() moved virtual time on {_MOST_JUMPS} times, and {', '.join(jumpers)} still waits: "
            "does it schedule itself again? Move time by hand, with virtual_time(auto=False) and clock.advance()"
        )

    def _can_jump(self) -> bool:
        recording = self._recording
        return recording.virtual and recording.auto and not recording.live and bool(recording.parked())

    def _limit(self, timeout: float | None) -> float | None:
        return timeout if timeout is not None and self._timeout is not None else self._timeout

    # ---- durable tasks ----

    @property
    def durable_calls(self) -> Sequence[DurableCall]:
        """What was handed over by durable tasks, as an engine gets it: names, and arguments as JSON."""
        return tuple(self._kept.calls)

    @property
    def durable_runs(self) -> TaskView:
        """
        The runs of durable tasks: one task each, with all its attempts, whichever request handed it over.

        Anywhere else, the function of a durable task means both: the task that hands it over, and its runs.
        """
        return self.in_phase(PHASE)

    def run_durable(self, *, times: int = 1, timeout: float | None = None) -> None:
        """
        Run the durable tasks that were handed over and have not been run yet, as a worker would, and wait for them.

        While a recorder is on, no engine is needed: it keeps what is handed over, after the same way through JSON. The
        runs are recorded as `durable_runs`. Retries come without a pause, and `hold()` holds nothing up here. Errors of
        tasks are not raised, but reported at the end of the test.

        Args:
            times: How often to run each. Durable tasks run at least once, and now and then twice: with 2, a task that
                does harm then is found.

            timeout: Seconds of real time; `None`: the timeout of the recorder.

        Raises:
            AssertionError: a task still runs after *timeout* seconds. It is cancelled, and back among those to be run.
            RuntimeError: an event loop runs in this thread: write `await tasks_recorder.arun_durable()`.
        """
        __tracebackhide__ = True
        _refuse_to_block("run_durable", "arun_durable")
        anyio.run(self._run_durable, "run_durable", times, timeout)

    async def arun_durable(self, *, times: int = 1, timeout: float | None = None) -> None:  # noqa: ASYNC109  the twin
        """Do what `run_durable()` does, in a test that runs on an event loop."""
        __tracebackhide__ = True
        await self._run_durable("arun_durable", times, timeout)

    async def _run_durable(self, method: str, times: int, timeout: float | None) -> None:  # noqa: ASYNC109  as above
        __tracebackhide__ = True
        limit = self._limit(timeout)
        with anyio.move_on_after(limit) as scope:
            await self._kept.run(times)
        if scope.cancelled_caught:
            told = show_unsettled(self._recording, self.durable_runs.in_state("cancelled"))
            raise AssertionError(f"{method}() waited {limit:g} s, and a durable task has not ended\n{told}")

    # ---- policy ----

    def expect_failure(
        self,
        target: Target | None = None,
        error: type[BaseException] | tuple[type[BaseException], ...] = Exception,
    ) -> None:
        """Allow tasks to fail: those that *target* names (`None`: all), with an error of the type *error*."""
        if target is not None:
            check_target(target)
        self._verdict.expect_failure(target, error)

    def allow_running(self, target: Target) -> None:
        """Allow tasks to go on for ever: nothing waits for them, and they may outlive the test."""
        self._recording.allow_running(target)

    def assert_all_asserted(self) -> None:
        """Assert that every recorded task was the subject of some assertion."""
        __tracebackhide__ = True
        for problem in self._verdict.not_asserted():
            raise AssertionError(problem)

    # ---- beginning and end ----

    def _start(self) -> None:
        self._recording.start()
        self._engine_override = override_engine(self._kept)
        if self._settings.virtual_time:
            self._recording.make_time_virtual(auto=True)
        if self._settings.mode == "hold":
            self.hold()

    def _end_of_body(self) -> list[str]:
        """Return what is wrong when the body of the test is over."""
        return self._verdict.of_body()

    def _end(self, *, wait: bool) -> list[str]:
        """Stop, and return what is wrong when everything is torn down."""
        try:
            problems = self._verdict.of_end(self._timeout, wait=wait)
            self._verdict.warn_of_losses()
            return problems
        finally:
            self._recording.stop()
            self._control.close()
            if self._engine_override is not None:
                self._engine_override.close()


def _refuse_to_block(method: str, twin: str) -> None:
    if in_event_loop():
        raise RuntimeError(f"{method}() would block the running event loop; use 'await tasks_recorder.{twin}()'")


@contextmanager
def record_tasks(
    *,
    mode: Mode = "spy",
    virtual_time: bool = False,
    strict: bool = False,
    failures: Check = "error",
    leaks: Check = "error",
    timeout: float = 5.0,
) -> Iterator[TasksRecorder]:
    """
    Record the tasks of a `with` block: outside of pytest, for one example of a property, or for a part of a test.

    ```python
    with record_tasks(virtual_time=True) as recorder:
        ...
    ```

    The checks that the fixture makes at the end of a test are made at the end of the block. Inside of another
    recording, this one has what is scheduled until its end. On an event loop, `await recorder.adrain()` before that.

    Args:
        mode: `"spy"`: tasks run. `"hold"`: they start when `release()` says so.

        virtual_time: Whether to call `virtual_time()` at the start.

        strict: Whether a task that no assertion was about is an error.

        failures: Whether a task that failed although nobody expected it is an error.

        leaks: Whether a task that still runs is an error.

        timeout: Seconds of real time that everything waits at most. Under a debugger there is no limit.

    Raises:
        AssertionError: something of that was found; when the block itself raises, it is added to that as a note.
        ValueError: an argument has a value that it cannot have.
    """
    settings = Settings(
        mode=mode, virtual_time=virtual_time, strict=strict, failures=failures, leaks=leaks, timeout=timeout
    )
    recorder = TasksRecorder(settings)
    recorder._start()
    try:
        yield recorder
    except BaseException as error:
        for problem in (*recorder._end_of_body(), *recorder._end(wait=False)):
            error.add_note(problem)
        raise
    problems = [*recorder._end_of_body(), *recorder._end(wait=True)]
    if problems:
        raise AssertionError("\n".join(problems))

"""The recorder: everything that a test can do with background tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, overload

import anyio
from tasks_core import DurableFunction, Service
from tasks_core.engines import DurableCall
from tasks_core.testing import next_occurrence, occurrence_call, override_engine, periodic_functions
from tasks_core.types import Subscription

from . import _refusals
from ._assertions.end_of_test import EndOfTestChecks, add_findings
from ._assertions.view import TaskView
from ._control import Control, Holding
from ._cuts import CutEverywhere
from ._engine import RecordedEngine
from ._messages import waiting
from ._messages.timeline import timeline
from ._orders import Exploration, ExploredOrders
from ._recorder_clock import RecorderClock
from ._recording.call import Target, check_target
from ._recording.durable_run import PHASE
from ._recording.record import RecordedRequest, RecordedTask, State, check_states, is_named_by, waits_for_time
from ._recording.recording import EndlessError, Recording, next_seq
from ._recording.selection import Selection, Window
from ._settings import Check, Mode, Settings, in_debugger
from ._time.monitor import Steps, in_event_loop


class TasksRecorder(TaskView):
    """
    Records the background tasks of a test, of every app and every scheduler.

    ```python
    def test_welcome(client: TestClient, tasks_recorder: TasksRecorder) -> None:
        client.post("/users", json={"email": "ann@example.org"})
        tasks_recorder.after_response.assert_ran(call(send_email, "ann@example.org"), times=1)
    ```

    Tasks really run, on their own event loop, unless they are held or replaced. At the end of the test, a task that
    failed unexpectedly fails the test, and so does a task that still runs on a scheduler which outlives the test. A
    task that was lost because its app shut down causes a `TaskLostWarning`.

    Methods that wait come in two forms: `drain()` blocks, for tests without an event loop; `await adrain()` is for
    tests that run on one. Each waits at most for the timeout of the recorder (`timeout=`), and then reports what it
    waited for. Any thread may call the other methods.
    """

    clock: RecorderClock
    """The clock of delays, retry pauses and timeouts."""

    def __init__(self, settings: Settings, *, debugging: bool = False, seed: int = 0) -> None:
        recording = Recording()
        super().__init__(Selection(recording), None if debugging or in_debugger() else settings.timeout)
        self._settings = settings
        self._seed = seed
        self._recording = recording
        self._control = Control(recording)
        self._engine = RecordedEngine(recording)
        self._engine_override: Subscription | None = None
        self._occurred: dict[str, datetime] = {}  # the last occurrence of each periodic durable function
        self._checks = EndOfTestChecks(recording, settings)
        self.clock = RecorderClock(recording, self._timeout)

    # ---- what was recorded ----

    @property
    def requests(self) -> Sequence[RecordedRequest]:
        """The requests that apps with tasks have served, in the order of their beginning."""
        return tuple(self._selection.requests())

    @property
    def services(self) -> Sequence[Service]:
        """
        The services that were started during the recording; `cancel()` and `start()` stop one and start it again.

        They are not tasks: `drain()` does not wait for them, and they may run at the end of the test.
        """
        return tuple(self._recording.services)

    def capture(self) -> AbstractContextManager[TaskView]:
        """Return a context manager whose value is a view of the tasks and requests that begin inside the block."""
        return _Capture(self)

    def clear(self) -> None:
        """
        Remove everything from the record: for the next example of a property, or the next part of a long test.

        Raises:
            RuntimeError: Tasks have not ended; drain first.
        """
        tasks = [task for task in self._recording.tasks if not task.terminal and not task._allowed_to_run]
        if tasks:
            raise RuntimeError(waiting.not_cleared(self._recording, tasks))
        self._recording.clear()

    def timeline(self) -> str:
        """Return what happened, request by request, as at most 200 lines of 80 characters."""
        return timeline(self._recording)

    # ---- changing what tasks do ----

    def hold(self, *targets: Target, keep: Sequence[Target] = ()) -> AbstractContextManager[None]:
        """
        Keep tasks from starting from now on, although their phase opens; their state is `held`.

        As a context manager, it ends with the block, and releases the tasks that it held. Otherwise it lasts until the
        end of the test.

        Args:
            targets: Which tasks; without targets, all.

            keep: Which of them start all the same.
        """
        return Holding(self._control, self._control.hold(targets, keep))

    def release(self, target: Target | None = None, *, count: int | None = None) -> list[RecordedTask[Any]]:
        """
        Let held tasks start, in the order of scheduling. A task whose phase is not open yet will not be held.

        Does not wait for the tasks.

        Args:
            target: Which tasks; `None`: all.

            count: The largest number of tasks to release.

        Returns:
            The released tasks.

        Raises:
            AssertionError: There is no such task.
        """
        __tracebackhide__ = True
        tasks = self._control.releasable(target)[:count]
        if not tasks:
            raise AssertionError(waiting.not_released(self._recording, target))
        for task in tasks:
            self._recording.release(task)
        return tasks

    def fail(
        self,
        target: Target,
        error: BaseException | type[BaseException],
        *,
        times: int | None = 1,
        after_run: bool = False,
    ) -> None:
        """
        Make the next attempts of tasks fail. Retries and error handlers work as for any other failure.

        The failure is expected: it does not fail the test.

        Args:
            target: Which tasks.

            error: The exception that the attempts raise.

            times: How many attempts fail; `None`: every attempt.

            after_run: Whether the function runs first, and the attempt fails although the function returned.
        """
        self._control.fail(target, error, times, after_run)

    def stub(self, target: Target, replacement: Callable[..., Any] | None = None) -> None:
        """Run *replacement* with the arguments of the task instead of the function; `None`: run nothing."""
        self._control.stub(target, replacement)

    def virtual_time(self, *, auto: bool = True) -> None:
        """
        Let delays, retry pauses and timeouts use a clock that stands still, and begins at 0.

        Call it before the first task that waits. `anyio.sleep()` inside a task takes real time.

        Args:
            auto: Whether `drain()`, `wait_for()` and assertions that wait move the time to the next deadline of a task,
                whenever no task is live. Otherwise only `clock.advance()` moves it.

        Raises:
            RuntimeError: A task already waits in real time.
        """
        late = [task for task in self._recording.tasks if waits_for_time(task)]
        if late and not self._recording.virtual:
            raise RuntimeError(_refusals.virtual_time_too_late(late[0]))
        self._recording.make_time_virtual(auto=auto)

    # ---- waiting ----

    def drain(self, timeout: float | None = None) -> None:
        """
        Block until no task is live, and no task waits for a request that is being served to come to its phase.

        Held tasks are not waited for. Exceptions of tasks are not raised here, but reported at the end of the test.

        Args:
            timeout: Seconds of real time; `None`: the timeout of the recorder.

        Raises:
            AssertionError: Tasks are still live after *timeout* seconds.
            RuntimeError: An event loop runs in this thread: write `await tasks_recorder.adrain()`.
        """
        __tracebackhide__ = True
        _refuse_to_block("drain", "adrain")
        self._recording.monitor.run(self._draining("drain", timeout))

    async def adrain(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  the twin of drain()
        """Do what `drain()` does, in a test that runs on an event loop; the tasks may be on this loop or another."""
        __tracebackhide__ = True
        await self._recording.monitor.arun(self._draining("adrain", timeout))

    def wait_for(
        self, target: Target, state: State = "succeeded", *, timeout: float | None = None
    ) -> RecordedTask[Any]:
        """
        Block until a task is in a state, and return the task.

        Waiting for `"failed"` means that the failure is expected.

        Args:
            target: Which task.

            state: Which state.

            timeout: Seconds of real time; `None`: the timeout of the recorder.

        Raises:
            AssertionError: No such task came into that state.
            ValueError: There is no such state.
            RuntimeError: An event loop runs in this thread: write `await tasks_recorder.await_for(...)`.
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
        recording, limit = self._recording, self._limit(timeout)
        if not (yield from self._moving(method, self._is_drained, limit)):
            tasks = [*recording.live_tasks(), *recording.awaiting_their_phase()]
            raise AssertionError(waiting.not_drained(recording, method, limit, tasks))

    def _is_drained(self) -> bool:
        recording = self._recording
        return not recording.live and not recording.awaiting_their_phase() and not recording.can_move()

    def _waiting_for(
        self, method: str, target: Target, state: State, timeout: float | None
    ) -> Steps[RecordedTask[Any]]:
        __tracebackhide__ = True
        check_target(target)
        check_states(method, [state])
        recording, limit = self._recording, self._limit(timeout)

        def named() -> list[RecordedTask[Any]]:
            return [task for task in recording.tasks if is_named_by(task, target)]

        def found() -> list[RecordedTask[Any]]:
            return [task for task in named() if task.state == state]

        def too_late() -> bool:
            return bool(named()) and all(task.terminal for task in named()) and self._selection.settled()

        in_time = yield from self._moving(method, lambda: bool(found()) or too_late(), limit)
        if not found():
            raise AssertionError(waiting.not_reached(recording, method, target, state, limit, in_time=in_time))
        task = found()[0]
        task._asserted = True
        task._failure_expected = task._failure_expected or state == "failed"
        return task

    def _moving(self, method: str, done: Callable[[], bool], timeout: float | None) -> Steps[bool]:
        __tracebackhide__ = True
        try:
            return (yield from self._recording.moving(done, timeout))
        except EndlessError as error:
            raise AssertionError(waiting.endless(method, error.tasks)) from None

    def _limit(self, timeout: float | None) -> float | None:
        return timeout if timeout is not None and self._timeout is not None else self._timeout

    # ---- other orders ----

    def explore_orders(
        self,
        body: Callable[[], object],
        *,
        restore: Callable[[], object],
        keep: Sequence[Target] = (),
        limit: int = 100,
        seed: int | None = None,
        order: Sequence[int] | None = None,
    ) -> ExploredOrders:
        """
        Run the body of a test many times, with its tasks in different orders.

        No order is promised for tasks that could start at the same time. First the tasks run in the order in which they
        were scheduled, then in other orders: in all of them, or in *limit* of them that *seed* selects. In each run the
        tasks start one after another: the next one when no other task is live. They start while the body waits, in
        `drain()`, `wait_for()` or an assertion, and at the latest at its end.

        If a run fails, it is repeated with fewer changes of the order, as long as it fails. Its exception gets a note
        with the order and the timeline. The record keeps the last run.

        Args:
            body: Makes requests or schedules tasks, waits for the tasks, and asserts the outcome.

            restore: Brings back the state before the body; called before each run.

            keep: Tasks that start at once: those that an endpoint or another task waits for.

            limit: The largest number of orders.

            seed: Selects the orders; `None`: the number of the option `--tasks-seed`, which is 0 unless given.

            order: Run this order alone, as the note of a failure has it.

        Returns:
            How many orders there are, and how many were run.

        Raises:
            AssertionError: Only one order is possible. Or a task failed unexpectedly. Besides, what the body raises.
            RuntimeError: An event loop runs in this thread: write `await tasks_recorder.aexplore_orders(...)`.
        """
        __tracebackhide__ = True
        _refuse_to_block("explore_orders", "aexplore_orders")
        return self._exploration(restore, keep, limit, seed, order).explore(body, self.drain)

    async def aexplore_orders(
        self,
        body: Callable[[], object],
        *,
        restore: Callable[[], object],
        keep: Sequence[Target] = (),
        limit: int = 100,
        seed: int | None = None,
        order: Sequence[int] | None = None,
    ) -> ExploredOrders:
        """
        Do what `explore_orders()` does, in a test that runs on an event loop.

        `body` and `restore` may be coroutine functions. The body waits with `adrain()` or `await_for()`.
        """
        __tracebackhide__ = True
        return await self._exploration(restore, keep, limit, seed, order).aexplore(body, self.adrain)

    def _exploration(
        self,
        restore: Callable[[], object],
        keep: Sequence[Target],
        limit: int,
        seed: int | None,
        order: Sequence[int] | None,
    ) -> Exploration:
        return Exploration(
            self._recording,
            self._control,
            self._engine,
            self._checks,
            restore=restore,
            keep=keep,
            limit=limit,
            seed=self._seed if seed is None else seed,
            order=order,
        )

    # ---- durable tasks ----

    @property
    def durable_calls(self) -> Sequence[DurableCall]:
        """The durable calls that were submitted, as an engine stores them: names, and arguments as JSON."""
        return tuple(self._engine.calls)

    @property
    def durable_runs(self) -> TaskView:
        """
        The runs of durable tasks: one task for each run, with all its attempts, of whichever request submitted it.

        In every other place, the function of a durable task names both: the task that submits the call, and its runs.
        """
        return self.in_phase(PHASE)

    @overload
    def run_durable(self, *, times: int = 1, timeout: float | None = None) -> None: ...

    @overload
    def run_durable(
        self,
        *,
        cut: Literal["everywhere"],
        restore: Callable[[], object],
        check: Callable[[], object],
        on_cut: Callable[[], object] | None = None,
        limit: int = 200,
        timeout: float | None = None,
    ) -> None: ...

    def run_durable(
        self,
        *,
        times: int = 1,
        cut: Literal["everywhere"] | None = None,
        restore: Callable[[], object] | None = None,
        check: Callable[[], object] | None = None,
        on_cut: Callable[[], object] | None = None,
        limit: int = 200,
        timeout: float | None = None,
    ) -> None:
        """
        Run the durable tasks that were submitted and have not run yet, and block until they have ended.

        The recorder replaces the engine of every app, so that no server is needed: it stores the calls as an engine
        does, with arguments as JSON. The runs are recorded as `durable_runs`. Retries take no pause, and `hold()` does
        not hold runs. A task that ends in `Snooze` waits, in the state `retrying`, until this is called again, which
        takes no pause either. Exceptions of tasks are not raised here, but reported at the end of the test.

        With `cut="everywhere"`, all of this happens many times. First without a cut; then once for each suspension of
        each task (each `await` that really waits), where its first attempt ends as by `kill -9`: nothing of it runs any
        more, no `finally`, none of the asyncio tasks that it started. Then the task runs again to its end. Further runs
        cut a task off before its first line, and after its end but before the engine hears of it; a plain function is
        cut off at these two places only. After each run the outcome is checked. A thread that a task has started cannot
        be stopped: it gets a second to end. The record keeps the last run.

        Args:
            times: How often each task runs. A durable task runs at least once, and sometimes twice: 2 finds a task that
                does harm the second time.

            cut: `"everywhere"`: cut each task off at each place.

            restore: Brings back the state before the first run; called before each run. `restore_savepoint()` makes one
                for a connection of SQLAlchemy.

            check: Asserts the outcome; called after each run. What it returns has to be equal each time.

            on_cut: Closes what the death of the process would close, such as connections and locks of files, so that
                the next attempt does not wait for it; called between a cut and the next attempt. `cut_connections()`
                makes one for an engine of SQLAlchemy.

            limit: The largest number of suspensions of one task.

            timeout: Seconds of real time for each run; `None`: the timeout of the recorder.

        Raises:
            AssertionError: A task still runs after *timeout* seconds. It is cancelled, and waits for the next run. Or
                the outcome after a cut is another one; the message has the source line of the cut.
            RuntimeError: An event loop runs in this thread: write `await tasks_recorder.arun_durable()`.
        """
        __tracebackhide__ = True
        _refuse_to_block("run_durable", "arun_durable")
        if cut is None:
            _check_uncut(restore=restore, check=check, on_cut=on_cut)
            anyio.run(self._run_durable, "run_durable", times, timeout)
        else:
            self._cut_everywhere("run_durable", times, restore, check, on_cut, limit, timeout).all()

    @overload
    async def arun_durable(self, *, times: int = 1, timeout: float | None = None) -> None: ...  # noqa: ASYNC109

    @overload
    async def arun_durable(
        self,
        *,
        cut: Literal["everywhere"],
        restore: Callable[[], object],
        check: Callable[[], object],
        on_cut: Callable[[], object] | None = None,
        limit: int = 200,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> None: ...

    async def arun_durable(
        self,
        *,
        times: int = 1,
        cut: Literal["everywhere"] | None = None,
        restore: Callable[[], object] | None = None,
        check: Callable[[], object] | None = None,
        on_cut: Callable[[], object] | None = None,
        limit: int = 200,
        timeout: float | None = None,  # noqa: ASYNC109  the twin of run_durable()
    ) -> None:
        """
        Do what `run_durable()` does, in a test that runs on an event loop.

        `restore` and `check` may be coroutine functions.

        On trio, `cut="everywhere"` is refused: a worker that is killed leaves the nurseries of a function open and
        their tasks unfinished, and trio ends the whole program when that happens. In a plain test, `run_durable()` runs
        the durable tasks on an asyncio event loop of their own. Stub what needs trio itself.

        Raises:
            AssertionError: As `run_durable()`.
            RuntimeError: `cut="everywhere"` on trio: write a plain test, with `run_durable()`.
        """
        __tracebackhide__ = True
        if cut is None:
            _check_uncut(restore=restore, check=check, on_cut=on_cut)
            await self._run_durable("arun_durable", times, timeout)
        else:
            if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
                raise RuntimeError(_refusals.cut_needs_asyncio())
            await self._cut_everywhere("arun_durable", times, restore, check, on_cut, limit, timeout).aall()

    async def _run_durable(self, method: str, times: int, timeout: float | None) -> None:  # noqa: ASYNC109  as above
        __tracebackhide__ = True
        limit = self._limit(timeout)
        with anyio.move_on_after(limit) as scope:
            await self._engine.run(times)
        if scope.cancelled_caught:
            tasks = self.durable_runs.in_state("cancelled")
            raise AssertionError(waiting.durable_not_ended(self._recording, method, limit, tasks))

    def _cut_everywhere(
        self,
        method: str,
        times: int,
        restore: Callable[[], object] | None,
        check: Callable[[], object] | None,
        on_cut: Callable[[], object] | None,
        limit: int,
        timeout: float | None,
    ) -> CutEverywhere:
        if times != 1:
            raise ValueError(_refusals.cut_excludes_times(times))
        if restore is None or check is None:
            raise ValueError(_refusals.cut_needs("restore" if restore is None else "check"))
        self._control.observe()

        async def run() -> None:
            await self._run_durable(method, 1, timeout)

        return CutEverywhere(self._engine, run, restore, check, on_cut, limit)

    @property
    def periodic_functions(self) -> Mapping[str, DurableFunction[..., Any, Any]]:
        """The durable functions of this process that have `periodic=`, by name."""
        return {function.name: function for function in periodic_functions()}

    def run_occurrence(self, func: DurableFunction[..., Any, Any], *, timeout: float | None = None) -> datetime:
        """
        Run a periodic durable function for its next occurrence, as a worker would, and return when that is.

        Virtual time moves there first; while time is real, nothing waits. Other durable tasks that were submitted run
        as well, as by `run_durable()`.

        Args:
            func: A function with `@durable(periodic=...)`.

            timeout: Seconds of real time; `None`: the timeout of the recorder.

        Raises:
            ValueError: *func* has no further occurrence, or is not periodic.
            AssertionError: A task still runs after *timeout* seconds.
            RuntimeError: An event loop runs in this thread: write `await tasks_recorder.arun_occurrence(func)`.
        """
        __tracebackhide__ = True
        _refuse_to_block("run_occurrence", "arun_occurrence")
        at, seconds = self._next_occurrence(func)
        if self._recording.virtual:
            self.clock.advance(seconds)
        anyio.run(self._run_occurrence, "run_occurrence", func, at, timeout)
        return at

    async def arun_occurrence(
        self,
        func: DurableFunction[..., Any, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109  the twin of run_occurrence()
    ) -> datetime:
        """Do what `run_occurrence()` does, in a test that runs on an event loop."""
        __tracebackhide__ = True
        at, seconds = self._next_occurrence(func)
        if self._recording.virtual:
            await self.clock.aadvance(seconds)
        await self._run_occurrence("arun_occurrence", func, at, timeout)
        return at

    def _next_occurrence(self, func: DurableFunction[..., Any, Any]) -> tuple[datetime, float]:
        trigger = getattr(func, "periodic", None)
        if trigger is None:
            raise ValueError(_refusals.not_periodic(func))
        virtual = self._recording.virtual
        now = datetime.fromtimestamp(self._recording.queue.time(), UTC) if virtual else datetime.now(UTC)
        at = next_occurrence(trigger, max(now, self._occurred.get(func.name, now)))
        if at is None:
            raise ValueError(_refusals.no_further_occurrence(func))
        self._occurred[func.name] = at
        return at, max(0.0, (at - now).total_seconds())

    async def _run_occurrence(
        self,
        method: str,
        func: DurableFunction[..., Any, Any],
        at: datetime,
        timeout: float | None,  # noqa: ASYNC109  as above
    ) -> None:
        __tracebackhide__ = True
        await self._engine.submit_occurrence(occurrence_call(func, at), at)
        await self._run_durable(method, 1, timeout)

    # ---- what is expected ----

    def expect_failure(
        self,
        target: Target | None = None,
        error: type[BaseException] | tuple[type[BaseException], ...] = Exception,
    ) -> None:
        """Allow the tasks that *target* names (`None`: all) to fail with an exception of the type *error*."""
        if target is not None:
            check_target(target)
        self._checks.expect_failure(target, error)

    def allow_running(self, target: Target) -> None:
        """Allow tasks that never end by themselves: no wait is about them, and they may outlive the test."""
        self._recording.allow_running(target)

    def assert_all_asserted(self) -> None:
        """Assert that every recorded task was the subject of an assertion."""
        __tracebackhide__ = True
        for problem in self._checks.not_asserted():
            raise AssertionError(problem)

    # ---- beginning and end ----

    def _start(self) -> None:
        self._recording.start()
        self._engine_override = override_engine(self._engine)
        if self._settings.virtual_time:
            self._recording.make_time_virtual(auto=True)
        if self._settings.mode == "hold":
            self.hold()

    def _end_of_body(self) -> list[str]:
        """Return the findings when the body of the test has ended."""
        return self._checks.after_body()

    def _end(self, *, wait: bool) -> list[str]:
        """Stop recording, and return the findings when every fixture is torn down."""
        try:
            problems = self._checks.after_teardown(self._timeout, wait=wait)
            self._checks.warn_of_losses()
            return problems
        finally:
            self._recording.stop()
            self._control.close()
            if self._engine_override is not None:
                self._engine_override.close()


def _check_uncut(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(_refusals.only_with_cut(name))


def _refuse_to_block(method: str, twin: str) -> None:
    if in_event_loop():
        raise RuntimeError(_refusals.would_block(method, twin))


class _Capture(AbstractContextManager[TaskView]):
    def __init__(self, recorder: TasksRecorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> TaskView:
        self._window = Window(next_seq())
        return self._recorder._narrow(window=self._window)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._window.end = next_seq()


class _RecordedBlock(AbstractContextManager[TasksRecorder]):
    def __init__(self, settings: Settings) -> None:
        self._recorder = TasksRecorder(settings)

    def __enter__(self) -> TasksRecorder:
        self._recorder._start()
        return self._recorder

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        findings = [*self._recorder._end_of_body(), *self._recorder._end(wait=exc is None)]
        if exc is not None:
            add_findings(exc, findings)
        elif findings:
            raise AssertionError("\n".join(findings))


def record_tasks(
    *,
    mode: Mode = "spy",
    virtual_time: bool = False,
    strict: bool = False,
    failures: Check = "error",
    leaks: Check = "error",
    timeout: float = 5.0,
) -> AbstractContextManager[TasksRecorder]:
    """
    Record the tasks of a `with` block: outside of pytest, for one example of a property, or for a part of a test.

    ```python
    with record_tasks(virtual_time=True) as recorder:
        ...
    ```

    The end of the block makes the checks that the fixture makes at the end of a test. Inside another recording, this
    one records what is scheduled until its end. On an event loop, `await recorder.adrain()` before the end of the
    block.

    Args:
        mode: `"spy"`: tasks run. `"hold"`: tasks start when `release()` is called.

        virtual_time: Whether to call `virtual_time()` at the start.

        strict: Whether a task that no assertion covers is an error.

        failures: Whether a task that fails unexpectedly is an error.

        leaks: Whether a task is an error that still runs, or that used a session of SQLAlchemy after its request had
            closed it.

        timeout: The longest wait in seconds of real time. Under a debugger there is no limit.

    Raises:
        AssertionError: One of these errors was found. If the block itself raises, its exception gets the text as a
            note.
        ValueError: An argument has a value that is not allowed.
    """
    settings = Settings(
        mode=mode, virtual_time=virtual_time, strict=strict, failures=failures, leaks=leaks, timeout=timeout
    )
    return _RecordedBlock(settings)

"""
What every engine has to keep, as tests that the author of an engine runs against it.

```python
# tests/test_my_engine.py
import pytest
from my_package import MyEngine
from tasks_testing.engine_contract import EngineContract


class TestMyEngine(EngineContract):
    @pytest.fixture
    def engine(self) -> MyEngine:
        return MyEngine("...")  # with a queue of its own, so that it sees no calls of another test
```

The tests run under the pytest plugin of anyio; a fixture `anyio_backend` chooses the event loop. A capability that the
engine has not (`Engine.capabilities`) is not tested. A test that needs help, such as a worker that is killed, is
skipped with a reason until the subclass overrides the method that the reason names. For an engine that operators can
ask (`OperableEngine`), subclass `OperableEngineContract`, which has all tests of `EngineContract` as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from tasks_core import (
    Cancel,
    DurableFunction,
    DurableTask,
    Receipt,
    RetryPolicy,
    Snooze,
    Task,
    TaskScheduler,
    TaskState,
    Worker,
    durable,
    durable_context,
    emit,
    report,
)
from tasks_core.engines import (
    DEFAULT_QUEUE,
    Capability,
    Delivery,
    DurableCall,
    DurableState,
    Engine,
    EngineUnavailableError,
    EventEngine,
    Json,
    OperableEngine,
    PeriodicEngine,
    QueueStatistics,
    Redeliver,
)
from tasks_core.exceptions import (
    DurableTaskFailedError,
    InvalidConfigError,
    ResultNotStoredError,
    TaskCancelledError,
    UnknownReceiptError,
)
from tasks_core.frameworks import find_followed, follow_stored, make_followed

__all__ = ("EngineContract", "OperableEngineContract", "record_run")


class _RolledBackError(Exception):
    pass


class _Runs:
    """What the durable functions of the contract have done, by the text that they were called with."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.attempts: list[tuple[str, int]] = []
        self.keys: list[str] = []
        self.running = 0
        self.most_running = 0
        self.gate = anyio.Event()
        self.failures = 0
        self.snoozes = 0
        self.transaction: Callable[[], AbstractAsyncContextManager[Any]] | None = None


_runs = _Runs()


@durable(name="tasks_testing.engine_contract.record_run")
async def record_run(text: str) -> None:
    """Record that it ran; used by the tests of the contract, and by a subclass that kills a worker."""
    _record(text)


@durable(name="tasks_testing.engine_contract.fail", retry=RetryPolicy(attempts=3, backoff=0.0))
async def _fail(text: str, times: int) -> None:
    _record(text)
    if _runs.failures < times:
        _runs.failures += 1
        raise ConnectionError(text)


@durable(name="tasks_testing.engine_contract.snooze", retry=RetryPolicy(attempts=2, backoff=0.0))
async def _snooze(text: str, times: int, delay: float) -> Snooze | None:
    _record(text)
    if _runs.snoozes < times:
        _runs.snoozes += 1
        if _runs.snoozes % 2:
            return Snooze(delay)
        raise Snooze(delay)
    if _runs.failures < 1:
        _runs.failures += 1
        raise ConnectionError(text)
    return None


@durable(name="tasks_testing.engine_contract.cancel_itself")
async def _cancel_itself(text: str) -> None:
    _record(text)
    if _runs.texts.count(text) == 1:
        raise Cancel("it was withdrawn")


def _decide(_task: Task[Any], _error: Exception) -> Snooze | Cancel:
    return Snooze(0.0) if len(_runs.texts) < 3 else Cancel("it is hopeless")


@durable(name="tasks_testing.engine_contract.fail_and_decide", retry=None, on_error=_decide)
async def _fail_and_decide(text: str) -> None:
    _record(text)
    raise ConnectionError(text)


@durable(name="tasks_testing.engine_contract.count", retry=None, shield=True)
async def _count(text: str, to: int) -> None:
    context = durable_context()
    for number in range(context.progress or 0, to):
        if number == 2 and not _runs.gate.is_set():
            _runs.running += 1
            await context.scheduler.stopping.wait()
        _record(f"{text}{number}")
        await context.checkpoint(number + 1)


@durable(name="tasks_testing.engine_contract.count_plainly", retry=None, shield=True)
def _count_plainly(text: str, to: int) -> None:
    context = durable_context()
    for number in range(context.progress or 0, to):
        if number == 2 and not _runs.gate.is_set():
            _runs.running += 1
            anyio.from_thread.run(context.scheduler.stopping.wait)
        _record(f"{text}{number}")
        context.checkpoint_from_thread(number + 1)


@durable(name="tasks_testing.engine_contract.complete", retry=RetryPolicy(attempts=2, backoff=0.0))
async def _complete(text: str, commits: bool = True) -> str:
    """End in a transaction, and fail; or return if that was rolled back, in the second attempt."""
    assert _runs.transaction is not None
    emit({"text": text})
    with suppress(_RolledBackError):
        async with _runs.transaction() as transaction:
            await durable_context().complete(transaction, result=f"{text} in the transaction")
            _record(text)
            await anyio.lowlevel.checkpoint()
            if not commits:
                raise _RolledBackError
    if commits or durable_context().attempt == 1:
        raise ConnectionError(text)
    return f"{text} by its function"


@dataclass
class _Line:
    text: str
    number: int


@durable(name="tasks_testing.engine_contract.return_line")
async def _return_line(text: str) -> _Line:
    return _Line(text, 17)


@durable(name="tasks_testing.engine_contract.return_text")
async def _return_text(text: str) -> str:
    return text


@durable(name="tasks_testing.engine_contract.fail_often", retry=RetryPolicy(attempts=12, backoff=0.0))
async def _fail_often(text: str) -> None:
    raise ValueError(text)


@durable(name="tasks_testing.engine_contract.fail_and_wait", retry=RetryPolicy(backoff=3600, max_delay=3600))
async def _fail_and_wait(text: str) -> None:
    _record(text)
    raise ConnectionError


@durable(name="tasks_testing.engine_contract.wait")
async def _wait(text: str) -> None:
    _record(text)
    _runs.running += 1
    _runs.most_running = max(_runs.most_running, _runs.running)
    try:
        await _runs.gate.wait()
    finally:
        _runs.running -= 1


@durable(name="tasks_testing.engine_contract.record_fast", queue="contract-fast")
async def _record_fast(text: str) -> None:
    _record(text)


@durable(name="tasks_testing.engine_contract.report")
async def _report(text: str) -> None:
    await durable_context().report_progress({"text": text, "percent": 50})
    _record(text)


@durable(name="tasks_testing.engine_contract.go_on", retry=RetryPolicy(attempts=3, backoff=0.0))
async def _go_on(text: str) -> None:
    context = durable_context()
    before = context.progress
    report("a value that the next one replaces")
    await context.report_progress([text, context.attempt])
    _record(f"{before} {context.progress}")
    if context.attempt < 3:
        raise ConnectionError(text)


@durable(name="tasks_testing.engine_contract.emit", retry=RetryPolicy(attempts=2, backoff=0.0))
async def _emit(text: str, fails: bool) -> None:
    for number in range(3):
        emit({"number": number, "attempt": durable_context().attempt})
    report({"text": text})
    if fails and durable_context().attempt == 1:
        raise ConnectionError(text)
    _record(text)


def _record(text: str) -> None:
    context = durable_context()
    _runs.texts.append(text)
    _runs.attempts.append((text, context.attempt))
    _runs.keys.append(context.idempotency_key)


def _needs_events(engine: Engine) -> None:
    if not isinstance(engine, EventEngine):
        pytest.skip(f"{engine.name} stores no events: it has not the methods of tasks_core.engines.EventEngine")


class EngineContract:
    """Subclass it as `class TestMyEngine(EngineContract)`, with a fixture `engine`; see the module."""

    patience: float = 30.0
    """Seconds that a test waits for an engine to deliver, at most. No test waits for as long if the engine delivers."""

    pytestmark: pytest.MarkDecorator = pytest.mark.anyio

    @pytest.fixture
    def engine(self) -> Engine:
        """Return an engine that has not been entered, and has no calls."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `engine` that returns an engine")

    def transaction(self, engine: Engine) -> AbstractAsyncContextManager[Any]:
        """
        Return a context manager for the tests of `transaction=`, and of `complete()`, which run in its block.

        It enters a transaction and returns it; leaving it with an exception rolls back, leaving it without commits.
        """
        pytest.skip("override transaction() to test transaction=")

    def outage(self, engine: Engine) -> AbstractAsyncContextManager[None]:
        """Return a context manager in which the engine cannot be reached."""
        pytest.skip("override outage() to test what an engine does that is unavailable")

    async def kill_worker_with(self, engine: Engine, call: DurableCall) -> None:
        """Submit *call*, and return when a worker has begun it and died without a word, as by `kill -9`."""
        pytest.skip("override kill_worker_with() to test the death of a worker")

    # ---- help ----

    @pytest.fixture(autouse=True)
    def _forget_runs(self) -> None:
        global _runs
        _runs = _Runs()

    @asynccontextmanager
    async def working(self, engine: Engine, **options: Any) -> AsyncIterator[anyio.Event]:
        """Run a worker until the end of the block; set the event that is yielded to stop it before."""
        stop = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(Worker(engine, **{"concurrency": 4, **options}).run, stop)
            try:
                yield stop
            finally:
                stop.set()

    async def until(self, condition: Callable[[], Awaitable[bool] | bool]) -> None:
        """Return when *condition* is true; fail after `patience` seconds."""
        with anyio.fail_after(self.patience):
            while True:
                answer = condition()
                if answer if isinstance(answer, bool) else await answer:
                    return
                await anyio.sleep(0.01)

    async def ended(self, receipt: Receipt[Any], state: DurableState) -> None:
        """Return when the task of *receipt* is in *state*."""

        async def is_in_state() -> bool:
            return (await receipt.status()).state is state

        await self.until(is_in_state)

    def _needs(self, engine: Engine, capability: Capability) -> None:
        if capability not in engine.capabilities:
            pytest.skip(f"{engine.name} has not the capability {capability!r}")

    # ---- submitting and running ----

    async def test_a_submitted_call_runs_once_and_succeeds(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(record_run, "a")
            assert receipt.created
            assert (await receipt.status()).state is DurableState.PENDING
            async with self.working(engine):
                await self.ended(receipt, DurableState.SUCCEEDED)
            assert (await receipt.status()).attempts == 1
        assert _runs.texts == ["a"]
        assert _runs.keys == [receipt.idempotency_key]
        assert receipt.engine == engine.name

    async def test_a_call_is_delivered_as_it_was_submitted(self, engine: Engine) -> None:
        arguments: dict[str, Json] = {
            "text": 'quotes " and \\ and \n, é, 🎉',
            "more": [1, 2.5, None, True, {"a": {"b": []}}],
        }
        call = DurableCall(
            record_run.name,
            arguments,
            "the key",
            retry=RetryPolicy(attempts=7, backoff=2.0, on=(OSError,)),
            headers={"traceparent": "00-1-2-01"},
        )
        delivered: list[Delivery] = []
        stopping = anyio.Event()

        async def run(delivery: Delivery) -> None:
            delivered.append(delivery)
            stopping.set()

        async with engine:
            await engine.submit(call)
            with anyio.fail_after(self.patience):
                await engine.work(run, concurrency=1, stopping=stopping)
        (delivery,) = delivered
        assert (delivery.attempt, delivery.failures) == (1, 0)
        assert delivery.call.name == call.name
        assert delivery.call.args == call.args
        assert delivery.call.idempotency_key == call.idempotency_key
        assert delivery.call.retry == call.retry
        assert delivery.call.headers["traceparent"] == "00-1-2-01"

    async def test_calls_that_are_submitted_while_a_worker_waits_are_delivered(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            for text in ("a", "b"):
                await self.ended(await scheduler.schedule(record_run, text), DurableState.SUCCEEDED)
        assert _runs.texts == ["a", "b"]

    async def test_an_engine_may_be_entered_several_times(self, engine: Engine) -> None:
        async with engine:
            async with engine, TaskScheduler(engine=engine) as scheduler:
                await scheduler.schedule(record_run, "a")
            async with TaskScheduler(engine=engine) as scheduler:
                receipt = await scheduler.schedule(record_run, "b")
            assert (await receipt.status()).state is DurableState.PENDING

    async def test_an_id_that_the_engine_has_not_given_is_unknown(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(record_run, "a")
            assert receipt.source is not None
            for number in ("987654321", "-1", "abc", ""):
                assert (await receipt.source.status(number)).state is DurableState.UNKNOWN
                with pytest.raises(UnknownReceiptError):
                    await replace(receipt, id=number).result(timeout=self.patience)

    # ---- results ----

    async def test_the_result_of_a_task_is_what_its_function_returned(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(_return_line, "a")
            nothing = await scheduler.schedule(record_run, "b")
            assert receipt.source is not None, "Engine.submit() returns receipts without a source: no task has a result"
            async with self.working(engine):
                assert await receipt.result(timeout=self.patience) == _Line("a", 17)
                assert await nothing.result(timeout=self.patience) is None  # type: ignore[func-returns-value]  # that is asserted
            assert await receipt.result() == _Line("a", 17), "a result is kept for as long as its task"

    async def test_many_callers_wait_for_results_and_each_gets_its_own(self, engine: Engine) -> None:
        results: dict[str, str] = {}

        async def wait(receipt: Receipt[str]) -> None:
            results[receipt.id] = await receipt.result(timeout=self.patience)

        async with TaskScheduler(engine=engine) as scheduler:
            receipts = [await scheduler.schedule(_return_text, str(number)) for number in range(10)]
            async with anyio.create_task_group() as group:
                for receipt in receipts:
                    group.start_soon(wait, receipt)
                    group.start_soon(wait, receipt)
                async with self.working(engine):
                    for receipt in receipts:
                        await self.ended(receipt, DurableState.SUCCEEDED)
        assert results == {receipt.id: str(number) for number, receipt in enumerate(receipts)}

    async def test_a_wait_for_a_result_ends_after_its_timeout_and_the_task_goes_on(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(_return_text, "a")
            with pytest.raises(TimeoutError):
                await receipt.result(timeout=0.1)
            async with self.working(engine):
                assert await receipt.result(timeout=self.patience) == "a"

    async def test_the_result_of_a_task_that_has_failed_is_an_error(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            receipt = await scheduler.schedule(_fail, "SECRET", 99)
            with pytest.raises(DurableTaskFailedError) as caught:
                await receipt.result(timeout=self.patience)
        assert "attempt 3: ConnectionError" in str(caught.value)
        assert "SECRET" not in str(caught.value)

    async def test_a_result_that_cannot_be_stored_is_an_error_and_the_task_has_succeeded(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            receipt = await scheduler.schedule(_return_text, "a" * 64 * 1024)
            with pytest.raises(ResultNotStoredError, match="64 KiB"):
                await receipt.result(timeout=self.patience)
            assert (await receipt.status()).state is DurableState.SUCCEEDED

    # ---- cancelling ----

    async def test_a_task_that_waits_is_cancelled_at_once(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(record_run, "a")
            assert await receipt.cancel()
            status = await receipt.status()
            assert status.state is DurableState.CANCELLED
            assert not await receipt.cancel(), "it has ended"
            with pytest.raises(TaskCancelledError, match=r"cancel\(\) was called"):
                await receipt.result(timeout=self.patience)
            async with self.working(engine):
                await self.ended(await scheduler.schedule(record_run, "b"), DurableState.SUCCEEDED)
        assert _runs.texts == ["b"]

    async def test_a_task_that_runs_is_cancelled_where_it_runs(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            receipt = await scheduler.schedule(_wait, "a")
            await self.until(lambda: _runs.running == 1)
            assert await receipt.cancel()
            await self.until(lambda: _runs.running == 0)
            with pytest.raises(TaskCancelledError):
                await receipt.result(timeout=self.patience)
            await self.ended(await scheduler.schedule(record_run, "b"), DurableState.SUCCEEDED)
        assert _runs.texts == ["a", "b"], "it is not delivered again"

    async def test_a_task_that_waits_for_its_next_attempt_is_cancelled(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            receipt = await scheduler.schedule(_fail_and_wait, "a")

            async def waits() -> bool:
                return bool(_runs.texts) and (await receipt.status()).state is DurableState.PENDING

            await self.until(waits)
            assert await receipt.cancel()
            assert (await receipt.status()).state is DurableState.CANCELLED

    async def test_a_cancelled_task_that_is_put_back_is_not_delivered_again(self, engine: Engine) -> None:
        started, stopping = anyio.Event(), anyio.Event()

        async def run(_delivery: Delivery) -> None:
            started.set()
            try:
                await anyio.sleep_forever()
            finally:
                raise Redeliver(0.0, failed=False)  # the worker was stopped at the same moment

        async with engine, anyio.create_task_group() as group:
            receipt = await engine.submit(DurableCall(record_run.name, {"text": "a"}, "1"))
            group.start_soon(partial(engine.work, run, concurrency=1, stopping=stopping))
            await started.wait()
            assert await receipt.cancel()
            await self.ended(receipt, DurableState.CANCELLED)
            stopping.set()

    async def test_a_task_that_has_ended_or_is_unknown_is_not_cancelled(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            receipt = await scheduler.schedule(record_run, "a")
            await self.ended(receipt, DurableState.SUCCEEDED)
            assert not await receipt.cancel()
            assert (await receipt.status()).state is DurableState.SUCCEEDED
            for number in ("987654321", "abc"):
                assert not await replace(receipt, id=number).cancel()

    # ---- keys and delays ----

    async def test_a_key_is_accepted_once(self, engine: Engine) -> None:
        self._needs(engine, "dedup")
        async with TaskScheduler(engine=engine) as scheduler:
            key = uuid4().hex
            with_key = record_run.configure(idempotency_key=key)
            first, second = await scheduler.schedule(with_key, "a"), await scheduler.schedule(with_key, "b")
            other = await scheduler.schedule(record_run.configure(idempotency_key=f"another {key}"), "c")
            assert (first.created, second.created, other.created) == (True, False, True)
            assert (second.id, second.idempotency_key) == (first.id, key)
            async with self.working(engine):
                await self.ended(first, DurableState.SUCCEEDED)
                await self.ended(other, DurableState.SUCCEEDED)
            third = await scheduler.schedule(with_key, "d")
            assert not third.created, "a key is taken for as long as its task is kept"
        assert sorted(_runs.texts) == ["a", "c"]

    async def test_one_of_many_at_the_same_time_gets_the_key(self, engine: Engine) -> None:
        self._needs(engine, "dedup")
        async with TaskScheduler(engine=engine) as scheduler:
            with_key = record_run.configure(idempotency_key=uuid4().hex)
            receipts = [await task for task in [scheduler.schedule(with_key, "a") for _ in range(8)]]
        assert sum(receipt.created for receipt in receipts) == 1
        assert len({receipt.id for receipt in receipts}) == 1

    async def test_a_delayed_call_waits_and_holds_nothing_up(self, engine: Engine) -> None:
        self._needs(engine, "delay")
        async with TaskScheduler(engine=engine) as scheduler:
            later = await scheduler.task(delay=3600).schedule(record_run, "later")
            soon = await scheduler.task(delay=0.2).schedule(record_run, "soon")
            now = await scheduler.schedule(record_run, "now")
            async with self.working(engine):
                await self.ended(now, DurableState.SUCCEEDED)
                await self.ended(soon, DurableState.SUCCEEDED)
            assert (await later.status()).state is DurableState.PENDING
        assert sorted(_runs.texts) == ["now", "soon"]  # both may be due when the worker starts

    # ---- one at a time by key ----

    async def test_a_call_joins_an_unfinished_one_with_its_key(self, engine: Engine) -> None:
        self._needs(engine, "key")
        async with TaskScheduler(engine=engine) as scheduler:
            keyed = scheduler.task(key=uuid4().hex)
            first, second = await keyed.schedule(_wait, "first"), await keyed.schedule(_wait, "second")
            async with self.working(engine):
                await self.until(lambda: _runs.running == 1)
                third = await keyed.schedule(_wait, "third")
                _runs.gate.set()
                await self.ended(first, DurableState.SUCCEEDED)
                fourth = await keyed.schedule(_wait, "fourth")
                await self.ended(fourth, DurableState.SUCCEEDED)
        assert [receipt.created for receipt in (first, second, third, fourth)] == [True, False, False, True]
        assert {(receipt.id, receipt.idempotency_key) for receipt in (first, second, third)} == {
            (first.id, first.idempotency_key)
        }
        assert _runs.texts == ["first", "fourth"]

    async def test_a_call_replaces_one_that_has_not_started(self, engine: Engine) -> None:
        self._needs(engine, "key")
        self._needs(engine, "delay")
        async with TaskScheduler(engine=engine) as scheduler:
            key = uuid4().hex
            first = await scheduler.task(key=key, on_conflict="replace", delay=3600).schedule(_wait, "first")
            second = await scheduler.task(key=key, on_conflict="replace", delay=3600).schedule(_wait, "second")
            third = await scheduler.task(key=key, on_conflict="replace").schedule(_wait, "third")
            assert [receipt.replaced for receipt in (first, second, third)] == [(), (first.id,), (second.id,)]
            for receipt in (first, second):
                assert (await receipt.status()).state is DurableState.CANCELLED
            async with self.working(engine):
                await self.until(lambda: _runs.running == 1)
                fourth, fifth = [
                    await scheduler.task(key=key, on_conflict="replace").schedule(_wait, text)
                    for text in ("fourth", "fifth")
                ]
                assert (third.created, fourth.created, fifth.created) == (True, True, True)
                assert (fourth.replaced, fifth.replaced) == ((), (fourth.id,)), "what runs is not replaced"
                _runs.gate.set()
                for receipt in (third, fifth):
                    await self.ended(receipt, DurableState.SUCCEEDED)
            assert (await fourth.status()).state is DurableState.CANCELLED
        assert _runs.texts == ["third", "fifth"]

    async def test_calls_with_a_key_run_one_after_the_other_in_order(self, engine: Engine) -> None:
        self._needs(engine, "key")
        async with TaskScheduler(engine=engine) as scheduler:
            queued = scheduler.task(key=uuid4().hex, on_conflict="queue")
            receipts = [await queued.schedule(_wait, str(number)) for number in range(4)]
            async with self.working(engine, concurrency=4), self.working(engine, concurrency=4):
                await self.until(lambda: _runs.running == 1)
                other = await scheduler.task(key=uuid4().hex, on_conflict="queue").schedule(record_run, "other key")
                await self.ended(other, DurableState.SUCCEEDED)
                _runs.gate.set()
                for receipt in receipts:
                    await self.ended(receipt, DurableState.SUCCEEDED)
        assert _runs.texts == ["0", "other key", "1", "2", "3"]
        assert _runs.most_running == 1

    async def test_a_key_is_held_while_its_task_is_retried(self, engine: Engine) -> None:
        self._needs(engine, "key")
        async with TaskScheduler(engine=engine) as scheduler:
            queued = scheduler.task(key=uuid4().hex, on_conflict="queue")
            receipts = [await queued.schedule(_fail, "fails", 3), await queued.schedule(_fail, "next", 0)]
            async with self.working(engine):
                await self.ended(receipts[0], DurableState.FAILED)
                await self.ended(receipts[1], DurableState.SUCCEEDED)
        assert _runs.texts == ["fails"] * 3 + ["next"]

    async def test_a_key_belongs_to_a_function_and_a_queue(self, engine: Engine) -> None:
        self._needs(engine, "key")
        key = uuid4().hex
        async with TaskScheduler(engine=engine) as scheduler:
            keyed = scheduler.task(key=key)
            receipts = [await keyed.schedule(record_run, "a"), await keyed.schedule(_wait, "b")]
            if "queues" in engine.capabilities:
                receipts.append(await keyed.schedule(record_run.configure(queue=f"contract-{key[:8]}"), "c"))
        assert all(receipt.created for receipt in receipts)
        assert len({receipt.id for receipt in receipts}) == len(receipts)

    async def test_one_of_many_with_a_key_at_the_same_time_is_made(self, engine: Engine) -> None:
        self._needs(engine, "key")
        async with TaskScheduler(engine=engine) as scheduler:
            keyed = scheduler.task(key=uuid4().hex)
            receipts = [await task for task in [keyed.schedule(record_run, "a") for _ in range(8)]]
            assert sum(receipt.created for receipt in receipts) == 1
            assert len({receipt.id for receipt in receipts}) == 1
            latest = scheduler.task(key=uuid4().hex, on_conflict="replace")
            replacing = [await task for task in [latest.schedule(record_run, "b") for _ in range(8)]]
            states = [(await receipt.status()).state for receipt in replacing]
        assert all(receipt.created for receipt in replacing)
        assert sorted(states) == [DurableState.CANCELLED] * 7 + [DurableState.PENDING]

    async def test_an_idempotency_key_holds_for_a_call_that_joined(self, engine: Engine) -> None:
        self._needs(engine, "key")
        self._needs(engine, "dedup")
        async with TaskScheduler(engine=engine) as scheduler:
            key = uuid4().hex
            first = await scheduler.task(key=key).schedule(record_run, "a")
            repeated = record_run.configure(idempotency_key=key)
            joined = await scheduler.task(key=key).schedule(repeated, "a")
            async with self.working(engine):
                await self.ended(first, DurableState.SUCCEEDED)
            again = await scheduler.task(key=key).schedule(repeated, "a")
        assert (joined.id, again.id) == (first.id, first.id)
        assert not again.created

    # ---- periodic functions ----

    async def test_an_occurrence_is_submitted_once(self, engine: Engine) -> None:
        if not isinstance(engine, PeriodicEngine):
            pytest.skip(f"{engine.name} has no periodic tasks")
        name = f"tasks_testing.engine_contract.{uuid4().hex}"
        async with engine:
            now, [last] = await engine.occurrences([name])
            assert timedelta(0) <= now - last < timedelta(seconds=5), "what is new has missed nothing"
            _, [again, other] = await engine.occurrences([name, f"{name}.other"])
            assert (again, other >= last) == (last, True)
            at = now + timedelta(hours=1)
            receipts = [await engine.submit_occurrence(DurableCall(name, {}, f"{n}"), at) for n in range(3)]
            assert [receipt is None for receipt in receipts] == [False, True, True]
            assert receipts[0] is not None
            assert receipts[0].created
            assert (await engine.occurrences([name]))[1] == [at]
            assert await engine.submit_occurrence(DurableCall(name, {}, "late"), now) is None
            assert not await engine.skip_occurrences(name, at)
            assert await engine.skip_occurrences(name, at + timedelta(hours=1))
            assert await engine.submit_occurrence(DurableCall(name, {}, "skipped"), at + timedelta(hours=1)) is None
            assert await engine.submit_occurrence(DurableCall(name, {}, "next"), at + timedelta(hours=2)) is not None

    async def test_one_of_many_submits_an_occurrence(self, engine: Engine) -> None:
        if not isinstance(engine, PeriodicEngine):
            pytest.skip(f"{engine.name} has no periodic tasks")
        name = f"tasks_testing.engine_contract.{uuid4().hex}"
        receipts: list[Receipt[Any] | None] = []

        async def submit(at: datetime) -> None:
            receipts.append(await engine.submit_occurrence(DurableCall(name, {}, "k"), at))

        async with engine:
            now, _ = await engine.occurrences([name])
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(submit, now + timedelta(hours=1))
        assert sum(receipt is not None for receipt in receipts) == 1

    # ---- queues and priorities ----

    async def test_a_full_queue_holds_up_no_other(self, engine: Engine) -> None:
        self._needs(engine, "queues")
        async with TaskScheduler(engine=engine) as scheduler:
            slow = [await scheduler.schedule(_wait, str(number)) for number in range(3)]
            async with self.working(engine, concurrency=None, queues={"default": 1, "contract-fast": 1}):
                await self.until(lambda: _runs.running == 1)
                for text in ("a", "b"):
                    await self.ended(await scheduler.schedule(_record_fast, text), DurableState.SUCCEEDED)
                assert _runs.running == 1
                _runs.gate.set()
                for receipt in slow:
                    await self.ended(receipt, DurableState.SUCCEEDED)
        assert _runs.most_running == 1, "a queue has no more at once than its slots"

    async def test_a_worker_without_queues_serves_those_of_its_functions(self, engine: Engine) -> None:
        self._needs(engine, "queues")
        async with TaskScheduler(engine=engine) as scheduler:
            receipts = [await scheduler.schedule(record_run, "a"), await scheduler.schedule(_record_fast, "b")]
            async with self.working(engine, concurrency=1):
                for receipt in receipts:
                    await self.ended(receipt, DurableState.SUCCEEDED)
        assert sorted(_runs.texts) == ["a", "b"]

    async def test_a_worker_leaves_queues_alone_that_it_does_not_serve(self, engine: Engine) -> None:
        self._needs(engine, "queues")
        other = f"contract-{uuid4().hex[:8]}"
        async with TaskScheduler(engine=engine) as scheduler:
            elsewhere = await scheduler.schedule(record_run.configure(queue=other), "elsewhere")
            async with self.working(engine, concurrency=None, queues={"default": 2}):
                await self.ended(await scheduler.schedule(record_run, "here"), DurableState.SUCCEEDED)
                assert (await elsewhere.status()).state is DurableState.PENDING
            async with self.working(engine, concurrency=None, queues={other: 2}):
                await self.ended(elsewhere, DurableState.SUCCEEDED)
        assert _runs.texts == ["here", "elsewhere"]

    async def test_a_key_is_accepted_once_in_each_queue(self, engine: Engine) -> None:
        self._needs(engine, "queues")
        self._needs(engine, "dedup")
        key = uuid4().hex
        async with TaskScheduler(engine=engine) as scheduler:
            receipts = [
                await scheduler.schedule(record_run.configure(idempotency_key=key, queue=queue), "a")
                for queue in ("default", f"contract-{key[:8]}", "default")
            ]
            other = await scheduler.schedule(_record_fast.configure(idempotency_key=key, queue="default"), "b")
        assert [receipt.created for receipt in receipts] == [True, True, False]
        assert receipts[2].id == receipts[0].id
        assert other.created, "a key belongs to a function"

    async def test_of_waiting_calls_those_with_a_higher_priority_run_first(self, engine: Engine) -> None:
        self._needs(engine, "priority")
        async with TaskScheduler(engine=engine) as scheduler:
            receipts = [
                await scheduler.schedule(record_run.configure(priority=priority), str(priority))
                for priority in (-5, 0, 100, 0, 7)
            ]
            async with self.working(engine, concurrency=1):
                for receipt in receipts:
                    await self.ended(receipt, DurableState.SUCCEEDED)
        assert _runs.texts == ["100", "7", "0", "0", "-5"]

    async def test_queue_and_priority_are_those_of_the_delivery(self, engine: Engine) -> None:
        self._needs(engine, "queues")
        self._needs(engine, "priority")
        delivered: list[DurableCall] = []
        stopping = anyio.Event()

        async def run(delivery: Delivery) -> None:
            delivered.append(delivery.call)
            if len(delivered) == 2:
                stopping.set()

        async with engine:
            for number, queue in enumerate(("default", "contract-fast")):
                await engine.submit(
                    DurableCall(record_run.name, {"text": "a"}, f"{number}", queue=queue, priority=number)
                )
            with anyio.fail_after(self.patience):
                await engine.work(run, concurrency={"default": 1, "contract-fast": 1}, stopping=stopping)
        assert {(call.queue, call.priority) for call in delivered} == {("default", 0), ("contract-fast", 1)}

    # ---- transactions ----

    async def test_a_call_is_part_of_the_transaction(self, engine: Engine) -> None:
        self._needs(engine, "transaction")
        async with TaskScheduler(engine=engine) as scheduler:
            async with self.transaction(engine) as transaction:
                kept = await scheduler.schedule(record_run.configure(transaction=transaction), "committed")
            with suppress(_RolledBackError):
                async with self.transaction(engine) as transaction:
                    gone = await scheduler.schedule(record_run.configure(transaction=transaction), "rolled back")
                    raise _RolledBackError
            assert (await gone.status()).state is DurableState.UNKNOWN
            async with self.working(engine):
                await self.ended(kept, DurableState.SUCCEEDED)
        assert _runs.texts == ["committed"]

    # ---- the end within a transaction ----

    @asynccontextmanager
    async def _completing(self, engine: Engine) -> AsyncIterator[TaskScheduler]:
        self._needs(engine, "complete")
        self.transaction(engine)  # its skip, which old releases of AnyIO turn into an error inside of a task
        _runs.transaction = partial(self.transaction, engine)
        async with TaskScheduler(engine=engine) as scheduler:
            yield scheduler

    async def test_the_commit_of_a_transaction_ends_the_task(self, engine: Engine) -> None:
        async with self._completing(engine) as scheduler:
            receipt = await scheduler.schedule(_complete, "a")
            async with self.working(engine):
                assert await receipt.result(timeout=self.patience) == "a in the transaction"
                await self.ended(await scheduler.schedule(record_run, "b"), DurableState.SUCCEEDED)
            status = await receipt.status()
        assert (status.state, status.attempts, status.errors) == (DurableState.SUCCEEDED, 1, ())
        assert _runs.texts == ["a", "b"], "a task whose end is committed has been delivered again"

    async def test_a_rollback_leaves_the_end_to_the_function(self, engine: Engine) -> None:
        async with self._completing(engine) as scheduler:
            receipt = await scheduler.schedule(_complete, "a", commits=False)
            async with self.working(engine):
                assert await receipt.result(timeout=self.patience) == "a by its function"
            assert (await receipt.status()).attempts == 2
        assert _runs.attempts == [("a", 1), ("a", 2)]

    async def test_the_end_in_a_transaction_releases_the_key(self, engine: Engine) -> None:
        self._needs(engine, "key")
        async with self._completing(engine) as scheduler:
            target = scheduler.task(key="one", on_conflict="queue")
            receipts = [await target.schedule(_complete, text) for text in "abc"]
            async with self.working(engine):
                for receipt in receipts:
                    await self.ended(receipt, DurableState.SUCCEEDED)
            assert (await scheduler.task(key="one").schedule(_complete, "d")).created
        assert _runs.texts == ["a", "b", "c"]

    async def test_followers_see_the_end_in_a_transaction(self, engine: Engine) -> None:
        _needs_events(engine)
        async with self._completing(engine) as scheduler:
            receipt = await scheduler.schedule(_complete, "a")
            async with self.working(engine):
                updates = [update async for update in follow_stored(scheduler, receipt.id, 0)]
        assert [event.data for update in updates for event in update.events] == [{"text": "a"}]
        assert updates[-1].state is TaskState.SUCCEEDED

    # ---- failures ----

    async def test_a_task_that_fails_is_delivered_again_and_counted(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(_fail, "a", 2)
            async with self.working(engine):
                await self.ended(receipt, DurableState.SUCCEEDED)
            assert (await receipt.status()).attempts == 3
        assert _runs.attempts == [("a", 1), ("a", 2), ("a", 3)]

    async def test_a_task_that_fails_too_often_has_failed(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(_fail, "a", 99)
            async with self.working(engine):
                await self.ended(receipt, DurableState.FAILED)
            assert (await receipt.status()).attempts == 3
        assert len(_runs.texts) == 3

    async def test_the_attempts_that_have_failed_stay_with_the_task(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            receipt = await scheduler.schedule(_fail, "SECRET", 2)
            await self.ended(receipt, DurableState.SUCCEEDED)
            hopeless = await scheduler.schedule(_fail_often, "SECRET")
            await self.ended(hopeless, DurableState.FAILED)
            first, second = (await receipt.status()).errors
            kept = (await hopeless.status()).errors
        assert (first.attempt, first.error, second.attempt) == (1, "ConnectionError", 2)
        assert first.began <= first.ended <= second.began <= second.ended
        assert "in _fail\n    raise ConnectionError(text)" in first.traceback
        assert "SECRET" not in str(kept) + first.traceback
        assert [record.attempt for record in kept] == [1, 2, *range(5, 13)]

    # ---- what a task decides: to run later, or never again ----

    async def test_a_task_that_snoozes_runs_again_and_no_attempt_is_counted(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            receipt = await scheduler.schedule(_snooze, "a", 3, 0.0)
            await self.ended(receipt, DurableState.SUCCEEDED)
            status = await receipt.status()
        assert _runs.attempts == [("a", 1)] * 4 + [("a", 2)]
        assert status.attempts == 2
        assert [record.attempt for record in status.errors] == [1]

    async def test_a_task_that_snoozes_waits_for_its_time_and_holds_nothing_up(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine, concurrency=1):
            receipt = await scheduler.schedule(_snooze, "a", 1, 3600)
            await self.until(lambda: _runs.texts == ["a"])
            await self.ended(await scheduler.schedule(record_run, "b"), DurableState.SUCCEEDED)
            await self.ended(receipt, DurableState.PENDING)
            status = await receipt.status()
            assert (status.attempts, status.errors) == (0, ())
            assert await receipt.cancel()
        assert _runs.texts == ["a", "b"]

    async def test_a_task_that_cancels_itself_ends_with_its_reason(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            receipt = await scheduler.schedule(_cancel_itself, "a")
            with pytest.raises(TaskCancelledError, match="it was withdrawn"):
                await receipt.result(timeout=self.patience)
            status = await receipt.status()
            assert not await receipt.cancel(), "it has ended"
            await self.ended(await scheduler.schedule(record_run, "b"), DurableState.SUCCEEDED)
        assert (status.state, status.attempts, status.errors) == (DurableState.CANCELLED, 1, ())
        assert status.reason == "it was withdrawn"
        assert _runs.texts == ["a", "b"], "it is not delivered again"

    async def test_an_error_handler_decides_what_becomes_of_a_task(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            receipt = await scheduler.schedule(_fail_and_decide, "a")
            await self.ended(receipt, DurableState.CANCELLED)
            status = await receipt.status()
        assert _runs.attempts == [("a", 1)] * 3, "a failure after which a task snoozes does not count"
        assert (status.attempts, status.reason) == (1, "it is hopeless")
        assert [record.error for record in status.errors] == ["ConnectionError"]

    async def test_a_name_that_is_not_registered_holds_nothing_up_and_runs_nothing(self, engine: Engine) -> None:
        """Another worker may have it: in a rolling deploy, the releases of the workers differ."""
        async with TaskScheduler(engine=engine) as scheduler:
            await engine.submit(DurableCall("os:system", {"command": "exit 1"}, "unknown"))
            receipt = await scheduler.schedule(record_run, "a")
            async with self.working(engine, concurrency=1):
                await self.ended(receipt, DurableState.SUCCEEDED)
        assert _runs.texts == ["a"]

    async def test_arguments_that_do_not_fit_run_nothing(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            await engine.submit(DurableCall(record_run.name, {"nonsense": 1}, "misfit"))
            receipt = await scheduler.schedule(record_run, "a")
            async with self.working(engine, concurrency=1):
                await self.ended(receipt, DurableState.SUCCEEDED)
        assert _runs.texts == ["a"]

    # ---- workers ----

    async def test_no_more_run_at_once_than_the_worker_says(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipts = [await scheduler.schedule(_wait, str(number)) for number in range(5)]
            async with self.working(engine, concurrency=2):
                await self.until(lambda: _runs.running >= 1)
                _runs.gate.set()
                for receipt in receipts:
                    await self.ended(receipt, DurableState.SUCCEEDED)
        assert sorted(_runs.texts) == ["0", "1", "2", "3", "4"]
        assert _runs.most_running <= 2

    async def test_two_workers_share_the_calls(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipts = [await scheduler.schedule(record_run, str(number)) for number in range(20)]
            async with self.working(engine), self.working(engine):
                for receipt in receipts:
                    await self.ended(receipt, DurableState.SUCCEEDED)
        assert sorted(_runs.texts, key=int) == [str(number) for number in range(20)]

    async def test_a_worker_that_is_stopped_puts_its_tasks_back(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(_wait, "a")
            async with self.working(engine, grace_period=0) as stop:
                await self.until(lambda: _runs.running == 1)
                stop.set()
                await self.until(lambda: _runs.running == 0)
            status = await receipt.status()
            assert (status.state, status.attempts) == (DurableState.PENDING, 0)
            _runs.gate.set()
            async with self.working(engine):
                await self.ended(receipt, DurableState.SUCCEEDED)
            assert (await receipt.status()).attempts == 1
        assert _runs.attempts == [("a", 1), ("a", 1)], "what was put back is no attempt"

    async def test_work_returns_when_it_is_stopped_and_all_has_ended(self, engine: Engine) -> None:
        stopping, ended = anyio.Event(), False

        async def run(_delivery: Delivery) -> None:
            nonlocal ended
            stopping.set()
            await anyio.lowlevel.checkpoint()
            ended = True

        async with engine:
            await engine.submit(DurableCall(record_run.name, {"text": "a"}, "1"))
            with anyio.fail_after(self.patience):
                await engine.work(run, concurrency=1, stopping=stopping)
        assert ended

    async def test_a_delivery_that_is_put_back_comes_again_and_a_failed_one_is_counted(self, engine: Engine) -> None:
        seen: list[tuple[int, int]] = []
        stopping = anyio.Event()

        async def run(delivery: Delivery) -> None:
            seen.append((delivery.attempt, delivery.failures))
            if len(seen) < 3:
                raise Redeliver(0.0, failed=len(seen) == 2)
            stopping.set()

        async with engine:
            await engine.submit(DurableCall(record_run.name, {"text": "a"}, "1"))
            with anyio.fail_after(self.patience):
                await engine.work(run, concurrency=1, stopping=stopping)
        assert seen == [(1, 0), (1, 0), (2, 1)]

    async def test_progress_can_be_read(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(_report, "a")
            async with self.working(engine):
                await self.ended(receipt, DurableState.SUCCEEDED)
            assert (await receipt.status()).progress == {"text": "a", "percent": 50}

    async def test_the_next_attempt_reads_what_the_one_before_has_reported(self, engine: Engine) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(_go_on, "a")
            async with self.working(engine):
                await self.ended(receipt, DurableState.SUCCEEDED)
            assert (await receipt.status()).progress == ["a", 3]
        assert _runs.texts == ["None ['a', 1]", "['a', 1] ['a', 2]", "['a', 2] ['a', 3]"]

    @pytest.mark.parametrize("function", [_count, _count_plainly])
    async def test_a_task_at_a_checkpoint_goes_on_with_the_next_worker(
        self, engine: Engine, function: DurableFunction[[str, int], Any, None]
    ) -> None:
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(function, "a", 5)
            async with self.working(engine, shield_timeout=self.patience) as stop:
                await self.until(lambda: _runs.running == 1)
                stop.set()
                await self.ended(receipt, DurableState.PENDING)
            status = await receipt.status()
            assert (status.state, status.attempts, status.progress) == (DurableState.PENDING, 0, 3)
            _runs.gate.set()
            async with self.working(engine):
                await self.ended(receipt, DurableState.SUCCEEDED)
            status = await receipt.status()
            assert (status.attempts, status.progress, status.errors) == (1, 5, ())
        assert _runs.attempts == [(f"a{number}", 1) for number in range(5)], "each step is done once"

    async def test_followers_read_what_a_call_emits_and_then_its_end(self, engine: Engine) -> None:
        _needs_events(engine)
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(_emit, "a", fails=False)
            async with self.working(engine):
                updates = [update async for update in follow_stored(scheduler, receipt.id, 0)]
            assert [event.data for update in updates for event in update.events] == [
                {"number": number, "attempt": 1} for number in range(3)
            ]
            assert (updates[-1].progress, updates[-1].state) == ({"text": "a"}, TaskState.SUCCEEDED)
            later = [update async for update in follow_stored(scheduler, receipt.id, 2)]
            assert [event.number for update in later for event in update.events] == [3]
            [unknown] = [update async for update in follow_stored(scheduler, "none of this engine", 0)]
            assert unknown.state is TaskState.DISCARDED

    async def test_the_events_of_the_next_attempt_have_further_numbers(self, engine: Engine) -> None:
        _needs_events(engine)
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(_emit, "a", fails=True)
            async with self.working(engine):
                updates = [update async for update in follow_stored(scheduler, receipt.id, 0)]
            events = [event for update in updates for event in update.events]
            assert [event.number for event in events] == [1, 2, 3, 4, 5, 6]
            assert events[-1].data == {"number": 2, "attempt": 2}

    async def test_a_call_that_is_followed_is_found_by_its_token(self, engine: Engine) -> None:
        _needs_events(engine)
        async with TaskScheduler(engine=engine) as scheduler:
            task = scheduler.schedule(record_run, "a")
            assert isinstance(task, DurableTask)
            token = make_followed(task, "ann")
            receipt = await task
            found = await find_followed(scheduler, token)
            assert found is not None
            assert (found.receipt, found.owner) == (receipt, "ann")
            assert (await found.receipt.status()).state is DurableState.PENDING
            assert await find_followed(scheduler, "guess") is None

    async def test_the_token_of_a_call_that_makes_no_task_is_that_of_the_task_that_there_is(
        self, engine: Engine
    ) -> None:
        _needs_events(engine)
        self._needs(engine, "dedup")
        async with TaskScheduler(engine=engine) as scheduler:
            with_key = record_run.configure(idempotency_key=uuid4().hex)
            tokens: list[str] = []
            receipts: list[Receipt[Any]] = []
            for owner in ("ann", "bob", "ann"):
                task = scheduler.schedule(with_key, "a")
                assert isinstance(task, DurableTask)
                tokens.append(make_followed(task, owner))
                receipts.append(await task)
            assert [receipt.created for receipt in receipts] == [True, False, False]
            assert len(set(tokens)) == 3
            for token in tokens:
                found = await find_followed(scheduler, token)
                assert found is not None
                assert (found.receipt.id, found.owner) == (receipts[0].id, "ann"), (
                    "the task belongs to the owner of the first"
                )
            alone = record_run.configure(idempotency_key=uuid4().hex)
            first = await scheduler.schedule(alone, "b")
            task = scheduler.schedule(alone, "b")
            assert isinstance(task, DurableTask)
            token = make_followed(task, "bob")
            await task
            found = await find_followed(scheduler, token)
            assert found is not None
            assert (found.receipt.id, found.owner) == (first.id, "bob"), "the first call was not followed"

    async def test_the_token_of_a_call_that_joins_is_that_of_the_task_that_it_joins(self, engine: Engine) -> None:
        _needs_events(engine)
        self._needs(engine, "key")
        async with TaskScheduler(engine=engine) as scheduler:
            keyed = scheduler.task(key=uuid4().hex)
            first, task = await keyed.schedule(record_run, "a"), keyed.schedule(record_run, "a")
            assert isinstance(task, DurableTask)
            token = make_followed(task, None)
            assert (await task).id == first.id
            found = await find_followed(scheduler, token)
            assert found is not None
            assert (found.receipt.id, found.owner) == (first.id, None)

    async def test_a_task_whose_worker_dies_runs_again(self, engine: Engine) -> None:
        async with engine:
            await self.kill_worker_with(engine, DurableCall(record_run.name, {"text": "a"}, "mortal"))
            async with self.working(engine):
                await self.until(lambda: _runs.texts == ["a"])

    async def test_an_engine_that_is_unavailable_says_so_and_comes_back(self, engine: Engine) -> None:
        outage = self.outage(engine)  # inside of a task group, old releases of AnyIO turn its skip into an error
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            await self.ended(await scheduler.schedule(record_run, "before"), DurableState.SUCCEEDED)
            async with outage:
                with pytest.raises(EngineUnavailableError):
                    await scheduler.schedule(record_run, "meanwhile")
            receipt = await scheduler.schedule(record_run, "after")
            await self.ended(receipt, DurableState.SUCCEEDED)
        assert (_runs.texts[0], _runs.texts[-1]) == ("before", "after")


class OperableEngineContract(EngineContract):
    """Subclass it in place of `EngineContract` for an engine that has the methods of `OperableEngine`."""

    async def _failed(self, engine: Engine, scheduler: TaskScheduler, *texts: str) -> list[Receipt[Any]]:
        """Return the receipts of tasks that have failed, after all of their attempts."""
        receipts = [await scheduler.schedule(_fail, text, 99) for text in texts]
        async with self.working(engine):
            for receipt in receipts:
                await self.ended(receipt, DurableState.FAILED)
        return receipts

    async def test_numbers_are_those_of_the_stored_tasks(self, engine: Engine) -> None:
        operated = _operable(engine)
        async with TaskScheduler(engine=engine) as scheduler:
            await self._failed(engine, scheduler, "a", "b")
            for text in ("c", "d", "e"):
                await scheduler.schedule(record_run, text)
            await scheduler.task(delay=3600).schedule(record_run, "f")
            numbers = await _numbers(operated)
            assert (numbers.waiting, numbers.running, numbers.failed, numbers.delayed) == (3, 0, 2, 1)
            assert numbers.oldest_waiting is not None
            assert 0 <= numbers.oldest_waiting < self.patience
            assert numbers.ended_per_second > 0
            assert (numbers.workers_alive, numbers.workers_silent) == (0, 0)
            assert not numbers.paused
            bounded = await _numbers(operated, count_to=1)
            assert (bounded.waiting, bounded.failed, bounded.delayed) == (1, 1, 1)

    async def test_a_worker_that_runs_a_task_is_counted(self, engine: Engine) -> None:
        operated = _operable(engine)
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(_wait, "a")
            assert await _problems(operated), "there is a task, and no worker"
            async with self.working(engine):
                await self.until(lambda: _runs.running == 1)
                numbers = await _numbers(operated)
                assert (numbers.waiting, numbers.running, numbers.workers_alive) == (0, 1, 1)
                assert numbers.oldest_waiting is None
                assert await _problems(operated) == []
                [task] = (await operated.find(state=DurableState.RUNNING, queue=DEFAULT_QUEUE)).tasks
                assert task.id == receipt.id
                _runs.gate.set()
                await self.ended(receipt, DurableState.SUCCEEDED)

    async def test_stored_tasks_are_found_page_by_page(self, engine: Engine) -> None:
        operated = _operable(engine)
        async with TaskScheduler(engine=engine) as scheduler:
            failed = await self._failed(engine, scheduler, "a", "b", "c")
            waiting = [await scheduler.schedule(record_run, text) for text in ("d", "e")]
            page = await operated.find(queue=DEFAULT_QUEUE, limit=3)
            assert [task.id for task in page.tasks] == [waiting[1].id, waiting[0].id, failed[2].id]
            rest = await operated.find(queue=DEFAULT_QUEUE, limit=3, after=page.after)
            assert [task.id for task in rest.tasks] == [failed[1].id, failed[0].id]
            assert rest.after is None
            assert (await operated.find(after="no id")).tasks == ()

    async def test_filters_find_what_they_say(self, engine: Engine) -> None:
        operated = _operable(engine)
        async with TaskScheduler(engine=engine) as scheduler:
            [failed] = await self._failed(engine, scheduler, "a")
            waiting = await scheduler.schedule(record_run, "b")
            for which, ids in (
                ({"state": DurableState.FAILED}, [failed.id]),
                ({"state": DurableState.PENDING}, [waiting.id]),
                ({"state": DurableState.RUNNING}, []),
                ({"state": DurableState.SUCCEEDED}, []),
                ({"state": DurableState.CANCELLED}, []),
                ({"name": record_run.name}, [waiting.id]),
                ({"name": "no name"}, []),
                ({"name": _fail.name, "state": DurableState.PENDING}, []),
                ({"queue": "no-queue"}, []),
                ({"error": "no error"}, []),
                ({"older_than": 3600.0}, []),
                ({"older_than": 0.0}, [waiting.id, failed.id]),
            ):
                page = await operated.find(**{"queue": DEFAULT_QUEUE, **which})  # type: ignore[arg-type]  # a table of arguments
                assert [task.id for task in page.tasks] == ids, which
                assert page.after is None

    async def test_a_task_is_shown_without_its_arguments(self, engine: Engine) -> None:
        operated = _operable(engine)
        async with TaskScheduler(engine=engine) as scheduler:
            receipt = await scheduler.schedule(_report, "secret")
            async with self.working(engine):
                await self.ended(receipt, DurableState.SUCCEEDED)
            shown = await operated.show(receipt.id)
            assert shown is not None
            assert (shown.task.id, shown.task.key) == (receipt.id, receipt.idempotency_key)
            assert (shown.task.name, shown.task.state) == (_report.name, DurableState.SUCCEEDED)
            assert shown.task.attempts == 1
            assert shown.progress == {"text": "secret", "percent": 50}
            moments = [event.at for event in shown.events]
            assert len(moments) == 3
            assert moments == sorted(moments)
            assert (shown.task.submitted_at, shown.task.changed_at) == (moments[0], moments[-1])
            assert shown.arguments is None
            more = await operated.show(receipt.id, arguments=True)
            assert more is not None
            assert more.arguments == {"text": "secret"}
            for unknown in ("987654321", "-1", "abc", ""):
                assert await operated.show(unknown) is None

    async def test_a_failed_task_that_is_retried_has_all_attempts_again(self, engine: Engine) -> None:
        operated = _operable(engine)
        async with TaskScheduler(engine=engine) as scheduler:
            one, other = await self._failed(engine, scheduler, "a", "b")
            shown = await operated.show(one.id)
            assert shown is not None
            assert [(error.attempt, error.error) for error in shown.errors] == [
                (number, "ConnectionError") for number in (1, 2, 3)
            ]
            assert shown.errors == (await one.status()).errors
            assert shown.task.attempts == (await one.status()).attempts == 3
            assert await operated.retry(one.id, dry_run=True) == 1
            assert (await one.status()).state is DurableState.FAILED
            assert await operated.retry(one.id) == 1
            assert (await one.status()).state is DurableState.PENDING
            assert await operated.retry(one.id) == 0, "it waits already"
            assert await operated.retry("no id") == 0
            async with self.working(engine):
                await self.ended(one, DurableState.FAILED)
            assert [attempt for text, attempt in _runs.attempts if text == "a"] == [1, 2, 3, 4, 5, 6]
            counts: list[int] = []
            assert await operated.retry(name=_fail.name, on_progress=counts.append) == 2
            assert counts[-1] == 2
            _runs.failures = 99
            async with self.working(engine):
                for receipt in (one, other):
                    await self.ended(receipt, DurableState.SUCCEEDED)

    async def test_a_delayed_task_that_is_retried_is_due(self, engine: Engine) -> None:
        self._needs(engine, "delay")
        operated = _operable(engine)
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            receipt = await scheduler.task(delay=3600).schedule(record_run, "a")
            [task] = (await operated.find(state=DurableState.PENDING, queue=DEFAULT_QUEUE)).tasks
            assert task.due_at is not None
            assert await operated.retry(receipt.id) == 1
            await self.ended(receipt, DurableState.SUCCEEDED)
        assert _runs.attempts == [("a", 1)]

    async def test_waiting_and_running_tasks_are_cancelled(self, engine: Engine) -> None:
        operated = _operable(engine)
        async with TaskScheduler(engine=engine) as scheduler:
            running = await scheduler.schedule(_wait, "a")
            async with self.working(engine, concurrency=1):
                await self.until(lambda: _runs.running == 1)
                waiting = await scheduler.schedule(record_run, "b")
                assert await operated.cancel(state=DurableState.PENDING, queue=DEFAULT_QUEUE, dry_run=True) == 1
                assert await operated.cancel(waiting.id) == 1
                assert (await waiting.status()).state is DurableState.CANCELLED
                assert await operated.cancel(name=_wait.name) == 1
                await self.ended(running, DurableState.CANCELLED)
                assert await operated.cancel(running.id) == 0, "it has ended"
            assert await operated.retry(waiting.id) == 1
            async with self.working(engine):
                await self.ended(waiting, DurableState.SUCCEEDED)
        assert _runs.texts == ["a", "b"]

    async def test_a_task_that_has_cancelled_itself_says_why_until_it_is_retried(self, engine: Engine) -> None:
        operated = _operable(engine)
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            receipt = await scheduler.schedule(_cancel_itself, "a")
            await self.ended(receipt, DurableState.CANCELLED)
            shown = await operated.show(receipt.id)
            assert shown is not None
            assert shown.reason == "it was withdrawn"
            assert await operated.retry(receipt.id) == 1
            await self.ended(receipt, DurableState.SUCCEEDED)
            shown = await operated.show(receipt.id)
            assert shown is not None
            assert (shown.reason, (await receipt.status()).reason) == (None, None)
        assert _runs.attempts == [("a", 1), ("a", 2)]

    async def test_the_key_of_a_discarded_task_is_free(self, engine: Engine) -> None:
        self._needs(engine, "dedup")
        operated = _operable(engine)
        async with TaskScheduler(engine=engine) as scheduler:
            with_key = _fail.configure(idempotency_key=uuid4().hex)
            first = await scheduler.schedule(with_key, "a", 99)
            assert await operated.discard(first.id) == 0, "it has not ended"
            async with self.working(engine):
                await self.ended(first, DurableState.FAILED)
            assert await operated.discard(queue=DEFAULT_QUEUE, dry_run=True) == 1
            assert await operated.discard(name=_fail.name) == 1
            assert (await first.status()).state is DurableState.UNKNOWN
            assert await operated.show(first.id) is None
            second = await scheduler.schedule(with_key, "a", 99)
            assert second.created
            assert second.id != first.id

    async def test_what_is_paused_waits_until_it_is_resumed(self, engine: Engine) -> None:
        operated = _operable(engine)
        async with TaskScheduler(engine=engine) as scheduler, self.working(engine):
            await operated.pause(name=record_run.name)
            await operated.pause(name=record_run.name)
            [pause] = [pause for pause in await operated.pauses() if pause.queue == DEFAULT_QUEUE]
            assert pause.name == record_run.name
            held = await scheduler.schedule(record_run, "held")
            free = await scheduler.schedule(_report, "free")
            await self.ended(free, DurableState.SUCCEEDED)
            assert (await held.status()).state is DurableState.PENDING
            numbers = await _numbers(operated)
            assert (numbers.paused, numbers.paused_names) == (False, (record_run.name,))
            assert await _problems(operated)
            await operated.pause(queue=numbers.queue)
            await operated.resume(name=record_run.name)
            numbers = await _numbers(operated)
            assert (numbers.paused, numbers.paused_names) == (True, ())
            assert (await held.status()).state is DurableState.PENDING
            await operated.resume(queue=numbers.queue)
            await self.ended(held, DurableState.SUCCEEDED)
            assert list(await operated.pauses()) == []
        assert _runs.texts == ["free", "held"]

    async def test_ended_tasks_are_purged_by_age_and_state(self, engine: Engine) -> None:
        operated = _operable(engine)
        async with TaskScheduler(engine=engine) as scheduler:
            [failed] = await self._failed(engine, scheduler, "a")
            done, waiting = (
                await scheduler.schedule(_report, "b"),
                await scheduler.task(delay=60).schedule(_report, "c"),
            )
            async with self.working(engine):
                await self.ended(done, DurableState.SUCCEEDED)
            assert await operated.purge(older_than=3600.0, queue=DEFAULT_QUEUE) == 0
            counts: list[int] = []
            assert (
                await operated.purge(
                    older_than=0.0, state=DurableState.SUCCEEDED, queue=DEFAULT_QUEUE, on_progress=counts.append
                )
                == 1
            )
            assert counts[-1] == 1
            assert (await failed.status()).state is DurableState.FAILED
            assert await operated.purge(older_than=0.0, queue=DEFAULT_QUEUE) == 1
            for receipt in (failed, done):
                assert (await receipt.status()).state is DurableState.UNKNOWN
            assert (await waiting.status()).state is DurableState.PENDING

    async def test_a_wrong_argument_is_an_error_at_the_call(self, engine: Engine) -> None:
        operated = _operable(engine)
        async with engine:
            for call, text in (
                (lambda: operated.find(limit=0), "limit=0: limit must be a"),
                (lambda: operated.find(older_than=-1.0), "older_than=-1.0"),
                (lambda: operated.find(state="failed"), "state='failed'"),  # type: ignore[arg-type]  # what is refused
                (lambda: operated.find(state=DurableState.UNKNOWN), "state="),
                (lambda: operated.find(where="x"), "'where' is no part of a filter"),  # type: ignore[call-arg]  # likewise
                (lambda: operated.statistics(count_to=0), "count_to=0"),
                (operated.retry, r"retry\(\) needs an id or a filter"),
                (lambda: operated.retry("1", name="x"), "an id or a filter, not both"),
                (
                    lambda: operated.retry(state=DurableState.RUNNING),
                    "state='running', and acts on tasks that are failed or",
                ),
                (lambda: operated.cancel(state=DurableState.FAILED), "pending or running"),
                (lambda: operated.discard(state=DurableState.SUCCEEDED), "failed or cancelled"),
                (operated.pause, r"pause\(\) needs a queue or a name"),
                (lambda: operated.resume(name=""), "name=''"),
                (lambda: operated.purge(older_than=float("nan")), "older_than=nan"),
                (lambda: operated.purge(state=DurableState.PENDING), "succeeded or failed or cancelled"),
            ):
                with pytest.raises(InvalidConfigError, match=text):
                    await call()


async def _numbers(engine: OperableEngine, count_to: int = 1000) -> QueueStatistics:
    """Return the numbers of the default queue. Other queues may have tasks of other tests."""
    return next(one for one in await engine.statistics(count_to=count_to) if one.queue == DEFAULT_QUEUE)


async def _problems(engine: OperableEngine) -> list[str]:
    return [problem for problem in (await engine.health()).problems if repr(DEFAULT_QUEUE) in problem]


def _operable(engine: Engine) -> OperableEngine:
    assert isinstance(engine, OperableEngine), f"{engine.name} has not the methods of OperableEngine"
    return engine

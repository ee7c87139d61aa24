"""A worker: runs the calls that an engine delivers as tasks of a scheduler, until it is stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Unpack
from weakref import ref

import anyio

from tasks_core._decision import Cancel, Snooze
from tasks_core._journal import EmittedEvent
from tasks_core._options import ShutdownOptions, complete
from tasks_core._retry import Retry, ask
from tasks_core._run.ledger import CANCEL_CALLED, label, log_retry
from tasks_core._scheduler import TaskScheduler
from tasks_core._support.jsontext import Json
from tasks_core._support.log import logger
from tasks_core._support.provider import Provider
from tasks_core._task import Task, TaskState
from tasks_core._telemetry.config import TelemetryConfig
from tasks_core.exceptions import (
    ArgumentCodecError,
    DurableTaskGivenUpError,
    EngineCapabilityError,
    InvalidTaskError,
    UnknownTaskError,
)

from .codec import StoredResult, check_json
from .completion import Completing, CompletionOutcome, log_uncounted
from .context import DurableContext, set_context
from .delivered import Delivered
from .engine import Delivery, Engine, EventSink, NotUnderstood, Redeliver
from .function import DurableFunction
from .host import engine_in_force
from .label import CallLabel
from .periodic import Occurrences
from .queues import Slots, check_slots, total
from .registry import registry
from .telemetry import Telemetry

# Seconds until a call whose function is unknown here is delivered again: in a rolling deploy, another worker knows it.
_UNKNOWN = 5.0

# Seconds that a task which the engine cancels may take to clean up before the engine hears of its end.
_CLEAN_UP = 1.0

_PROVIDER_HINT = (
    "A worker has a provider by Worker(engine, provider=...), and that of an application of FastAPI by "
    "python -m tasks_fastapi worker app.main:app"
)


class Worker:
    """
    Runs durable tasks, but only those whose functions have been imported into this process.

    ```python
    async with engine:
        await Worker(engine, concurrency=32).run(stop)
    ```

    The command does the same until a signal arrives: `python -m tasks_core worker app.main:engine --concurrency 32`.

    Each delivery is a task of a scheduler, with the same observers, timeouts, threads for plain functions and rules of
    shutdown as any other task; follow-up tasks are scheduled into `durable_context().scheduler`. A worker that is
    stopped accepts no more calls. Tasks that run have `grace_period` seconds. Then those without `shield` are cancelled
    and put back into the queue, and shielded ones have `shield_timeout` more seconds. A plain function cannot be
    cancelled: its call is put back into the queue although the function may still run. A task that is at a checkpoint
    (`durable_context().checkpoint(...)`) is put back there, without waiting.

    Args:
        engine: The engine that delivers the calls. The caller has entered it.

        concurrency: How many run at once, of the queue of the engine and of all queues that the functions of this
            process name. Default: 32.

        queues: How many run at once of each queue, in place of *concurrency*: `{"payments": 4, "default": 32}`. Only
            these queues are served. `"default"` is the queue of the engine.

        provider: Supplies arguments that a call does not have; see `tasks_core.Provider`.

        telemetry: Settings for OpenTelemetry. If it has a provider when `run()` is called, each run is a span in the
            trace of its submit, and metrics of tasks and queues are recorded.

        options: `ShutdownOptions` has their names, types and defaults.

    Raises:
        InvalidConfigError: an argument has a value that it cannot have, or both numbers were given.
        EngineCapabilityError: *queues* was given, and the engine has one queue only.
    """

    __slots__ = ("_engine", "_options", "_provider", "_scheduler", "_slots", "_telemetry", "_unknown", "_unstored")

    def __init__(
        self,
        engine: Engine,
        *,
        concurrency: int | None = None,
        queues: Mapping[str, int] | None = None,
        provider: Provider | None = None,
        telemetry: TelemetryConfig | None = None,
        **options: Unpack[ShutdownOptions],
    ) -> None:
        Worker.check_options(concurrency=concurrency, queues=queues, **options)
        if queues is not None and "queues" not in engine.capabilities:
            raise EngineCapabilityError(
                f"queues= was given, and {engine.name} has one queue only. Write Worker(engine, concurrency=32)"
            )
        self._engine = engine
        self._slots: Slots = check_slots(concurrency, queues)
        self._provider = provider
        self._telemetry = Telemetry(telemetry)
        self._options = options
        self._unknown: set[str] = set()
        self._unstored: set[str] = set()

    @staticmethod
    def check_options(
        *, concurrency: int | None = None, queues: Mapping[str, int] | None = None, **options: Unpack[ShutdownOptions]
    ) -> None:
        """Raise what `Worker(engine, **options)` would raise for options that no engine allows, without making one."""
        check_slots(concurrency, queues)
        complete(ShutdownOptions, options, "Worker")

    async def run(self, stop: anyio.Event) -> None:
        """
        Run tasks until *stop* is set, and return when every call has ended or is back in the queue.

        It also submits the occurrences of periodic functions (`durable(periodic=...)`).

        Cancellation: like *stop*, with the grace period over at once.

        Raises:
            EngineCapabilityError: there are periodic functions, and the engine has none.
        """
        if engine_in_force(self._engine) is not self._engine:
            logger.info("The worker does not start: override_engine() is in force, and gets all durable tasks")
            return
        occurrences = Occurrences(self._engine)
        self._scheduler = scheduler = TaskScheduler(
            max_threads=total(self._slots), engine=self._engine, provider=self._provider, **self._options
        )
        scheduler._runner.following.forward = _Forward()
        scheduler._runner.report_prefix = f"Worker of {self._engine.name}: "  # the application has a report of its own
        logger.info(
            "Worker takes tasks from %s: %d functions, %s at once", self._engine.name, len(registry), _show(self._slots)
        )
        with self._telemetry.observe(scheduler):
            await self._work(occurrences, stop)

    async def _work(self, occurrences: Occurrences, stop: anyio.Event) -> None:
        scheduler = self._scheduler
        async with scheduler, anyio.create_task_group() as group:
            group.start_soon(self._stop_when, stop)
            group.start_soon(occurrences.run, scheduler.stopping)
            measure = self._telemetry.queue_gauges(self._engine)
            if measure is not None:
                group.start_soon(measure)
            # Not cancelled with the block: it returns when its tasks have ended, which shutdown bounds.
            with anyio.CancelScope(shield=True):
                await self._engine.work(self._run, concurrency=self._slots, stopping=scheduler.stopping)
            group.cancel_scope.cancel()

    async def _stop_when(self, stop: anyio.Event) -> None:
        try:
            await stop.wait()
        finally:
            await self._scheduler.aclose()

    async def _run(self, delivery: Delivery) -> StoredResult | None:
        call = delivery.call
        try:
            function = registry.get(call.name)
        except UnknownTaskError as error:
            self._log_unknown_once(error)
            raise NotUnderstood(_UNKNOWN, failed=False) from error
        attempt = _Attempt(self._engine.name, self._scheduler, function, delivery)
        result = await attempt.run()
        if result is not None and (problem := result.problem or await attempt.result_is_late()) is not None:
            self._log_result_once(call.name, problem)
        return result

    def _log_unknown_once(self, error: UnknownTaskError) -> None:
        if str(error) not in self._unknown:
            self._unknown.add(str(error))
            logger.error("%s. Its calls stay in the queue, for a worker that knows it", error)

    def _log_result_once(self, name: str, problem: str) -> None:
        if name not in self._unstored:
            self._unstored.add(name)
            logger.error(
                "Task %r has succeeded, and its result is not stored: %s. Without a return annotation, the function "
                "has no result to store",
                name,
                problem,
            )


class _Progress:
    """What a delivery, or an earlier one of its call, has reported last. A context that is kept keeps nothing else."""

    __slots__ = ("_report", "value")

    def __init__(self, delivery: Delivery) -> None:
        self._report = delivery.report_progress
        self.value: Json = delivery.progress

    def read(self) -> Json:
        return self.value

    async def save(self, progress: Json) -> None:
        await self._report(progress)
        self.value = progress


class _Attempt(Delivered):
    """One delivery, as a task of the scheduler."""

    __slots__ = (
        "_again",
        "_completing",
        "_delivery",
        "_engine_name",
        "_events",
        "_function",
        "_scheduler",
        "_settled",
        "progress",
    )

    def __init__(
        self, engine: str, scheduler: TaskScheduler, function: DurableFunction[..., Any, Any], delivery: Delivery
    ) -> None:
        self._engine_name = engine
        self._scheduler = scheduler
        self._function = function
        self._delivery = delivery
        self._again: float | None = None
        self._events: EventSink | None = None
        self.progress = _Progress(delivery)
        completion = delivery.completion
        codec = function.result_codec
        self._completing = None if completion is None else Completing(delivery.call.name, codec, completion)
        self._settled = CompletionOutcome.ROLLED_BACK

    async def run(self) -> StoredResult | None:
        call, function = self._delivery.call, self._function
        func, args, kwargs = self._what_to_run()
        if self._scheduler.stopping.is_set():
            raise Redeliver(0.0, failed=False)  # delivered at the very moment of the stop
        set_context(
            DurableContext(
                call.name,
                call.idempotency_key,
                self._delivery.attempt,
                call.headers,
                ref(self._scheduler),
                self.progress.save,
                self.progress.read,
                queue=call.queue,
                receipt_id=self._delivery.id,
                continues=True,
                completing=self._completing,
            )
        )
        target = self._scheduler.task(
            name=call.name,
            shield=function.config.shield,
            timeout=function.config.timeout,
            on_error=self._on_error,
        )
        try:
            task = target.schedule(func, *args, **kwargs)
        except InvalidTaskError as error:
            # The worker of the application has a provider that this one lacks.
            raise NotUnderstood(_UNKNOWN, failed=False) from InvalidTaskError(f"{error}. {_PROVIDER_HINT}")
        label(task, self._label())
        task.attempts = self._delivery.attempt - 1  # for logs and handlers: those of other processes count
        try:
            await task.wait()
        except anyio.get_cancelled_exc_class():
            task.cancel()
            with anyio.move_on_after(_CLEAN_UP, shield=True):
                await task.wait()
            raise
        self._raise_outcome(task)
        return function.result_codec.encode(task.result())

    async def _settle(self) -> CompletionOutcome:
        """Return whether what the function did counts, because `complete()` has not ended the call: `ROLLED_BACK`."""
        completion = self._delivery.completion
        if completion is None or not completion.used:
            return CompletionOutcome.ROLLED_BACK
        self._settled = await completion.outcome()
        return self._settled

    async def result_is_late(self) -> str | None:
        """Return what is wrong with a result that was returned when the end was stored already, without one."""
        if self._completing is None or self._completing.gave_result:
            return None
        late = await self._settle() is CompletionOutcome.ENDED
        return "the function returned it after complete(). Write complete(session, result=...)" if late else None

    @property
    def delivery(self) -> Delivery:
        return self._delivery

    @property
    def engine_name(self) -> str:
        return self._engine_name

    def outcome(self, task: Task[Any]) -> str:
        if self._settled is not CompletionOutcome.ROLLED_BACK:
            return "succeeded" if self._settled is CompletionOutcome.ENDED else "redelivered"
        match task.state:
            case TaskState.FAILED if self._again is not None:
                return "retrying"
            case TaskState.CANCELLED if isinstance(task._result, Cancel) or task.reason == CANCEL_CALLED:
                return "cancelled"
            case TaskState.CANCELLED if self._scheduler.stopping.is_set():
                return "redelivered"
        return str(task.state)

    @property
    def events(self) -> EventSink | None:
        """Where the delivery writes what it emits; opened on first use."""
        if self._events is None and self._delivery.open_events is not None:
            self._events = self._delivery.open_events()
        return self._events

    def _what_to_run(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Return the function and its arguments; for a call that is given up, what raises the reason in its place."""
        call = self._delivery.call
        if self._delivery.give_up is not None:
            return _raise, (DurableTaskGivenUpError(f"{call.name!r} is given up: {self._delivery.give_up}"),), {}
        try:
            arguments = self._function.codec.decode(call.args)
        except ArgumentCodecError as error:
            raise NotUnderstood(_UNKNOWN, failed=False) from error
        return self._function.func, arguments.args, arguments.kwargs

    def _raise_outcome(self, task: Task[Any]) -> None:
        match task.state:
            case TaskState.SUCCEEDED:
                return
            case TaskState.FAILED:
                if self._again is not None:
                    raise Redeliver(self._again, failed=True) from task.exception
            case TaskState.CANCELLED if isinstance(task._result, Snooze):
                raise Redeliver(task._result.delay, failed=False)
            case TaskState.CANCELLED if isinstance(task._result, Cancel):
                raise Cancel(task._result.reason) from task.exception
            case _ if self._scheduler.stopping.is_set():
                raise Redeliver(0.0, failed=False)
        task.result()  # raises

    async def _on_error(self, task: Task[Any], exception: Exception) -> object:
        """Decide whether there is another attempt, which the engine delivers: never retry here."""
        if (outcome := await self._settle()) is not CompletionOutcome.ROLLED_BACK:
            log_uncounted(task, exception, outcome)
            return True
        policy = self._delivery.call.retry
        given_up = self._delivery.give_up is not None
        pause = None if policy is None or given_up else policy.pause(exception, self._delivery.failures + 1)
        answer: object = None
        if pause is None and self._function.config.on_error is not None:
            answer = await ask(self._function.config.on_error, task, exception)
            pause = answer.delay if isinstance(answer, Retry) else None
        if pause is None:
            return answer
        self._again = pause
        log_retry(task, exception, f"is delivered again in {pause:g} s", self._delivery.failures + 1)
        return True

    def _label(self) -> CallLabel:
        call = self._delivery.call
        return CallLabel(call.name, call.idempotency_key, self._delivery.id, call.queue, self._delivery.attempt)


def _show(slots: Slots) -> str:
    return str(slots) if isinstance(slots, int) else ", ".join(f"{name}={count}" for name, count in slots.items())


class _Forward:
    """Passes what durable tasks emit and report on to the engine that has delivered them."""

    __slots__ = ()

    def emitted(self, task: Task[Any], event: EmittedEvent) -> None:
        attempt = _attempt_of(task)
        if attempt is not None and attempt.events is not None:
            attempt.events.emit(event.json)

    def reported(self, task: Task[Any], progress: bytes) -> None:
        attempt = _attempt_of(task)
        if attempt is not None and attempt.events is not None:
            value = json.loads(progress)
            check_json(value, "report()")
            attempt.events.report(progress)
            attempt.progress.value = value


def _attempt_of(task: Task[Any]) -> _Attempt | None:
    # By its handler, which only the task of a delivery has: one more reference for each task would be for nothing.
    attempt = getattr(task.config.on_error, "__self__", None)
    return attempt if isinstance(attempt, _Attempt) else None


async def _raise(error: Exception) -> None:
    raise error

"""Submitting a call to an engine: a task that has succeeded when the engine has acknowledged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4
from weakref import ref

import anyio

from tasks_core._config import Outcome, TaskConfig
from tasks_core._retry import Retry, RetryPolicy, ask
from tasks_core._run.ledger import log_fields, title
from tasks_core._support.call import check_provided_call
from tasks_core._support.jsontext import Json
from tasks_core._support.log import logger
from tasks_core._support.provider import ProvidedCall
from tasks_core._task import PhaseInfo, ProvidedTask, Task, TaskState
from tasks_core.exceptions import EngineCapabilityError, EngineError, EngineNotConfiguredError, EngineUnavailableError

from .calls import DurableCall, Receipt
from .codec import ArgumentCodec, ResultCodec
from .completion import Completing, CompletionOutcome, log_uncounted
from .context import DurableContext, set_context
from .engine import BatchEngine, Engine, EngineFallback
from .host import engine_in_force, host_of
from .memory import MemoryCompletion, OneTask
from .queues import DEFAULT_QUEUE, KEY
from .trace import submit_span, trace_headers

if TYPE_CHECKING:
    from tasks_core._phase import TaskPhase
    from tasks_core._run.runner import Runner
    from tasks_core._schedule import ScheduledCall, ScheduleTarget

    from .commit import SessionCommit
    from .memory import Admit


class FunctionInfo(Protocol):
    """What a submit needs from the `DurableFunction`."""

    __name__: str
    name: str
    retry: RetryPolicy | None
    config: TaskConfig
    queue: str
    priority: int

    @property
    def func(self) -> Callable[..., Any]: ...

    @property
    def is_async(self) -> bool: ...

    @property
    def codec(self) -> ArgumentCodec: ...

    @property
    def result_codec(self) -> ResultCodec: ...

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What `DurableFunction.configure()` was given."""

    idempotency_key: str | None = None
    transaction: Any = None
    queue: str | None = None
    priority: int | None = None


# What an option of `.task(...)` means for a durable call. Each is in one of the two.
OF_THE_SUBMIT = frozenset(("name", "shield", "when", "delay"))
"""It is about the submit, or about when the call is submitted; a submit is always shielded."""
OF_THE_RUN = {"on_error": True, "timeout": True, "limiter": False, "on_end": False}
"""It would be about the run, in another process: an error at the call. The value is whether `@durable()` takes it."""

OF_THE_ENGINE = frozenset(("key", "on_conflict"))
"""The engine does it and not the scheduler: the submit itself has no key."""

FOLLOW, OWNER = "follow", "follow-owner"
"""Headers of a call that clients follow: its token, and whose it is."""

# Seconds that an engine has to acknowledge.
_TIME_LIMIT = 5.0


class DurableTask(Task[Receipt[Any]]):
    """
    A durable task on its way to the engine: what `schedule()` returns for a function with `@durable`.

    It has succeeded when the engine has acknowledged; its result is the `Receipt`. The function itself runs elsewhere,
    and is no part of it. Shutdown waits for it as for a task with `shield`.
    """

    __slots__ = ("batch", "call", "engine", "engine_fallback", "span", "transaction")

    batch: SubmitBatch | None
    """What submits the call together with those of other tasks."""
    call: DurableCall
    engine: Engine
    span: Any
    """The span of the submit, if it is traced."""
    transaction: Any
    """What the engine made of `transaction=`."""
    engine_fallback: EngineFallback

    @property
    def stored(self) -> bool:
        """Whether the engine has the call already, because the transaction was committed before the phase began."""
        return getattr(self.transaction, "stored", False)

    def _is_for(self, outcome: Outcome) -> bool:
        if self.transaction is None:
            return super()._is_for(outcome)
        return not self.dropped and (super()._is_for(outcome) or self.stored)  # a row that is committed already stays

    @property
    def dropped(self) -> bool:
        """Whether the task was scheduled in a savepoint that was rolled back."""
        return getattr(self.transaction, "dropped", False)

    def _is_wanted(self) -> bool:
        return not self._state.finished

    def due_call(self) -> DurableCall:
        """Return the call, with its delay counted from now."""
        if self.config.delay and self.call.not_before is None:
            return replace(self.call, not_before=time.time() + self.config.delay)
        return self.call

    async def _perform(self) -> Receipt[Any]:
        try:
            with anyio.fail_after(_TIME_LIMIT):
                if self.batch is None:
                    receipt = await self.engine.submit(self.due_call(), transaction=self.transaction)
                else:
                    receipt = await self.batch.receipt_of(self)
        except (EngineUnavailableError, TimeoutError) as error:
            if self.engine_fallback == "memory" and self.transaction is None:
                return self._run_here(error)
            if isinstance(error, EngineUnavailableError):
                raise
            raise EngineUnavailableError(
                f"{self.engine.name} did not acknowledge {self.name!r} within {_TIME_LIMIT:g} seconds"
            ) from None
        self._log_conflict(receipt)
        return receipt

    def _log_conflict(self, receipt: Receipt[Any]) -> None:
        """Log that the call made no new task, or which tasks it replaces."""
        call, engine = self.call, self.engine.name
        if not receipt.created and receipt.idempotency_key == call.idempotency_key:
            logger.info(
                "%s made no new task: %s has task %s with idempotency key %r already",
                title(self),
                engine,
                receipt.id,
                call.idempotency_key,
                extra=log_fields(self),
            )
        elif not receipt.created:
            logger.info(
                "%s made no new task: task %s of %s has its key %r, and has not ended",
                title(self),
                receipt.id,
                engine,
                call.key,
                extra=log_fields(self),
            )
        for replaced in receipt.replaced:
            logger.info(
                "Task %s of %s is cancelled before it started: %s replaced it, which has the same key %r",
                replaced,
                engine,
                title(self),
                call.key,
                extra=log_fields(self),
            )

    def _run_here(self, error: Exception) -> Receipt[Any]:
        logger.warning(
            "%s runs in this process, and is lost if that ends: %s did not acknowledge (%s)",
            title(self),
            self.engine.name,
            type(error).__name__,
        )
        task = self._run_in_memory(None, lambda _task, _committed: None)
        source = OneTask(self.call.name, lambda: task)
        return Receipt("memory", str(task.id), self.call.idempotency_key, True, source)

    def _run_in_memory(self, commit: SessionCommit | None, admit: Admit) -> Task[Any]:
        """Schedule the function as a task of this process; it starts after *commit*, if *admit* allows it."""
        function: FunctionInfo = self.func  # type: ignore[assignment]  # submit_call() has put it there
        runner: Runner = self._owner  # type: ignore[assignment]  # who else owns a task that was scheduled
        # What is acknowledged runs, whatever becomes of the request.
        completion = MemoryCompletion()
        always = TaskConfig(on_error=_handler(function, completion), when="always")
        config = self.config.merge(function.config).merge(always)
        if self.call.key is not None:  # in memory, a key does not belong to a function
            config = replace(config, key=f"{function.name}:{self.call.key}", on_conflict=self.call.on_conflict)
        arguments = function.codec.decode(self.call.args)  # as a worker gets them
        context = copy_context()
        kind = check_provided_call(function.func, arguments.args, arguments.kwargs, runner.provisions)
        task: Task[Any] = (ProvidedTask if isinstance(kind, ProvidedCall) else Task)(
            runner,
            function.func,
            arguments.args,
            arguments.kwargs,
            config,
            self._phase,
            kind,
            context,
            self._code,
            self._instruction,
            runner.now(),
        )
        call = self.call
        find = completion.find_task = ref(task)  # the task refers to its context

        async def save_progress(progress: Json) -> None:
            if (task := find()) is not None:
                runner.following.report(task, json.dumps(progress, ensure_ascii=False).encode())

        run_context = DurableContext(
            call.name,
            call.idempotency_key,
            1,
            call.headers,
            runner.find_scheduler,
            save_progress,
            lambda: None if (task := find()) is None else task.progress,
            task_id=task.id,
            queue=call.queue,
            completing=Completing(call.name, function.result_codec, completion),
        )
        context.run(set_context, run_context)
        phase: TaskPhase | None = self._phase
        start = runner.ready if phase is None else phase._take

        def decide(task: Task[Any], committed: bool) -> None:
            if task._state is not TaskState.PENDING:
                return
            reason = admit(task, committed)
            if reason is None:
                start(task)
            else:
                runner.ledger.drop(task, reason)

        def take(task: Task[Any]) -> None:
            if commit is None:
                decide(task, True)
            else:
                commit.when_ended(lambda committed: runner.loop.call(decide, task, committed))

        runner.accept(task, take)
        self._let_follow(task)
        return task

    def _let_follow(self, task: Task[Any]) -> None:
        """Let the clients that follow this call follow a task of this process, which runs in its place."""
        headers = self.call.headers
        if FOLLOW in headers:
            runner: Runner = self._owner  # type: ignore[assignment]  # as above
            first = runner.following.first_kept(task)
            # A second client that knows the idempotency key does not get the job of the first one with it.
            owner = headers.get(OWNER) if first is None else first.owner
            runner.following.keep(task, owner, headers[FOLLOW])


class SubmitBatch:
    """Tasks whose calls the engine stores together or not at all; the first of them that starts submits all."""

    __slots__ = ("_done", "_error", "_receipts", "_tasks")

    def __init__(self, tasks: Sequence[DurableTask]) -> None:
        self._tasks = tasks
        self._done: anyio.Event | None = None
        self._receipts: dict[int, Receipt[Any]] = {}
        self._error: Exception | None = None

    async def receipt_of(self, task: DurableTask) -> Receipt[Any]:
        """Return the receipt of one of the tasks."""
        if self._done is None:
            self._done = anyio.Event()
            try:
                await self._submit(task.engine)
            except BaseException as error:
                unknown = EngineUnavailableError(f"{task.engine.name} was not waited for")
                self._error = error if isinstance(error, Exception) else unknown
                raise
            finally:
                self._done.set()
        else:
            await self._done.wait()
        if self._error is not None:
            if isinstance(self._error, EngineError):  # each task has an error, and a traceback, of its own
                raise type(self._error)(*self._error.args) from self._error
            raise self._error
        return self._receipts[task.id]

    async def _submit(self, engine: Engine) -> None:
        assert isinstance(engine, BatchEngine)
        tasks = [task for task in self._tasks if task._is_wanted()]
        receipts = await engine.submit_many([task.due_call() for task in tasks])
        self._receipts = {task.id: receipt for task, receipt in zip(tasks, receipts, strict=True)}


def _handler(function: FunctionInfo, completion: MemoryCompletion) -> Callable[[Task[Any], Exception], Any]:
    """Make the error handler for a durable function that runs in memory after all."""
    policy = function.retry or RetryPolicy(attempts=1)

    async def handle(task: Task[Any], exception: Exception) -> object:
        if completion.committed:
            log_uncounted(task, exception, CompletionOutcome.ENDED)
            return True
        pause = policy.pause(exception, task.attempts)
        if pause is not None:
            return Retry(pause)
        return None if function.config.on_error is None else await ask(function.config.on_error, task, exception)

    return handle


def submit_call(
    function: FunctionInfo,
    target: ScheduleTarget,
    scheduled: ScheduledCall,
    options: CallOptions,
    phase: PhaseInfo | None,
    take: Callable[[DurableTask], object],
) -> DurableTask:
    """Make a task that submits a call, and give it to *take* when it is accepted; raise if it could not be stored."""
    runner, config = target._runner, target.config
    host = host_of(runner)
    engine = engine_in_force(None if host is None else host.engine)
    if engine is None:
        raise EngineNotConfiguredError(
            f"{function!r} was scheduled, and there is no engine that could store it. Give the scheduler one: "
            "TaskScheduler(engine=...), in an application add_tasks(app, engine=...). To run such tasks in memory, "
            "write without_engine='memory'"
        )
    _check_capabilities(function, engine, target, options)
    task = DurableTask(
        runner,
        function,
        scheduled.args,
        scheduled.kwargs,
        # Errors are raised where the acknowledgement is awaited; what belongs to the run has no effect on the submit.
        replace(config, shield=True, **dict.fromkeys((*OF_THE_RUN, *OF_THE_ENGINE))),
        phase,
        False,
        copy_context(),
        scheduled.caller.f_code,
        scheduled.caller.f_lasti,
        runner.clock.now(),
    )
    task.engine = engine
    task.engine_fallback = "error" if host is None else host.engine_fallback
    queue = function.queue if options.queue is None else options.queue
    key = options.idempotency_key or str(uuid4())
    task.span = submit_span(runner.find_scheduler(), task, function.name, engine.name, queue, key)
    task.call = DurableCall(
        name=function.name,
        args=function.codec.encode(scheduled.args, scheduled.kwargs),
        idempotency_key=key,
        dedup=options.idempotency_key is not None,
        retry=function.retry,
        headers=_headers(phase, task.span),
        queue=queue,
        priority=function.priority if options.priority is None else options.priority,
        key=config.key,
        on_conflict=config.on_conflict or "join",
    )
    task.transaction = None
    task.batch = None
    if options.transaction is not None:
        if config.delay:
            task.call = replace(task.call, not_before=time.time() + config.delay)
        task.transaction = engine.join(options.transaction, task.call, task._is_wanted)
    runner.accept(task, take)
    return task


def check_submitted(task: DurableTask) -> None:
    """Raise if the engine did not acknowledge although it should have."""
    if task._state is TaskState.FAILED:
        task.result()
    if task.lost:
        raise EngineUnavailableError(f"{task.name!r} was not submitted to {task.engine.name}: {task.reason}")


def _check_capabilities(function: FunctionInfo, engine: Engine, target: ScheduleTarget, options: CallOptions) -> None:
    config, inherited = target.config, target._inherited
    if config.key is not None:
        KEY.check("key", config.key)
    for option, of_function in OF_THE_RUN.items():
        if getattr(config, option) is not getattr(inherited, option):
            where = f". Give it to the function: @durable({option}=...)" if of_function else ""
            raise EngineCapabilityError(
                f"{function!r} runs in another process, where {option}= of this call has no effect{where}"
            )
    queue = function.queue if options.queue is None else options.queue
    needed = {
        "transaction": options.transaction is not None,
        "dedup": options.idempotency_key is not None,
        "delay": bool(config.delay),
        "queues": queue != DEFAULT_QUEUE,
        "key": config.key is not None,
        "priority": bool(function.priority if options.priority is None else options.priority),
    }
    for capability, wanted in needed.items():
        if wanted and capability not in engine.capabilities:
            option = {"dedup": "idempotency_key", "queues": "queue"}.get(capability, capability)
            raise EngineCapabilityError(
                f"{function!r} was scheduled with {option}=, which {engine.name} cannot do. Leave it out, or give the "
                f"scheduler an engine that has the capability {capability!r}"
            )


def _headers(phase: PhaseInfo | None, span: Any) -> dict[str, str]:
    headers = trace_headers(span)
    of_origin: Mapping[str, str] | None = None if phase is None else getattr(phase.origin, "task_headers", None)
    if of_origin:
        headers.update(of_origin)
    return headers

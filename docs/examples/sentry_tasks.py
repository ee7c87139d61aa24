"""Sentry for tasks: errors with the tags of their task, the pages Queues and Crons, and one trace up to the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sentry_sdk
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Setter, TextMapPropagator, default_setter
from sentry_sdk.crons import capture_checkin
from tasks_core import DurableContext, DurableTask, Task, TaskObserver, durable_context, observe
from tasks_core.types import RunAttempt

MONITORS: dict[str, Any] = {  # for Crons: the schedule of each periodic task, by its name
    "nightly_report": {"schedule": {"type": "crontab", "value": "0 3 * * *"}, "timezone": "Europe/Berlin"},
}


class SentryTasks(TaskObserver):
    """A scope, and for a durable task a transaction, for each attempt."""

    async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
        context = durable_run(task)
        with sentry_sdk.isolation_scope() as scope:
            scope.set_tag("task", task.name)
            if isinstance(task, DurableTask):
                return await publish(task, run)
            with check_in(task):
                if context is None:
                    return await run()
                scope.set_tag("task.key", context.idempotency_key)
                return await process(context, run)


async def publish(task: DurableTask, run: RunAttempt) -> Any:
    """Submit a call as a span that the page Queues counts as published."""
    call = task.call
    with sentry_sdk.start_span(op="queue.publish", name=call.name) as span:
        receipt = await run()
        span.set_data("messaging.system", receipt.engine)
        span.set_data("messaging.destination.name", call.queue)
        span.set_data("messaging.message.id", receipt.id)
        return receipt


async def process(context: DurableContext, run: RunAttempt) -> Any:
    """Run an attempt as a transaction that the page Queues counts as processed."""
    transaction = sentry_sdk.continue_trace(dict(context.headers), op="queue.process", name=context.name)
    with (
        sentry_sdk.start_transaction(transaction),
        sentry_sdk.start_span(op="queue.process", name=context.name) as span,
    ):
        span.set_data("messaging.destination.name", context.queue)
        span.set_data("messaging.message.id", context.receipt_id)
        span.set_data("messaging.message.retry.count", context.attempt - 1)
        return await run()


@contextmanager
def check_in(task: Task[Any]) -> Iterator[None]:
    """Tell the page Crons that a run of a periodic task begins, and how it has ended."""
    monitor = MONITORS.get(task.name)
    if monitor is None:
        yield
        return
    slug = task.name.replace(" ", "-")
    check_in_id = capture_checkin(slug, status="in_progress", monitor_config=monitor)
    try:
        yield
    except Exception:  # not a cancellation: what a deploy puts back into the queue is no failure
        capture_checkin(slug, check_in_id, "error")
        raise
    capture_checkin(slug, check_in_id, "ok")


def durable_run(task: Task[Any]) -> DurableContext | None:
    """Return the context of a durable task that runs; `None` for other tasks, also for those that it has scheduled."""
    try:
        context = durable_context()
    except LookupError:
        return None
    return context if context.name == task.name else None


class SentryHeaders(TextMapPropagator):
    """Stores the trace of Sentry with each durable call, next to what is stored anyway."""

    @property
    def fields(self) -> set[str]:
        return {"sentry-trace", "baggage"}

    def inject(self, carrier: Any, context: Context | None = None, setter: Setter[Any] = default_setter) -> None:
        for name, value in sentry_sdk.get_current_scope().iter_trace_propagation_headers():
            setter.set(carrier, name, value)

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        return Context() if context is None else context  # process() reads the headers itself


def configure_sentry() -> None:
    """Call it once, next to `sentry_sdk.init(...)`: in the web process and in the worker."""
    propagate.set_global_textmap(CompositePropagator([propagate.get_global_textmap(), SentryHeaders()]))
    observe(SentryTasks())

"""All lines of a process as JSON by structlog: those of tasks-core with their fields, and those of the tasks."""

import logging
import sys
from typing import Any

import structlog
from fastapi import FastAPI
from tasks_core import DurableContext, Task, TaskObserver, durable_context, observe
from tasks_core.types import RunAttempt
from tasks_fastapi import Tasks, add_tasks

SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),  # task_name, task_key, task_receipt_id, task_queue, task_attempt ...
    structlog.processors.TimeStamper(fmt="iso"),
    structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False)  # arguments of tasks may be secrets
    ),
]


def configure_logging() -> None:
    """Call it once, before the application starts: also in the worker, which imports the same module."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    structlog.configure(
        processors=[*SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def durable_run(task: Task[Any]) -> DurableContext | None:
    """Return the context of a durable task that runs; `None` for other tasks, also for those that it has scheduled."""
    try:
        context = durable_context()
    except LookupError:
        return None
    return context if context.name == task.name else None


class BindTask(TaskObserver):
    """Gives the lines that a task logs the fields that the lines about it have."""

    async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
        fields: dict[str, Any] = {"task_name": task.name, "task_attempt": task.attempts}
        context = durable_run(task)
        if context is not None:
            fields |= {
                "task_key": context.idempotency_key,
                "task_queue": context.queue,
                "task_receipt_id": context.receipt_id,
            }
        with structlog.contextvars.bound_contextvars(**fields):
            return await run()


configure_logging()
observe(BindTask())

logger = structlog.get_logger("shop")
app = FastAPI()
add_tasks(app)


async def send_receipt(order_id: int) -> None:
    logger.info("receipt is being sent", order_id=order_id)
    raise ConnectionError("mail server is down")


@app.post("/orders/{order_id}")
async def place_order(order_id: int, tasks: Tasks) -> None:
    tasks.after_response.schedule(send_receipt, order_id)

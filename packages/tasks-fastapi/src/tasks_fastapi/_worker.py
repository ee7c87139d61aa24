"""The command: `python -m tasks_fastapi worker app.main:app --queue payments=4 --queue default=32`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.types import Message
from tasks_core.frameworks import (
    TargetError,
    Work,
    add_common_arguments,
    add_operator_commands,
    load_target,
    probes,
    queues_of,
    run_operator,
    run_worker,
    when_engine_is_there,
)

from ._schedulers import AppSchedulers, schedulers_of

if TYPE_CHECKING:
    from anyio import Event


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit status of the process."""
    options = _parser().parse_args(arguments)
    if "operate" in options:
        return run_operator(options, lambda: _load(options.app)[1].engine)

    def prepare() -> Work:
        app, schedulers = _load(options.app)
        schedulers.set_worker_slots(options.concurrency, queues_of(options))
        return partial(_work, app, schedulers, options)

    return run_worker(prepare, options.import_modules, options.log_level)


def _load(target: str) -> tuple[Starlette, AppSchedulers]:
    app = load_target(target)
    if not isinstance(app, Starlette):
        raise TargetError(f"{target!r} is a {type(app).__qualname__}, not an application of FastAPI")
    schedulers = schedulers_of(app)
    if schedulers is None or schedulers.engine is None:
        raise TargetError(f"{target!r} has no engine for durable tasks. Write: add_tasks(app, engine=...)")
    return app, schedulers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tasks_fastapi", description="Durable tasks of tasks-fastapi.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    worker = commands.add_parser(
        "worker",
        help="run durable tasks",
        description="Run the durable tasks of an application until SIGTERM or SIGINT: inside of its lifespan, with its "
        "engine, its dependencies and the options of add_tasks(), and without serving requests.",
    )
    worker.add_argument("app", metavar="MODULE:NAME", help="where the application is: app.main:app")
    add_common_arguments(worker)
    add_operator_commands(commands, "app", "where the application is: app.main:app")
    return parser


async def _work(app: Starlette, schedulers: AppSchedulers, options: argparse.Namespace, stop: Event) -> None:
    """Run the lifespan of the application, in which its durable worker runs, until *stop* is set."""
    errors: list[Exception | None] = []

    def worker_ended(error: Exception | None) -> None:
        errors.append(error)
        stop.set()  # a process whose worker has failed must not stay there idle

    schedulers.worker_ended = worker_ended
    assert schedulers.engine is not None
    async with probes(schedulers.engine, stop, options):
        await when_engine_is_there(partial(_run_lifespan, app, stop), stop)
    for error in errors:
        if error is not None:
            raise error


async def _run_lifespan(app: Starlette, stop: Event) -> None:
    messages: list[Message] = [{"type": "lifespan.startup"}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await stop.wait()
        return {"type": "lifespan.shutdown"}

    async def send(_message: Message) -> None:
        """Ignore the message: what startup raises leaves the application as an exception."""

    state: dict[str, Any] = {}
    await app({"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}, receive, send)

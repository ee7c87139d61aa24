"""The command: `python -m tasks_core worker app.main:engine --concurrency 32`."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import anyio

from ._engine import Engine
from ._worker import Worker
from .exceptions import EngineError

_logger = logging.getLogger("tasks_core")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit status of the process."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.path.insert(0, str(Path.cwd()))
    try:
        engine = _load(options.engine)
        for module in options.import_modules:
            importlib.import_module(module)
        anyio.run(_work, engine, options)
    except (EngineError, _TargetError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201  a command that cannot start says why
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tasks_core", description="Durable tasks of tasks-core.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    worker = commands.add_parser(
        "worker",
        help="run durable tasks",
        description="Run the durable tasks of an engine until SIGTERM or SIGINT. Functions are known when the modules "
        "that define them have been imported: by the module of the engine, or by --import.",
    )
    worker.add_argument("engine", metavar="MODULE:NAME", help="where the engine is: app.main:engine")
    worker.add_argument("--concurrency", type=int, default=32, metavar="N", help="how many tasks at once (32)")
    worker.add_argument(
        "--grace-period", type=float, default=5.0, metavar="SECONDS", help="time for all tasks when stopped (5)"
    )
    worker.add_argument(
        "--shield-timeout", type=float, metavar="SECONDS", help="time for shielded tasks after that (no limit)"
    )
    worker.add_argument(
        "--import", action="append", default=[], dest="import_modules", metavar="MODULE", help="import this as well"
    )
    worker.add_argument("--log-level", default="info", metavar="LEVEL", help="least level of log lines (info)")
    return parser


class _TargetError(Exception):
    """The engine is not where the command line says."""


def _load(target: str) -> Engine:
    module_name, _, attribute = target.partition(":")
    if not attribute:
        raise _TargetError(f"{target!r} names no engine. Write module:name, as in app.main:engine")
    module = importlib.import_module(module_name)
    try:
        engine = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise _TargetError(f"the module {module_name!r} has no {attribute!r}") from None
    if not isinstance(engine, Engine):
        raise _TargetError(f"{target!r} is a {type(engine).__qualname__}, not an engine such as ProcrastinateEngine")
    return engine


async def _work(engine: Engine, options: argparse.Namespace) -> None:
    worker = Worker(
        engine,
        concurrency=options.concurrency,
        grace_period=options.grace_period,
        shield_timeout=options.shield_timeout,
    )
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_wait_for_signals, stop, group.cancel_scope)
        async with engine:
            await worker.run(stop)
        group.cancel_scope.cancel()


async def _wait_for_signals(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if stop.is_set():
                scope.cancel()  # the second time: the grace period is over
            _logger.info("Stopping: no more tasks are taken")
            stop.set()


if __name__ == "__main__":
    sys.exit(main())

"""The command: `python -m tasks_core worker app.main:engine --queue payments=4`, and those for operators."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from functools import partial, reduce
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import anyio
import anyio.abc

from tasks_core._options import ShutdownOptions, options_of, text_of
from tasks_core.exceptions import EngineUnavailableError, InvalidConfigError, TasksError

from .engine import Engine
from .operate import OperableEngine
from .operator_command import UNAVAILABLE, WRONG, add_operator_commands
from .probes import add_probe_arguments, probes
from .worker import Worker

Work: TypeAlias = Callable[[anyio.Event], Awaitable[None]]
"""The coroutine function of a worker: it returns when the event is set and what runs has ended."""

T = TypeVar("T")

_logger = logging.getLogger("tasks_core")

# Seconds between two attempts to reach an engine that is away.
_ENTER_AGAIN = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit status of the process."""
    options = _parser().parse_args(arguments)
    if "operate" in options:
        return run_operator(options, partial(_load_engine, options.engine))

    def prepare() -> Work:
        engine = _load_engine(options.engine)
        lifespan = nullcontext if options.lifespan is None else load_target(options.lifespan)
        return partial(_work, engine, lifespan, options)

    return run_worker(prepare, options.import_modules, options.log_level)


def run_worker(prepare: Callable[[], Work], import_modules: Sequence[str], log_level: str) -> int:
    """
    Run a worker until SIGTERM or SIGINT, and return the exit status of the process.

    Args:
        prepare: Loads what the worker needs and returns its coroutine function, which is called with an event that is
            set when the worker must stop. Modules are found in the current directory as well.

        import_modules: Names of modules that are imported before it runs.

        log_level: The lowest level of log lines.
    """
    return _run(prepare, _run_until_signal, import_modules, log_level)


def run_operator(options: argparse.Namespace, load_engine: Callable[[], object]) -> int:
    """
    Run a command of `add_operator_commands()`, and return the exit status of the process.

    Args:
        options: The parsed arguments.

        load_engine: Returns the engine, which is entered for the command. Modules are found in the current directory.
    """

    async def operate(engine: object) -> int:
        if not isinstance(engine, Engine) or not isinstance(engine, OperableEngine):
            raise TargetError(f"{type(engine).__qualname__} has not the methods for operators (OperableEngine)")
        async with engine:
            status: int = await options.operate(engine, options)
        return status

    return _run(load_engine, operate, options.import_modules, options.log_level)


def _run(
    prepare: Callable[[], T], run: Callable[[T], Awaitable[int]], import_modules: Sequence[str], log_level: str
) -> int:
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.path.insert(0, str(Path.cwd()))
    try:
        prepared = prepare()
        for module in import_modules:
            importlib.import_module(module)
        return anyio.run(run, prepared)
    except (TasksError, TargetError, ExceptionGroup) as caught:
        error = _only_error(caught)
        if not isinstance(error, (TasksError, TargetError)):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201  a command that cannot start says why
        return UNAVAILABLE if isinstance(error, EngineUnavailableError) else WRONG


def _only_error(error: Exception) -> Exception:
    """Take an error out of the groups that task groups put it in."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


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
    for name, option in options_of(ShutdownOptions).items():
        worker.add_argument(
            f"--{name.replace('_', '-')}",
            type=float,
            default=option.default,
            metavar="SECONDS",
            help=text_of(ShutdownOptions, name).replace("`", ""),
        )
    worker.add_argument(
        "--lifespan",
        metavar="MODULE:NAME",
        help="an async context manager function without parameters, entered around all tasks: it opens what they use",
    )
    add_common_arguments(worker)
    add_operator_commands(commands, "engine", "where the engine is: app.main:engine")
    return parser


def add_common_arguments(worker: argparse.ArgumentParser) -> None:
    """Add the arguments that every worker command has; `queues_of()` reads those about queues."""
    worker.add_argument(
        "--concurrency", type=int, metavar="N", help="how many tasks at once, of all queues together (32)"
    )
    worker.add_argument(
        "--queue",
        action="append",
        type=_queue,
        dest="queues",
        metavar="NAME=N",
        help="serve this queue, N tasks at once, and no queues that are not named; may be repeated",
    )
    worker.add_argument(
        "--import", action="append", default=[], dest="import_modules", metavar="MODULE", help="import this as well"
    )
    worker.add_argument("--log-level", default="info", metavar="LEVEL", help="least level of log lines (info)")
    add_probe_arguments(worker)


def _queue(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not name or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=N, as in --queue payments=4")
    return name, int(count)


def queues_of(options: argparse.Namespace) -> dict[str, int] | None:
    """
    Return the slots of each queue that `--queue` has named, if it was given.

    Raises:
        InvalidConfigError: a queue was named twice.
    """
    if options.queues is None:
        return None
    queues = dict(options.queues)
    if len(queues) < len(options.queues):
        raise InvalidConfigError("--queue was given twice for one queue. Write each queue once, with all of its slots")
    return queues


class TargetError(Exception):
    """What a command line names is not there, or is something else."""


def load_target(target: str) -> Any:
    """
    Return what `module:name` names.

    Raises:
        TargetError: the module does not have it.
    """
    module_name, _, attribute = target.partition(":")
    if not attribute:
        raise TargetError(f"{target!r} names a module only. Write module:name, as in app.main:engine")
    module = importlib.import_module(module_name)
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise TargetError(f"the module {module_name!r} has no {attribute!r}") from None


def _load_engine(target: str) -> Engine:
    engine = load_target(target)
    if not isinstance(engine, Engine):
        raise TargetError(f"{target!r} is a {type(engine).__qualname__}, not an engine such as ProcrastinateEngine")
    return engine


async def _run_until_signal(work: Work) -> int:
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        await group.start(_wait_for_signals, stop, group.cancel_scope)
        await work(stop)
        group.cancel_scope.cancel()
    return 0


async def _work(
    engine: Engine,
    lifespan: Callable[[], AbstractAsyncContextManager[object]],
    options: argparse.Namespace,
    stop: anyio.Event,
) -> None:
    """Work until *stop* is set."""
    worker = Worker(
        engine,
        concurrency=options.concurrency,
        queues=queues_of(options),
        **{name: getattr(options, name) for name in options_of(ShutdownOptions)},
    )
    async with probes(engine, stop, options), AsyncExitStack() as stack:
        if await when_engine_is_there(lambda: stack.enter_async_context(engine), stop):
            await stack.enter_async_context(lifespan())
            await worker.run(stop)


async def when_engine_is_there(enter: Callable[[], Awaitable[object]], stop: anyio.Event) -> bool:
    """Await `enter()` again until the engine is there; return false if *stop* was set before."""
    while not stop.is_set():
        try:
            await enter()
        except EngineUnavailableError as error:
            _logger.warning("The worker waits for its engine: %s", error)
            with anyio.move_on_after(_ENTER_AGAIN):
                await stop.wait()
        else:
            return True
    return False


async def _wait_for_signals(
    stop: anyio.Event, scope: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[None]
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            if stop.is_set():
                scope.cancel()  # the second time: the grace period is over
            _logger.info("Stopping: no more tasks are taken")
            stop.set()

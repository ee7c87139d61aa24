"""The commands for operators: `python -m tasks_core status app.main:engine`, and what acts on stored tasks."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias

from tasks_core._support.rules import is_finite_seconds

from .calls import DurableState
from .console import Progress, details, duration, statistics_table, tasks_table, write, write_json
from .operate import ENDED, OperableEngine, StoredTask, TaskFilter

DONE: Final = 0
"""Exit status: the command did what it was asked to do."""
NOTHING: Final = 1
"""Exit status: there is no such task, or something is wrong with the engine or its queues."""
WRONG: Final = 2
"""Exit status: the command line, or what it names, is wrong; nothing was done."""
UNAVAILABLE: Final = 3
"""Exit status: the engine does not answer."""
NOT_CONFIRMED: Final = 4
"""Exit status: the operator did not confirm; nothing was done."""

EXIT_STATUS: Final = """
exit status: 0 done; 1 no such task, or unhealthy; 2 wrong command line; 3 the engine does not answer; 4 not confirmed
"""

_STATES = [state.value for state in DurableState if state is not DurableState.UNKNOWN]
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Commands(Protocol):
    """What `ArgumentParser.add_subparsers()` returns."""

    def add_parser(self, name: str, **kwargs: Any) -> argparse.ArgumentParser:
        """Add a command."""
        ...


Operate: TypeAlias = Callable[[OperableEngine, argparse.Namespace], Awaitable[int]]
"""One command: it is called with the engine, which was entered, and returns the exit status."""


def add_operator_commands(commands: Commands, target: str, target_help: str) -> None:
    """
    Add all commands for operators.

    Args:
        commands: What `add_subparsers()` returned.

        target: The name of the first argument, `"engine"` or `"app"`; it is the name in the namespace as well.

        target_help: What that argument is.
    """

    def add(name: str, operate: Operate, text: str, description: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=description or f"{text[0].upper()}{text[1:]}.", epilog=EXIT_STATUS
        )
        command.add_argument(target, metavar="MODULE:NAME", help=target_help)
        command.set_defaults(operate=operate)
        return command

    _add_output(add("status", _status, "print the numbers of each queue"))
    _add_output(add("health", _health, "say what is wrong with the engine and its queues"))

    listing = add("list", _list, "list stored tasks, those first that were submitted last")
    _add_filter(listing)
    listing.add_argument("--limit", type=_count, default=50, metavar="N", help="how many tasks at most (50)")
    listing.add_argument("--after", metavar="ID", help="go on after this task")
    _add_output(listing)

    show = add("show", _show, "print all that is known of a task")
    show.add_argument("id", metavar="ID")
    show.add_argument("--arguments", action="store_true", help="with its arguments, which may be secrets")
    _add_output(show)

    for name, acts, text in (
        ("retry", "failed", "have tasks that failed or were cancelled begin again, and delayed ones be due"),
        ("cancel", "pending and running", "cancel tasks that wait or run"),
        ("discard", "failed", "delete tasks that failed or were cancelled, so that their keys are free"),
    ):
        verb = add(name, _verb, text, f"{text[0].upper()}{text[1:]}: those with the IDs, or all of a filter.")
        verb.set_defaults(verb=name)
        verb.add_argument("ids", metavar="ID", nargs="*")
        _add_filter(verb, f"; without it: {acts}")
        verb.add_argument("--all", action="store_true", help=f"all that are {acts}, in place of a filter")
        _add_confirmation(verb)
        _add_output(verb)

    for name, text in (
        ("pause", "have workers take no more tasks of a queue or a function"),
        ("resume", "end a pause"),
    ):
        pausing = add(name, _pause, text)
        pausing.set_defaults(verb=name)
        pausing.add_argument("--queue", metavar="QUEUE", help="the queue; without it: all of the engine")
        pausing.add_argument("--name", metavar="NAME", help="the function; without it: all")
        _add_output(pausing)

    purge = add("purge", _purge, "delete tasks that have ended, now")
    purge.add_argument(
        "--older-than",
        type=_seconds,
        metavar="TIME",
        help="ended longer ago than this, as in 90s, 15m, 2h, 7d; without it: what the engine keeps for each state",
    )
    purge.add_argument("--state", choices=[state.value for state in ENDED], help="of this state only")
    purge.add_argument("--queue", metavar="QUEUE", help="of this queue only")
    purge.add_argument("--yes", action="store_true", help="do not ask")
    _add_output(purge)


def _add_filter(command: argparse.ArgumentParser, without_state: str = "") -> None:
    group = command.add_argument_group("filter")
    group.add_argument("--state", choices=_STATES, help=f"of this state{without_state}")
    group.add_argument("--name", metavar="NAME", help="of the function with this name")
    group.add_argument("--queue", metavar="QUEUE", help="of this queue")
    group.add_argument("--error", metavar="TEXT", help="whose last error contains this text")
    group.add_argument(
        "--older-than", type=_seconds, metavar="TIME", help="submitted longer ago than this, as in 90s, 15m, 2h, 7d"
    )


def _add_confirmation(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="count the tasks, and do nothing")
    command.add_argument("--yes", action="store_true", help="do not ask")


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--import", action="append", default=[], dest="import_modules", metavar="MODULE", help="import this as well"
    )
    command.add_argument("--log-level", default="info", metavar="LEVEL", help="least level of log lines (info)")


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if match is None or not is_finite_seconds(float(match[1])):
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; write 90s, 15m, 2h or 7d")
    return float(match[1]) * _UNITS[match[2]]


# ---- looking ----


async def _status(engine: OperableEngine, options: argparse.Namespace) -> int:
    statistics = await engine.statistics()
    if options.json:
        write_json(list(statistics))
    else:
        write(statistics_table(statistics))
    return DONE


async def _health(engine: OperableEngine, options: argparse.Namespace) -> int:
    health = await engine.health()
    if options.json:
        write_json({"healthy": health.healthy, "reachable": health.reachable, "problems": list(health.problems)})
    else:
        write("\n".join(health.problems) or "healthy")
    if not health.reachable:
        return UNAVAILABLE
    return DONE if health.healthy else NOTHING


async def _list(engine: OperableEngine, options: argparse.Namespace) -> int:
    which, after = _filter_of(options), options.after
    tasks: list[StoredTask] = []
    while True:
        page = await engine.find(after=after, limit=min(1000, options.limit - len(tasks)), **which)
        tasks += page.tasks
        after = page.after
        if after is None or len(tasks) >= options.limit:
            break
    if options.json:
        write_json({"tasks": tasks, "after": after})
    elif tasks:
        write(tasks_table(tasks))
        if after is not None:
            write(f"There are more: --after {after}")
    else:
        write("No such task")
    return DONE if tasks else NOTHING


async def _show(engine: OperableEngine, options: argparse.Namespace) -> int:
    shown = await engine.show(options.id, arguments=options.arguments)
    if options.json:
        write_json(shown)
    else:
        write("No such task" if shown is None else details(shown))
    return NOTHING if shown is None else DONE


def _filter_of(options: argparse.Namespace) -> TaskFilter:
    which: TaskFilter = {}
    if options.state is not None:
        which["state"] = DurableState(options.state)
    if options.name is not None:
        which["name"] = options.name
    if options.queue is not None:
        which["queue"] = options.queue
    if options.error is not None:
        which["error"] = options.error
    if options.older_than is not None:
        which["older_than"] = options.older_than
    return which


# ---- acting ----

_DONE_TO = {"retry": "back in the queue", "cancel": "cancelled", "discard": "deleted"}


async def _verb(engine: OperableEngine, options: argparse.Namespace) -> int:
    which = _filter_of(options)
    given = [bool(options.ids), bool(which), options.all]
    if given.count(True) != 1:
        _complain(f"{options.verb} takes IDs, or a filter such as --name, or --all: one of them")
        return WRONG
    verb = {"retry": engine.retry, "cancel": engine.cancel, "discard": engine.discard}[options.verb]
    if options.ids:
        count = sum([await verb(one, dry_run=options.dry_run) for one in options.ids])
        return _say_count(options, count)
    if options.all:
        which = {"older_than": 0.0}
    counting = Progress("counting")
    count = await verb(dry_run=True, on_progress=counting, **which)
    counting.end()
    if options.dry_run or not count:
        return _say_count(options, count)
    if not _confirmed(options, f"{options.verb.capitalize()} {count:,} tasks?"):
        return NOT_CONFIRMED
    acting = Progress(_DONE_TO[options.verb])
    count = await verb(on_progress=acting, **which)
    acting.end()
    return _say_count(options, count)


def _say_count(options: argparse.Namespace, count: int) -> int:
    if options.json:
        write_json({"verb": options.verb, "dry_run": options.dry_run, "count": count})
    elif options.dry_run:
        write(f"{count:,} tasks would be {_DONE_TO[options.verb]}")
    else:
        write(f"{count:,} tasks are {_DONE_TO[options.verb]}")
    return DONE if count else NOTHING


async def _pause(engine: OperableEngine, options: argparse.Namespace) -> int:
    verb = {"pause": engine.pause, "resume": engine.resume}[options.verb]
    await verb(queue=options.queue, name=options.name)
    pauses = await engine.pauses()
    if options.json:
        write_json(list(pauses))
    elif pauses:
        write(
            "\n".join(f"paused: queue {one.queue}, {one.name or 'all functions'}, {one.since:%F %T}" for one in pauses)
        )
    else:
        write("Nothing is paused")
    return DONE


async def _purge(engine: OperableEngine, options: argparse.Namespace) -> int:
    state = None if options.state is None else DurableState(options.state)
    age = "longer ago than they are kept" if options.older_than is None else f"{duration(options.older_than)} ago"
    if not _confirmed(options, f"Delete {options.state or 'all'} tasks that ended {age}?"):
        return NOT_CONFIRMED
    progress = Progress("deleted")
    count = await engine.purge(older_than=options.older_than, state=state, queue=options.queue, on_progress=progress)
    progress.end()
    if options.json:
        write_json({"count": count})
    else:
        write(f"{count:,} tasks are deleted")
    return DONE


def _confirmed(options: argparse.Namespace, question: str) -> bool:
    """Ask at the terminal; without a terminal, `--yes` is needed."""
    if options.yes:
        return True
    if not sys.stdin.isatty():
        _complain(f"{question} Nothing was done: there is no terminal to ask at. Add --yes")
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)  # noqa: T201  for the terminal
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _complain(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201  what went wrong is not part of the output

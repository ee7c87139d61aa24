"""
What the integration of a framework needs of tasks-core, and applications do not.

A framework that serves requests, messages or jobs makes each of them the current `Origin` while it runs, so that
`current_scheduler()` finds its scheduler, and so that it may schedule tasks while the scheduler drains. It announces
what happens to an origin, which observers can follow. A scheduler that lives as long as one of them is marked as brief,
so that the log does not have a line for each of its ends. A `Provider` supplies arguments that a framework knows. What
serves the followers of durable tasks finds and follows the calls by `find_followed()` and `follow_stored()`.
`Telemetry` observes the tasks of a scheduler for OpenTelemetry. A command that runs its durable tasks has the
arguments, signals and exit status of `python -m tasks_core worker`, and those for operators are the same in each
framework.
"""

from tasks_core._current import CURRENT, AfterShutdown, Origin, current
from tasks_core._durable.command import (
    TargetError,
    Work,
    add_common_arguments,
    load_target,
    queues_of,
    run_operator,
    run_worker,
    when_engine_is_there,
)
from tasks_core._durable.follow import StoredFollower, find_followed, follow_stored, make_followed, task_state
from tasks_core._durable.operator_command import Commands, add_operator_commands
from tasks_core._durable.probes import WorkerHealth, probes, worker_problems
from tasks_core._durable.telemetry import Telemetry
from tasks_core._observer import announce
from tasks_core._scheduler import mark_as_brief
from tasks_core._support.provider import Provider

__all__ = (
    "CURRENT",
    "AfterShutdown",
    "Commands",
    "Origin",
    "Provider",
    "StoredFollower",
    "TargetError",
    "Telemetry",
    "Work",
    "WorkerHealth",
    "add_common_arguments",
    "add_operator_commands",
    "announce",
    "current",
    "find_followed",
    "follow_stored",
    "load_target",
    "make_followed",
    "mark_as_brief",
    "probes",
    "queues_of",
    "run_operator",
    "run_worker",
    "task_state",
    "when_engine_is_there",
    "worker_problems",
)

"""
What the integration of a framework needs of tasks-core, and applications do not.

A framework that serves requests, messages or jobs makes each of them the current `Origin` while it runs, so that
`current_scheduler()` finds its scheduler, and so that it may schedule tasks while the scheduler drains. A command that
runs its durable tasks has the arguments, signals and exit status of `python -m tasks_core worker`.
"""

from tasks_core._current import CURRENT, Origin, current
from tasks_core._durable.command import (
    TargetError,
    Work,
    add_common_arguments,
    load_target,
    run_worker,
    when_engine_is_there,
)

__all__ = (
    "CURRENT",
    "Origin",
    "TargetError",
    "Work",
    "add_common_arguments",
    "current",
    "load_target",
    "run_worker",
    "when_engine_is_there",
)

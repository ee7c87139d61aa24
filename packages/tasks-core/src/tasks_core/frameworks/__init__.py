"""
What the integration of a framework needs of tasks-core, and applications do not.

A framework that serves requests, messages or jobs makes each of them the current `Origin` while it runs, so that
`current_scheduler()` finds its scheduler, and so that it may schedule tasks while the scheduler drains.
"""

from tasks_core._current import CURRENT, Origin, current

__all__ = ("CURRENT", "Origin", "current")

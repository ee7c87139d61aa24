"""A scheduler for a test that calls code of an application without the application."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest
from anyio.from_thread import start_blocking_portal
from tasks_core import TaskScheduler
from tasks_core.frameworks import CURRENT


def scheduler_of(item: pytest.Item) -> Iterator[TaskScheduler]:
    """Give a test a scheduler: on its own event loop if it is a coroutine function, otherwise in another thread."""
    func = getattr(item, "obj", None)
    return _around_coroutine(item, func) if inspect.iscoroutinefunction(func) else _in_thread()


def _around_coroutine(item: Any, func: Any) -> Iterator[TaskScheduler]:
    # Around the function, and not in an async fixture: the fixture may be on another event loop than the test, which
    # the plugin that runs the test decides.
    scheduler = TaskScheduler()

    @functools.wraps(func)
    async def run(*args: Any, **kwargs: Any) -> Any:
        async with scheduler:
            return await func(*args, **kwargs)

    item.obj = run
    try:
        yield scheduler
    finally:
        item.obj = func  # another plugin may run the same item again


def _in_thread() -> Iterator[TaskScheduler]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(TaskScheduler()) as scheduler:
        token = CURRENT.set(ref(scheduler))
        try:
            yield scheduler
        finally:
            CURRENT.reset(token)

"""A helper that is marked as transparent schedules for its caller: the place of the task is the caller's line."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest
import tasks_core._schedule
from greenlet import greenlet  # type: ignore[import-untyped]  # it has no types
from tasks_core import Task, TaskScheduler, transparent
from tasks_core.exceptions import InvalidConfigError, InvalidTaskError

pytestmark = pytest.mark.anyio


async def noop() -> None: ...


def here() -> str:
    """Return the line that calls this, as `task.where` shows it."""
    frame = sys._getframe(1)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def marked(scheduler: TaskScheduler) -> Callable[[], Task[Any]]:
    @transparent
    def helper() -> Task[Any]:
        return scheduler.task(name="a").schedule(noop)

    return helper


async def test_the_place_is_that_of_the_caller_of_a_helper() -> None:
    async with TaskScheduler() as scheduler:
        helper = marked(scheduler)
        task, place = helper(), here()
    assert task.where == place


async def test_the_place_is_that_of_a_helper_that_is_not_marked() -> None:
    async with TaskScheduler() as scheduler:
        helper = marked(scheduler)

        def outer() -> tuple[Task[Any], str]:
            return helper(), here()

        task, place = outer()
    assert task.where == place


async def test_helpers_may_call_each_other() -> None:
    async with TaskScheduler() as scheduler:
        helper = marked(scheduler)

        @transparent
        def outer() -> Task[Any]:
            return helper()

        task, place = outer(), here()
    assert task.where == place


async def test_an_async_helper_and_a_method() -> None:
    class Service:
        def __init__(self, scheduler: TaskScheduler) -> None:
            self._scheduler = scheduler

        @transparent
        async def background(self) -> Task[Any]:
            return self._scheduler.schedule(noop)

        @staticmethod
        @transparent
        def static(scheduler: TaskScheduler) -> Task[Any]:
            return scheduler.schedule(noop)

    async with TaskScheduler() as scheduler:
        service = Service(scheduler)
        task, place = await service.background(), here()
        other, other_place = service.static(scheduler), here()
    assert task.where == place
    assert other.where == other_place


@pytest.mark.parametrize("func", [len, staticmethod(noop), TaskScheduler])
def test_what_is_no_function_is_refused(func: Any) -> None:
    with pytest.raises(InvalidTaskError, match="It takes a function, and stands below other decorators"):
        transparent(func)


async def test_the_place_is_that_of_a_helper_that_has_no_caller() -> None:
    """As in `run_sync()` of SQLAlchemy, which calls its function in a greenlet."""
    async with TaskScheduler() as scheduler:

        @transparent
        def helper() -> tuple[Task[Any], str]:
            return scheduler.schedule(noop), here()

        task, place = greenlet(helper).switch()
    assert task.where == place


def module_with_helpers() -> types.ModuleType:
    module = types.ModuleType("app_background_helpers")
    source = """
        def helper(scheduler, func):
            return [scheduler.schedule(func) for _ in range(1)][0]

        def outer(scheduler, func):
            return helper(scheduler, func)

        def keyed(scheduler, func):
            return scheduler.task(key="k").schedule(func)
    """
    exec(dedent(source), module.__dict__)
    return module


@pytest.mark.parametrize("name", ["helper", "outer", "keyed"])
async def test_the_functions_of_a_module_that_is_named_are_helpers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_core._schedule, "_helpers", {})
    monkeypatch.setattr(tasks_core._schedule, "_helper_modules", set())
    helper = getattr(module_with_helpers(), name)
    async with TaskScheduler() as scheduler:
        assert not helper(scheduler, noop).where.startswith(__file__)
    async with TaskScheduler(transparent_modules=("app_background_helpers",)) as scheduler:
        task, place = helper(scheduler, noop), here()
        assert task.where == place


@pytest.mark.parametrize("modules", ["app.background", (), None, ("",), (sys,)])
def test_modules_are_named_in_a_tuple(modules: Any) -> None:
    if modules == ():
        TaskScheduler(transparent_modules=modules)
    else:
        with pytest.raises(
            InvalidConfigError, match=r"must be a tuple of names of modules, as in transparent_modules="
        ):
            TaskScheduler(transparent_modules=modules)

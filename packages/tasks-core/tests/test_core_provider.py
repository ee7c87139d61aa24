"""A provider supplies arguments that the caller of `schedule()` does not pass; the core does not know what they are."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar

import anyio
import pytest
from tasks_core import Provided, Task, TaskObserver, TaskScheduler, TaskState, observe
from tasks_core.exceptions import InvalidConfigError, InvalidTaskError
from tasks_core.frameworks import Provider
from tasks_core.types import RunAttempt

pytestmark = pytest.mark.anyio

T = TypeVar("T")


class Resources:
    """Supplies the parameters named `session`; counts what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.log: list[str] = []
        self.refuses = False

    def parameters(self, func: Callable[..., Any], /) -> Collection[str]:
        self.asked.append(getattr(func, "__name__", type(func).__name__))
        return [name for name in inspect.signature(func).parameters if name == "session"]

    def check(self, func: Callable[..., Any], names: frozenset[str], /) -> None:
        if self.refuses:
            raise InvalidTaskError("there is no session")

    async def call(
        self, func: Callable[..., Any], names: frozenset[str], run: Callable[[Mapping[str, Any]], Awaitable[T]], /
    ) -> T:
        self.log.append("open")
        try:
            return await run(dict.fromkeys(names, "a session"))
        except BaseException as error:
            self.log.append(f"failed with {type(error).__name__}")
            raise
        finally:
            self.log.append("close")


async def use(number: int, session: str = Provided) -> tuple[int, str]:
    return number, session


def use_plainly(number: int, session: str = Provided, *, more: int = 3) -> tuple[int, str, int]:
    return number, session, more


async def plain(number: int = 3) -> int:
    return number


async def test_what_is_missing_is_supplied_and_released() -> None:
    resources = Resources()
    assert isinstance(resources, Provider)
    async with TaskScheduler(provider=resources) as scheduler:
        assert scheduler.provider is resources
        task = scheduler.schedule(use, 5)
        assert task.args == (5,)
        assert await task == (5, "a session")
        assert await scheduler.schedule(use_plainly, 5) == (5, "a session", 3)
        assert await scheduler.schedule(use_plainly, number=5, more=4) == (5, "a session", 4)
        assert await scheduler.schedule(partial(use, 5)) == (5, "a session")
        assert resources.log == ["open", "close"] * 4
        assert await scheduler.schedule(use, 5, "mine") == (5, "mine")
        assert await scheduler.schedule(partial(use, session="mine"), 5) == (5, "mine")
        assert len(resources.log) == 8


async def test_a_complete_call_does_not_ask_and_each_function_is_asked_about_once() -> None:
    resources = Resources()

    async def complete(number: int) -> int:
        return number

    async with TaskScheduler(provider=resources) as scheduler:
        for _ in range(3):
            await scheduler.schedule(complete, 5)
        assert resources.asked == []
        for _ in range(3):
            await scheduler.schedule(plain)
            await scheduler.schedule(use, 5)
        assert resources.asked == ["plain", "use"]


async def test_the_exception_reaches_the_provider() -> None:
    resources = Resources()

    async def fails(session: str = Provided) -> None:
        raise ValueError(session)

    async with TaskScheduler(provider=resources) as scheduler:
        task = scheduler.schedule(fails)
        await task.wait()
        assert isinstance(task.exception, ValueError)
        stuck = scheduler.schedule(hang)
        await stuck.started.wait()
        await anyio.wait_all_tasks_blocked()
        stuck.cancel()
        await stuck.wait()
        assert stuck.state is TaskState.CANCELLED
    assert resources.log[:3] == ["open", "failed with ValueError", "close"]
    assert resources.log[3] == "open"
    assert resources.log[4].startswith("failed with Cancelled")
    assert resources.log[5] == "close"


async def hang(session: str = Provided) -> None:
    await anyio.sleep_forever()


async def test_what_an_observer_puts_in_place_gets_what_it_needs() -> None:
    async def with_session(number: int, session: str = Provided) -> str:
        return f"replaced, {session}"

    async def without(number: int) -> str:
        return "replaced"

    class Replace(TaskObserver):
        def __init__(self, replacement: Callable[..., Any]) -> None:
            self.replacement = replacement

        async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
            return await run(self.replacement)

    resources = Resources()
    async with TaskScheduler(provider=resources) as scheduler:
        for replacement, result, opened in ((with_session, "replaced, a session", 1), (without, "replaced", 1)):
            with observe(Replace(replacement)):
                task: Task[Any] = scheduler.schedule(use, 5)
                assert await task == result
            assert resources.log.count("open") == opened


async def test_errors_at_the_call() -> None:
    resources = Resources()
    async with TaskScheduler(provider=resources) as scheduler:
        with pytest.raises(InvalidTaskError, match="missing a required argument: 'number'"):
            scheduler.schedule(use)  # type: ignore[call-overload]  # refused, as type checkers do
        with pytest.raises(InvalidTaskError, match="too many positional arguments"):
            scheduler.schedule(use, 1, "mine", 3)  # type: ignore[call-overload]  # as above
        resources.refuses = True
        with pytest.raises(InvalidTaskError, match="there is no session"):
            scheduler.schedule(use, 5)
        assert scheduler.statistics().scheduled == 0


async def test_without_a_provider_the_default_is_refused() -> None:
    message = (
        "use has parameters with the default Provided (session), and the scheduler has no provider. Give it one, "
        "TaskScheduler(provider=...), or pass the arguments"
    )
    async with TaskScheduler() as scheduler:
        assert scheduler.provider is None
        with pytest.raises(InvalidTaskError, match=f"^{re.escape(message)}$"):
            scheduler.schedule(use, 5)
        with pytest.raises(InvalidTaskError, match="parameters with the default Provided"):
            scheduler.schedule(Mailer().send)
        with pytest.raises(InvalidTaskError, match="parameters with the default Provided"):
            scheduler.schedule(by_name)
        assert await scheduler.schedule(use, 5, "mine") == (5, "mine")
        assert await scheduler.schedule(plain) == 3


class Mailer:
    async def send(self, session: str = Provided) -> None: ...


async def by_name(*, number: int = 1, session: str = Provided) -> None: ...


async def test_callables_that_can_neither_be_hashed_nor_referenced() -> None:
    class Slotted:
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]  # on purpose

        async def __call__(self, session: str = Provided) -> str:
            return session

    async with TaskScheduler(provider=Resources()) as scheduler:
        assert await scheduler.schedule(Slotted()) == "a session"
        assert await scheduler.schedule(max, 1, 2) == 2  # a builtin has no signature


def test_the_default_explains_itself() -> None:
    assert repr(Provided) == "Provided"
    message = "this parameter has the default Provided"
    with pytest.raises(RuntimeError, match=message):
        Provided.execute("SELECT 1")
    with pytest.raises(RuntimeError, match=message):
        bool(Provided)
    assert not hasattr(Provided, "__wrapped__")
    assert inspect.signature(use).parameters["session"].default is Provided


def test_a_provider_that_is_none() -> None:
    with pytest.raises(InvalidConfigError, match=r"provider=.*parameters\(\), check\(\) and call\(\)"):
        TaskScheduler(provider=object())  # type: ignore[arg-type]  # on purpose

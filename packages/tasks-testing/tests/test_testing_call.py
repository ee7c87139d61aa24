"""Saying which call is meant."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import ANY

import pytest
from tasks_core import TaskScheduler
from tasks_testing import Call, call, call_like, record_tasks

pytestmark = pytest.mark.anyio


async def send(to: str, subject: str = "Hello", *, urgent: bool = False) -> None:
    pass


async def send_all(*to: str, **headers: str) -> None:
    pass


class Mailer:
    def __init__(self, host: str) -> None:
        self.host = host

    async def send(self, to: str) -> None:
        pass

    async def __call__(self, to: str) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mailer) and other.host == self.host

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "other",
    [
        call(send, "ann@x", "Hello"),
        call(send, to="ann@x"),
        call(send, "ann@x", urgent=False),
        call(partial(send, "ann@x")),
        call(partial(send, subject="Hello"), "ann@x"),
        call(send, ANY),
        call_like(send, to="ann@x"),
        call_like(send, urgent=False),
        call_like(send),
        call_like(partial(send, "ann@x")),
    ],
)
def test_calls_are_equal_when_every_parameter_is(other: Call[Any]) -> None:
    assert call(send, "ann@x") == other
    assert other == call(send, "ann@x")


@pytest.mark.parametrize(
    "other",
    [
        call(send, "bob@x"),
        call(send, "ann@x", "Bye"),
        call(send, "ann@x", urgent=True),
        call(send_all, "ann@x"),
        call_like(send, to="bob@x"),
        call_like(partial(send, "bob@x")),
        call_like(send_all),
        "send('ann@x')",
    ],
)
def test_calls_differ_when_a_parameter_does(other: object) -> None:
    assert call(send, "ann@x") != other
    assert other != call(send, "ann@x")


def test_a_call_tells_its_parameters() -> None:
    assert call(send, "ann@x").params == {"to": "ann@x", "subject": "Hello", "urgent": False}
    assert call_like(send, to="ann@x").params == {"to": "ann@x"}
    assert call(send_all, "a", "b", cc="c").params == {"to": ("a", "b"), "cc": "c"}
    assert (call(send, "ann@x", urgent=True).args, call(send, "ann@x", urgent=True).kwargs) == (
        ("ann@x",),
        {"urgent": True},
    )


def test_keywords_that_a_function_collects_are_parameters_like_others() -> None:
    assert call_like(send_all, cc="c") == call(send_all, "a", cc="c", bcc="d")
    assert call_like(send_all, cc="c") != call(send_all, "a", bcc="d")
    assert call(send_all, "a", cc="c") != call(send_all, "a")


async def test_a_difference_is_told_by_parameter() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.schedule(send_all, "a", bcc="d")
        with pytest.raises(AssertionError, match=r"cc was not passed, expected 'c'\n +bcc = 'd' was not expected\n"):
            recorder.assert_ran(call(send_all, "a", cc="c"))


def test_a_call_of_a_builtin_without_a_signature_compares_what_was_passed() -> None:
    assert call(max, 1, 2) == call(max, 1, 2)
    assert call(max, 1, 2) != call(max, 2, 1)
    assert call(max, 1, 2).params == {"0": 1, "1": 2}


def test_a_call_is_shown_as_it_is_written() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError

    assert repr(call(send, "ann@x", urgent=True)) == "send('ann@x', urgent=True)"
    assert repr(call_like(send, to="ann@x")) == "send(to='ann@x', ...)"
    assert repr(call_like(send)) == "send(...)"
    assert repr(call(send, "x" * 100)) == f"send('{'x' * 37}...{'x' * 18}')"
    assert repr(call_like(send, to=Odd())) == "send(to=<Odd whose repr() raised ValueError>, ...)"
    assert repr(call(partial(send, "ann@x"))) == "send()"


def test_a_call_that_the_function_does_not_take_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^missing a required argument: 'to'$"):
        call(send)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^send\(\) has no parameter 'too'; it has to, subject, urgent$"):
        call_like(send, too="ann@x")
    call_like(send_all, cc="ann@x")


def test_a_comparison_that_raises_is_a_difference() -> None:
    class Array:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        __hash__ = None  # type: ignore[assignment]

    array = Array()
    assert call_like(send, to=array) == call_like(send, to=array)
    assert call_like(send, to=array) != call_like(send, to=Array())


MAILER = Mailer("localhost")


@pytest.mark.parametrize(
    "target",
    [
        MAILER.send,
        Mailer("localhost").send,
        Mailer.send,
        partial(MAILER.send, "ann@x"),
        call(MAILER.send, "ann@x"),
        call(Mailer.send, MAILER, "ann@x"),
        call_like(MAILER.send),
        "Mailer.send",
    ],
)
async def test_a_target_names_a_bound_method(target: Callable[..., Any] | Call[Any] | str) -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.schedule(partial(MAILER.send, "ann@x"))
        assert len(recorder.of(target)) == 1


@pytest.mark.parametrize(
    "target",
    [
        Mailer("remote").send,
        partial(MAILER.send, "bob@x"),
        partial(MAILER.send, "ann@x", "extra"),  # type: ignore[call-arg]
        partial(MAILER.send, to="ann@x"),
        call(Mailer("remote").send, "ann@x"),
        Mailer("localhost"),
        send,
        "send",
    ],
)
async def test_a_target_does_not_name_another_method(target: Callable[..., Any] | Call[Any] | str) -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.schedule(partial(MAILER.send, "ann@x"))
        assert len(recorder.of(target)) == 0


async def test_a_target_names_a_callable_object_or_a_configured_name() -> None:
    mailer = Mailer("localhost")
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.task(name="welcome").schedule(mailer, "ann@x")
        assert recorder.of("welcome").calls == recorder.of(mailer).calls == [call(mailer, "ann@x")]


def test_what_is_no_target_is_refused() -> None:
    with record_tasks() as recorder, pytest.raises(TypeError, match=r"^5 names no task\. Pass a func"):
        recorder.of(5)  # type: ignore[arg-type]

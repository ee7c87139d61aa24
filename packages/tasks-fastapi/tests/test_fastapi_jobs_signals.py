"""A signal that asks the process to end is noticed, and reaches the handler of the server."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import anyio
import pytest
from tasks_core import TaskScheduler
from tasks_fastapi.jobs._signals import Leaving, call_on_signal, stop_calling
from tasks_fastapi.jobs._stream import streams_of


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_handler_of_the_server_is_called_too() -> None:
    called: list[int] = []
    left = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        called.append(number)

    signal.signal(signal.SIGTERM, handle)
    leaving = Leaving(left.set)
    call_on_signal(leaving)
    os.kill(os.getpid(), signal.SIGTERM)
    assert left.wait(5)
    assert called == [signal.SIGTERM]


def test_a_handler_is_replaced_once() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    one, other = Leaving(lambda: None), Leaving(lambda: None)
    call_on_signal(one)
    first = signal.getsignal(signal.SIGTERM)
    call_on_signal(other)
    assert signal.getsignal(signal.SIGTERM) is first


def test_a_signal_that_no_function_handles_stays_as_it_is() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    call_on_signal(Leaving(lambda: None))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_changes_no_handler() -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=call_on_signal, args=(Leaving(lambda: None),))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_handlers_of_the_server_are_back_when_the_last_stream_has_ended() -> None:
    def handle(number: int, frame: FrameType | None) -> None: ...

    signal.signal(signal.SIGTERM, handle)
    one, other = Leaving(lambda: None), Leaving(lambda: None)
    call_on_signal(one)
    call_on_signal(other)
    stop_calling(one)
    assert signal.getsignal(signal.SIGTERM) is not handle
    stop_calling(other)
    assert signal.getsignal(signal.SIGTERM) is handle


def test_an_event_loop_that_has_ended_leaves_no_handler_behind() -> None:
    """The loop takes its handler of SIGINT away only where it finds it."""

    async def main() -> None:
        async with TaskScheduler() as scheduler:
            streams_of(scheduler)
            await anyio.wait_all_tasks_blocked()

    before = signal.getsignal(signal.SIGINT)
    anyio.run(main)
    assert signal.getsignal(signal.SIGINT) is before

"""The clock of a recorder, as a test sees it."""

from __future__ import annotations

from . import _refusals
from ._messages.waiting import held_up
from ._recording.recording import Recording
from ._time.monitor import Steps, in_event_loop


class RecorderClock:
    """The clock of delays, retry pauses and timeouts during a recording."""

    def __init__(self, recording: Recording, timeout: float | None) -> None:
        self._recording = recording
        self._timeout = timeout

    @property
    def now(self) -> float:
        """Seconds of virtual time, which begins at 0; without virtual time, real seconds since the recording began."""
        return self._recording.now()

    def advance(self, seconds: float, *, while_running: bool = False) -> None:
        """
        Move virtual time by *seconds*, with a stop at each deadline that a task waits for.

        At each stop, and at the end, it waits until no task is live: each task has ended, or rests until time moves,
        its phase opens, or the test releases it. A task that runs is waited for, whatever its `timeout` is: the time
        that it takes is real, so it does not count against a virtual timeout.

        Args:
            seconds: The virtual seconds to move by.

            while_running: Whether time may pass while tasks run that have a `timeout`. This brings their timeouts
                about. Running tasks without a timeout are waited for all the same.

        Raises:
            AssertionError: Tasks still run after the timeout of the recorder.
            RuntimeError: Time is real, or an event loop runs in this thread: write `await clock.aadvance(...)`.
        """
        __tracebackhide__ = True
        if in_event_loop():
            raise RuntimeError(_refusals.would_block("clock.advance", "clock.aadvance"))
        self._recording.monitor.run(self._advancing(seconds, while_running))

    async def aadvance(self, seconds: float, *, while_running: bool = False) -> None:
        """Do what `advance()` does, in a test that runs on an event loop."""
        __tracebackhide__ = True
        await self._recording.monitor.arun(self._advancing(seconds, while_running))

    def _advancing(self, seconds: float, while_running: bool) -> Steps[None]:
        if not self._recording.virtual:
            raise RuntimeError(_refusals.time_is_real())

        def stuck() -> Exception:
            return AssertionError(held_up(self._recording, seconds, self._timeout))

        return self._recording.queue.advancing(seconds, self._timeout, stuck, while_running=while_running)

    def __repr__(self) -> str:
        return f"<RecorderClock {'virtual' if self._recording.virtual else 'real'} {self.now:g}>"

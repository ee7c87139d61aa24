"""The clock of a recorder, as a test sees it."""

from __future__ import annotations

from tasks_testing._messages.explanation import show_unsettled
from tasks_testing._recording.recording import Recording
from tasks_testing._time.monitor import Steps, in_event_loop


class RecorderClock:
    """What delays, retry pauses and timeouts go by while recording."""

    def __init__(self, recording: Recording, timeout: float | None) -> None:
        self._recording = recording
        self._timeout = timeout

    @property
    def now(self) -> float:
        """Seconds: of virtual time, which begins at 0; or real ones since the recording began."""
        return self._recording.now()

    def advance(self, seconds: float) -> None:
        """
        Move virtual time on by *seconds*, from one moment that a task waits for to the next.

        At each stop the tasks get on until every one of them has ended or waits for the clock again. One whose timeout
        is near is given a tenth of a second of real time to end before that.

        Raises:
            AssertionError: tasks still run after the timeout of the recorder, and no timeout of their own bounds them.
            RuntimeError: time is real, or an event loop runs in this thread: write `await clock.aadvance(...)`.
        """
        __tracebackhide__ = True
        if in_event_loop():
            raise RuntimeError(
                "clock.advance() would block the running event loop; use 'await tasks_recorder.clock.aadvance()'"
            )
        self._recording.monitor.run(self._advancing(seconds))

    async def aadvance(self, seconds: float) -> None:
        """Do what `advance()` does, in a test that runs on an event loop."""
        __tracebackhide__ = True
        await self._recording.monitor.arun(self._advancing(seconds))

    def _advancing(self, seconds: float) -> Steps[None]:
        if not self._recording.virtual:
            raise RuntimeError(
                "time is real here: mark the test with @pytest.mark.tasks_recorder(virtual_time=True), "
                "or call tasks_recorder.virtual_time() before the first task"
            )
        return self._recording.queue.advancing(seconds, self._timeout, self._stuck)

    def _stuck(self) -> Exception:
        tasks = show_unsettled(self._recording, self._recording.live_tasks())
        return AssertionError(f"clock.advance() waited {self._timeout:g} s of real time, and tasks still run\n{tasks}")

    def __repr__(self) -> str:
        return f"<RecorderClock {'virtual' if self._recording.virtual else 'real'} {self.now:g}>"

"""
The stream of a job as server-sent events.

A response of its own and not the generator endpoints of FastAPI: those are missing in releases that tasks-fastapi
supports, have a heartbeat that cannot be set, and put a buffer and two tasks between the events and the client, so that
an event about the end of the stream waits behind a client that does not read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from weakref import WeakKeyDictionary

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tasks_core import SchedulerClosedError, TaskScheduler
from tasks_core.types import TaskUpdate

from ._models import Job
from ._signals import Leaving, call_on_signal, stop_calling

logger = logging.getLogger("tasks_fastapi")

# Seconds that the last event of a stream may take when the process is asked to end, or the client is too slow.
_LAST_WORDS = 1.0
# Milliseconds until a browser connects again.
_RETRY = 1000
_HEARTBEAT = b": heartbeat\n\n"


class Streams:
    """The open streams of one scheduler, which end before it does."""

    def __init__(self) -> None:
        self._open: set[EventStream] = set()
        self.leaving = False

    def start(self, scheduler: TaskScheduler) -> None:
        """Have the streams end when shutdown begins, or when a signal asks the process to end."""
        try:
            service = scheduler.service(self._wait, name="job streams", restart=False)
        except SchedulerClosedError:
            self.leaving = True
            return
        self._leaving = Leaving(service.cancel)
        call_on_signal(self._leaving)

    async def _wait(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self.leaving = True
            stop_calling(self._leaving)
            for stream in self._open:
                stream.leave()

    def add(self, stream: EventStream) -> None:
        self._open.add(stream)

    def remove(self, stream: EventStream) -> None:
        self._open.discard(stream)


_streams: WeakKeyDictionary[TaskScheduler, Streams] = WeakKeyDictionary()


def streams_of(scheduler: TaskScheduler) -> Streams:
    """Return the open streams of a scheduler."""
    streams = _streams.get(scheduler)
    if streams is None:
        streams = _streams[scheduler] = Streams()
        streams.start(scheduler)
    return streams


class _TooSlowError(Exception):
    """The client has read nothing for the time that it has."""


class EventStream(Response):
    """The response that streams the updates of a job."""

    media_type = "text/event-stream"

    def __init__(
        self,
        updates: AsyncIterator[TaskUpdate],
        read: Callable[[], Awaitable[Job[object]]],
        streams: Streams,
        *,
        after: int,
        heartbeat: float,
        client_timeout: float,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._updates = updates
        self._read = read
        self._streams = streams
        self._after = after
        self._heartbeat = heartbeat
        self._client_timeout = client_timeout
        self._waiting = self._sending = anyio.CancelScope()
        self._leaving = streams.leaving
        self._gone = False

    def leave(self) -> None:
        """Let the stream end soon. Call on the event loop."""
        self._leaving = True
        self._waiting.cancel()
        self._sending.deadline = min(self._sending.deadline, anyio.current_time() + _LAST_WORDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the job ends, the client goes away, or the process is asked to end."""
        self._send = send
        self._streams.add(self)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._cancel_at_disconnect, receive, group.cancel_scope)
                await self._run()
                group.cancel_scope.cancel()
        finally:
            self._streams.remove(self)

    async def _cancel_at_disconnect(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        scope.cancel()

    async def _run(self) -> None:
        try:
            await self._send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._write(b"retry: %d\n\n" % _RETRY)
            await self._end(await self._stream())
        except _TooSlowError:
            logger.info("A client that follows a job has read nothing for a while; its connection is closed")
            if not self._leaving:
                await self._end_at_last("slow")
        except OSError:
            pass  # the client has gone away
        except anyio.get_cancelled_exc_class():
            if not self._gone:
                # The server cancels the requests that are open, without a signal before: hypercorn does.
                await self._end_at_last("shutdown")
            raise

    async def _end_at_last(self, name: str) -> None:
        """Send a last event if that takes no longer than a second, also after a cancellation."""
        with anyio.CancelScope(deadline=anyio.current_time() + _LAST_WORDS, shield=True), suppress(OSError):
            # No id: the client may have read more than is known here, and goes on after the last id that it has.
            text = _event(name, {"resume_after": self._after})
            await self._send({"type": "http.response.body", "body": text, "more_body": True})
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, text: bytes) -> None:
        with anyio.CancelScope(deadline=anyio.current_time() + self._client_timeout) as self._sending:
            await self._send({"type": "http.response.body", "body": text, "more_body": True})
            return
        raise _TooSlowError

    async def _end(self, text: bytes) -> None:
        await self._write(text)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stream(self) -> bytes:
        """Send what comes, and return the last event."""
        first = True
        progress = None
        while not self._leaving:
            update, ended = None, False
            with anyio.CancelScope(deadline=anyio.current_time() + self._heartbeat) as self._waiting:
                try:
                    update = await anext(self._updates)
                except StopAsyncIteration:
                    ended = True
            if ended:
                job = await self._read()
                return _event("end", job.model_dump(mode="json"), f"{self._after}-end")
            if update is None:
                if not self._leaving:
                    await self._write(_HEARTBEAT)
                continue
            text = b""
            if update.missed:
                before = update.events[0].number - 1
                text = _event("missed", {"missed": update.missed, "resume_after": before}, str(before))
                if not first:
                    return text  # the client is too slow, and may come again to go on from there
            first = False
            text += b"".join([b"id: %d\ndata: %b\n\n" % (event.number, event.json) for event in update.events])
            if update.progress != progress:
                progress = update.progress
                text += _event("progress", progress)
            if text:
                await self._write(text)
            self._after = update.after  # not before: what a client has not read is what it goes on with
        return _event("shutdown", {"resume_after": self._after})


def _event(name: str, data: object, event_id: str | None = None) -> bytes:
    id_line = "" if event_id is None else f"id: {event_id}\n"
    return f"{id_line}event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()

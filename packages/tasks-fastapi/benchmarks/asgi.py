"""Driving an application in this process, without a server or a client that would cost more than what is measured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message


class Driver:
    """An application whose lifespan runs."""

    def __init__(self, app: ASGIApp, state: dict[str, Any]) -> None:
        self._app = app
        self._state = state

    async def request(self, path: str = "/", method: str = "GET") -> float:
        """Make a request, and return the loop's time at which its last byte was sent."""
        loop = asyncio.get_running_loop()
        done_at = 0.0

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal done_at
            if message["type"] == "http.response.start":
                assert message["status"] == 200, message
            done_at = loop.time()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": dict(self._state),
        }
        await self._app(scope, receive, send)
        return done_at


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[Driver]:
    """Run the lifespan of an application."""
    started, stopping, state = asyncio.Event(), asyncio.Event(), dict[str, Any]()
    messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Message:
        message = next(messages)
        if message == "lifespan.shutdown":
            await stopping.wait()
        return {"type": message}

    async def send(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            started.set()

    lifespan = asyncio.ensure_future(
        app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": state}, receive, send)
    )
    await started.wait()
    try:
        yield Driver(app, state)
    finally:
        stopping.set()
        await lifespan

"""How `anyio.from_thread` finds the event loop in threads that anyio has not started."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio.from_thread
from anyio.lowlevel import EventLoopToken, current_token


class _Way:
    """What `anyio.from_thread` needs of the backend of a token: the ways from a thread to its event loop."""

    def __init__(self, token: EventLoopToken) -> None:
        self._token = token

    def run_async_from_thread(
        self, func: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...], token: object
    ) -> Any:
        return anyio.from_thread.run(func, *args, token=self._token)

    def run_sync_from_thread(self, func: Callable[..., Any], args: tuple[Any, ...], token: object) -> Any:
        return anyio.from_thread.run_sync(func, *args, token=self._token)

    def check_cancelled(self) -> None:
        """Do nothing: a plain function asks `task.cancel_requested`."""


def way_to_loop() -> EventLoopToken:
    """Return a way to the running event loop, for `use_in_thread()`."""
    token = current_token()
    return EventLoopToken(_Way(token), token.native_token)  # type: ignore[arg-type]  # it has the methods that are used


def use_in_thread(way: EventLoopToken) -> None:
    """Let functions of this thread call `anyio.from_thread.run()` without a token, as in the threads of anyio."""
    # anyio offers nothing for this. Without the variable, such a call says that it needs a token, as it did before.
    variables = getattr(anyio.from_thread, "threadlocals", None)
    if variables is not None:
        variables.current_token = way

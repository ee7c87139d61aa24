"""Noting that an exception handler answers a request: its response was not returned."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import HTTPConnection

from ._request import SCOPE_KEY, RequestOrigin


@contextmanager
def noting_exceptions(app: Starlette) -> Iterator[None]:
    """Wrap the exception handlers of *app* while the block builds its middlewares from them."""
    handlers: dict[Any, Callable[..., Any]] = {HTTPException: ExceptionMiddleware(app).http_exception}
    handlers.update(app.exception_handlers)
    before, app.exception_handlers = app.exception_handlers, {key: _noting(handlers[key]) for key in handlers}
    try:
        yield
    finally:
        app.exception_handlers = before


def _noting(handler: Callable[..., Any]) -> Callable[..., Any]:
    # Of the same kind as the handler, because Starlette calls a plain function in a thread.
    if iscoroutinefunction(handler) or iscoroutinefunction(getattr(handler, "__call__", None)):  # noqa: B004

        @wraps(handler)
        async def answer(connection: HTTPConnection, error: Exception) -> Any:
            _note(connection)
            return await handler(connection, error)

        return answer

    @wraps(handler)
    def answer_in_thread(connection: HTTPConnection, error: Exception) -> Any | Awaitable[Any]:
        _note(connection)
        return handler(connection, error)

    return answer_in_thread


def _note(connection: HTTPConnection) -> None:
    request: RequestOrigin = connection.scope[SCOPE_KEY]
    request.raised = True

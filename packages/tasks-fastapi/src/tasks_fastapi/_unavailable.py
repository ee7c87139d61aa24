"""The two 503 responses: too many tasks are waiting, and a durable task could not be stored."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.websockets import WebSocket, WebSocketState
from tasks_core.engines import EngineUnavailableError
from tasks_core.exceptions import InvalidConfigError

logger = logging.getLogger("tasks_fastapi")

_QUEUE_FULL = "Too much work is waiting. Try again later."
_NOT_STORED = "A task could not be stored. Try again later."
# Value of `Retry-After` in seconds when the engine does not answer.
_ENGINE_RETRY_AFTER = "5"

TASK_QUEUE_FULL_RESPONSES: dict[int | str, dict[str, Any]] = {
    503: {
        "description": "Too many background tasks are waiting; `Retry-After` says when to try again.",
        "headers": {
            "Retry-After": {"description": "Seconds to wait before the next try.", "schema": {"type": "integer"}}
        },
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]},
                "example": {"detail": _QUEUE_FULL},
            }
        },
    }
}
"""
Documents the 503 response in the OpenAPI schema of a route:
`@app.post("/orders", responses=TASK_QUEUE_FULL_RESPONSES)`.
"""


def queue_full_handler(retry_after: float) -> Callable[[Any, Exception], Awaitable[Any]]:
    """
    Return the exception handler for `TaskQueueFullError`.

    It answers a request with 503 and `Retry-After`, and closes a WebSocket with code 1013, "try again later".
    """
    if not isinstance(retry_after, (int, float)) or not 0 <= retry_after < math.inf:
        raise InvalidConfigError(f"retry_after={retry_after!r}: retry_after must be a number of seconds, 0 or more")
    seconds = str(math.ceil(retry_after))  # the header takes whole seconds, RFC 9110 section 10.2.3

    async def answer(connection: Request | WebSocket, error: Exception) -> Response | None:
        if isinstance(connection, WebSocket):
            if connection.application_state is WebSocketState.DISCONNECTED:
                raise RuntimeError(
                    "A task was refused after the WebSocket had been closed, so the client cannot be informed. "
                    "Schedule it before `await websocket.close()`"
                ) from error
            await connection.close(code=1013, reason=_QUEUE_FULL)
            return None
        return JSONResponse({"detail": _QUEUE_FULL}, status_code=503, headers={"Retry-After": seconds})

    return answer


class ResponseReplaced(Exception):  # noqa: N818  a signal to the application, which no code is meant to catch
    """
    Raised into the application when it starts the response to a request whose durable tasks were not acknowledged.

    Dependencies see it like any other exception, so that they roll back what is not committed. Its cause is the error
    of the engine. It does not reach the server.
    """

    def response(self) -> Response:
        """Return the response for the client: 503 if the engine did not answer, 500 if it rejected a task."""
        if isinstance(self.__cause__, EngineUnavailableError):
            return JSONResponse({"detail": _NOT_STORED}, status_code=503, headers={"Retry-After": _ENGINE_RETRY_AFTER})
        return PlainTextResponse("Internal Server Error", status_code=500)

    def explains(self, error: BaseException | None) -> bool:
        """Return whether *error*, which left the application, is this exception or was caused by it."""
        while error is not None and error is not self:
            if isinstance(error, BaseExceptionGroup):
                return all(map(self.explains, error.exceptions))
            error = error.__cause__ or error.__context__
        return error is self

    def log(self, method: str, path: str, status: int) -> None:
        """Log why the client did not get the response of the application, which had *status*."""
        logger.error(
            "%s %s was answered with %d, because a durable task could not be stored: %s",
            method,
            path,
            self.response().status_code,
            self.__cause__,
            extra={"replaced_status": status},
        )

"""What a client is told when `max_pending` tasks are waiting: to come back later."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketState
from tasks_core import InvalidConfigError

_DETAIL = "Too much work is waiting. Try again later."

TASK_QUEUE_FULL_RESPONSES: dict[int | str, dict[str, Any]] = {
    503: {
        "description": "Too many background tasks are waiting; `Retry-After` says when to try again.",
        "headers": {
            "Retry-After": {"description": "Seconds to wait before the next try.", "schema": {"type": "integer"}}
        },
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]},
                "example": {"detail": _DETAIL},
            }
        },
    }
}
"""
Documents the answer in the OpenAPI schema of a route: `@app.post("/orders", responses=TASK_QUEUE_FULL_RESPONSES)`.
"""


def answer_with_503(retry_after: float) -> Callable[[Any, Exception], Awaitable[Any]]:
    """
    Make the exception handler for `TaskQueueFullError`.

    A request gets 503 with `Retry-After`; a WebSocket is closed with code 1013, "try again later".
    """
    if not isinstance(retry_after, (int, float)) or not 0 <= retry_after < math.inf:
        raise InvalidConfigError(f"retry_after={retry_after!r}: retry_after must be a number of seconds, 0 or more")
    seconds = str(math.ceil(retry_after))  # the header takes whole seconds, RFC 9110 section 10.2.3

    async def answer(connection: Request | WebSocket, error: Exception) -> Response | None:
        if isinstance(connection, WebSocket):
            if connection.application_state is WebSocketState.DISCONNECTED:
                raise RuntimeError(
                    "A task was refused when the WebSocket had been closed: nobody can be told"
                ) from error
            await connection.close(code=1013, reason=_DETAIL)
            return None
        return JSONResponse({"detail": _DETAIL}, status_code=503, headers={"Retry-After": seconds})

    return answer

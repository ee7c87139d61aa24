"""What the client gets in place of the response when a durable task could not be handed over."""

from __future__ import annotations

import logging

from starlette.responses import JSONResponse, PlainTextResponse, Response
from tasks_core import EngineUnavailableError

logger = logging.getLogger("tasks_fastapi")

# Seconds after which a client may try again when the engine is away.
_RETRY_AFTER = "5"


class Refusal(Exception):  # noqa: N818  not for anybody to catch: it tells the application that its response is void
    """
    Raised into the application when it begins a response to a request whose durable tasks were not acknowledged.

    Dependencies see it as they see any exception, so that what was not committed is rolled back. It has the error of
    the engine as its cause, and does not reach the server.
    """

    def response(self) -> Response:
        """Return what the client gets: 503 if the engine was away, 500 if it had something against a task."""
        if isinstance(self.__cause__, EngineUnavailableError):
            return JSONResponse(
                {"detail": "A task could not be stored. Try again later."},
                status_code=503,
                headers={"Retry-After": _RETRY_AFTER},
            )
        return PlainTextResponse("Internal Server Error", status_code=500)

    def explains(self, error: BaseException | None) -> bool:
        """Whether *error*, which left the application, is this one or came of it."""
        while error is not None and error is not self:
            if isinstance(error, BaseExceptionGroup):
                return all(map(self.explains, error.exceptions))
            error = error.__cause__ or error.__context__
        return error is self


def tell(method: str, path: str, status: int, refusal: Refusal) -> None:
    """Log why the client did not get the response of the application."""
    logger.error(
        "%s %s was answered with %d, because a durable task could not be handed over: %s",
        method,
        path,
        refusal.response().status_code,
        refusal.__cause__,
        extra={"replaced_status": status},
    )

"""What one request has: its tasks, its phases, and how it ended."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from threading import Lock
from typing import ClassVar, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from tasks_core import Outcome, TaskPhase, TaskScheduler, announce

from ._refusal import Refusal, tell

# Headers of the request that the task is a consequence of; the trace context is seen to by tasks-core.
_TO_WORKER = frozenset((b"x-request-id", b"x-correlation-id"))

_making_phases = Lock()

SCOPE_KEY = "tasks_fastapi"
"""Where the request is found in the ASGI scope; mounted applications inherit it."""


class RequestTasks(TaskPhase):
    """
    The tasks of one request; what an endpoint or a dependency gets for a parameter annotated with `Tasks`.

    ```python
    @app.post("/orders")
    async def create_order(order: Order, tasks: Tasks) -> Receipt:
        tasks.schedule(track, order.id)  # now, concurrently with the endpoint
        tasks.after_route.schedule(audit, order.id)  # when the endpoint has returned
        tasks.after_response.schedule(send_receipt, order.id)  # when the client has the response
    ```

    Durable tasks are handed over to the engine before the response begins, whatever their phase; one that the engine
    does not acknowledge turns the response into one with status 503. The phase still says whether they are for this
    outcome.

    Everybody who asks within one request gets the same object. Scheduling into a phase that has passed starts the task
    at once (or discards it, if the task is not meant for the outcome).
    """

    __slots__ = ("_after_response", "_after_route", "_request")

    submitted: Outcome | None

    def __init__(self, scheduler: TaskScheduler, request: RequestOrigin) -> None:
        # Without super(), which costs as much as the rest on Python 3.11.
        TaskPhase.__init__(self, scheduler, "immediate", origin=request, opened=True, hand_over=request.hand_over)
        self._request = request
        self._after_route: TaskPhase | None = None
        self._after_response: TaskPhase | None = None

    @property
    def after_route(self) -> TaskPhase:
        """Opens when the endpoint has returned and the head of the response is about to be sent. Does not delay it."""
        return self._after_route or self._make_after_route()

    @property
    def after_response(self) -> TaskPhase:
        """Opens when the last byte has been sent and every dependency has been left: what they commit is committed."""
        return self._after_response or self._make_after_response()

    # The outcome of a phase is set before the phase is looked for, where it begins; and looked at when the phase is
    # there, maybe by a thread.

    def _make_after_route(self) -> TaskPhase:
        request = self._request
        with _making_phases:
            phase = self._after_route = self._after_route or self.sibling("after_route", request.hand_over)
        if request.route_outcome is not None:
            phase.open(request.route_outcome)
        return phase

    def _make_after_response(self) -> TaskPhase:
        request = self._request
        with _making_phases:
            phase = self._after_response = self._after_response or self.sibling("after_response", request.hand_over)
        if request.final_outcome is not None:
            phase.open(request.final_outcome)
        return phase

    def begin_after_route(self, outcome: Outcome, observed: bool) -> None:
        """Open the phase, if somebody has asked for it or watches."""
        if self._after_route is not None:
            self._after_route.open(outcome)
        elif observed:
            self._make_after_route()

    def begin_after_response(self, outcome: Outcome, observed: bool) -> None:
        """Open the phase, if somebody has asked for it or watches."""
        if self._after_response is not None:
            self._after_response.open(outcome)
        elif observed:
            self._make_after_response()

    def pass_barrier(self, outcome: Outcome) -> bool:
        """Say whether there is nothing for an engine; if so, durable tasks that come later leave at once."""
        route, response = self._after_route, self._after_response
        if (
            self.unsubmitted
            or (route is not None and route.unsubmitted)
            or (response is not None and response.unsubmitted)
        ):
            return False
        self.submitted = outcome
        if route is not None:
            route.submitted = outcome
        if response is not None:
            response.submitted = outcome
        return True

    async def submit_all(self, outcome: Outcome) -> None:
        """Hand the durable tasks of all phases over to the engine; return when it has acknowledged them."""
        for phase in (self, self._after_route, self._after_response):
            if phase is not None:
                await phase.submit(outcome)


class RequestOrigin:
    """
    An HTTP request, as the outermost ASGI layer sees it: the origin of its phases.

    Observers get it in `origin_event()`, and as `task.phase.origin`.
    """

    __slots__ = (
        "_complete",
        "_headers",
        "_outcome",
        "_refusal",
        "_send",
        "_tasks",
        "_trailers",
        "error",
        "final_outcome",
        "hand_over",
        "method",
        "observed",
        "path",
        "route_outcome",
        "scheduler",
        "status",
    )

    method: str
    """The HTTP method, or `"WEBSOCKET"`."""
    path: str
    status: int
    """The status of the response; 0 until there is one."""
    error: BaseException | None
    """The exception that left the application, if one did. `None` again after `request_finished`."""
    scheduler: TaskScheduler
    hand_over: Literal["submit", "now"]
    """When durable tasks that are scheduled from now on leave for the engine."""
    route_outcome: Outcome | None
    """How the route ended; set before `after_route` opens."""
    final_outcome: Outcome | None
    """How the request ended; set before `after_response` opens."""
    observed: bool
    """Whether anybody listened when the request began."""

    _harmless: ClassVar[tuple[type[BaseException], ...]] = ()
    """What may leave the application without being an error."""

    def __init__(self, scheduler: TaskScheduler, scope: Scope, send: Send) -> None:
        self.method = scope.get("method", "WEBSOCKET")
        self.path = scope["path"]
        self.status = 0
        self.error = None
        self.scheduler = scheduler
        self._send = send
        self._complete = False
        self._refusal: Refusal | None = None
        self._headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
        self._trailers = False
        self._tasks: RequestTasks | None = None
        self.route_outcome = None
        self._outcome: Outcome = "error"  # so far
        self.final_outcome = None
        self.hand_over = "submit"

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        """Have the application answer; when it has returned, or raised, open every phase that is not open."""
        scope[SCOPE_KEY] = self
        self.observed = announce(self, "request_started")
        try:
            await app(scope, receive, self.send)
        except BaseException as error:
            self.error = error
            if not isinstance(error, self._harmless):
                self._outcome = "error"
            if self._refusal is None or not self._refusal.explains(error):
                raise
        finally:
            outcome = self._outcome
            if self.route_outcome is None:
                self._open_after_route(outcome)
            self.final_outcome = outcome
            tasks = self._tasks
            if tasks is not None:
                if tasks.unsubmitted:
                    tasks.open(outcome)  # there was no response, and nobody else will care
                tasks.begin_after_response(outcome, self.observed)
            if self.observed:
                announce(self, "request_finished")
            # Both lead back to the request, the error by the frames of its traceback: cycles.
            self._tasks = self.error = self._refusal = None

    @property
    def task_headers(self) -> dict[str, str]:
        """What goes with a durable task to its worker: the request id, if the client or a proxy sent one."""
        return {name.decode(): value.decode("latin-1") for name, value in self._headers if name in _TO_WORKER}

    @property
    def tasks(self) -> RequestTasks:
        """The tasks of the request, made when first asked for."""
        tasks = self._tasks
        if tasks is None:
            tasks = RequestTasks(self.scheduler, self)
            if self.final_outcome is None:
                self._tasks = tasks
            if self.observed:  # and asked for late: by the exit of a dependency, by a middleware, by a task
                if self.route_outcome is not None:
                    tasks.begin_after_route(self.route_outcome, observed=True)
                if self.final_outcome is not None:
                    tasks.begin_after_response(self.final_outcome, observed=True)
        return tasks

    @property
    def outcome(self) -> Outcome:
        """`"error"` if an exception left the application, the status is 400 or more, or the response was cut off."""
        return self.final_outcome or self._outcome

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the application on to the server; open `after_route` right before the first."""
        # Returns what is to be awaited, in place of awaiting it, where nothing is left to do afterwards.
        if self._refusal is not None:
            return _nothing()  # the client has a response already, and what the application says to that is for nobody
        kind = message["type"]
        if kind == "http.response.start":
            self.status = status = message["status"]
            if "trailers" in message:
                self._trailers = message["trailers"]
            outcome: Outcome = "success" if status < 400 else "error"
            tasks = self._tasks
            if self.observed or (tasks is not None and not tasks.pass_barrier(outcome)):
                return self._send_start(message, outcome)
            self._open_after_route(outcome)
            return self._send(message)
        if kind == "http.response.body" and not self._trailers:
            last = not message.get("more_body", False)
        else:
            last = _is_last(message, self._trailers)
        return self._send(message) if self._complete or not last else self._send_last(message)

    async def _send_start(self, message: Message, outcome: Outcome) -> None:
        tasks = self._tasks
        if tasks is not None and not tasks.pass_barrier(outcome):
            await self._submit(tasks, outcome)
        self._open_after_route(outcome)
        await self._send(message)
        if self.observed:
            announce(self, "response_started")

    async def _send_last(self, message: Message) -> None:
        # Not when the call returns: a server may tell of the end of the connection, for which Starlette cancels
        # whoever sends a stream, while it still closes what it has sent (hypercorn on trio does).
        self._complete = True
        if self.status < 400:
            self._outcome = "success"
        try:
            await self._send(message)
        except Exception:
            self._complete = False
            self._outcome = "error"
            raise
        if self.observed:
            announce(self, "response_sent")

    async def _submit(self, tasks: RequestTasks, outcome: Outcome) -> None:
        try:
            await tasks.submit_all(outcome)
        except Exception as error:
            refusal = Refusal()
            refusal.__cause__ = error
            await self._refuse(refusal)
            raise refusal from error

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer in place of the application."""
        tell(self.method, self.path, self.status, refusal)
        response = refusal.response()
        self._refusal = refusal
        self.status = response.status_code
        self._open_after_route("error")
        await self._send({"type": "http.response.start", "status": self.status, "headers": response.raw_headers})
        announce(self, "response_started")
        await self._send({"type": "http.response.body", "body": response.body})
        announce(self, "response_sent")

    def _open_after_route(self, outcome: Outcome) -> None:
        if self.route_outcome is not None:
            return
        self.hand_over = "now"
        self.route_outcome = outcome
        if self.observed:
            announce(self, "route_returned")
        if self._tasks is not None:
            self._tasks.begin_after_route(outcome, self.observed)


class WebSocketOrigin(RequestOrigin):
    """
    A WebSocket connection: both phases open when the endpoint has returned.

    Its outcome is `"error"` if it was refused, or an exception left the application; a disconnect is none.
    """

    __slots__ = ()

    _harmless = (WebSocketDisconnect,)

    def __init__(self, scheduler: TaskScheduler, scope: Scope, send: Send) -> None:
        super().__init__(scheduler, scope, send)
        self.hand_over: Literal["submit", "now"] = "now"  # there is no response that could wait

    async def send(self, message: Message) -> None:
        """Pass a message of the application on to the server."""
        await self._send(message)
        if message["type"] == "websocket.accept":
            self._outcome: Outcome = "success"
        elif message["type"] == "websocket.http.response.start":
            self.status: int = message["status"]


async def _nothing() -> None:
    pass


def _is_last(message: Message, trailers: bool) -> bool:
    """Whether the response is complete with this message, of the kinds that ASGI and its extensions know."""
    match message["type"]:
        case "http.response.body" | "http.response.zerocopysend":
            return not trailers and not message.get("more_body", False)
        case "http.response.trailers":
            return not message.get("more_trailers", False)
        case "http.response.pathsend":
            return not trailers
    return False

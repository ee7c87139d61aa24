"""One request: its tasks, its phases and its outcome."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, TypeVar, overload
from weakref import ref

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from tasks_core import DurableFunction, DurablePhase, Outcome, Task, TaskConfig, TaskScheduler
from tasks_core.frameworks import CURRENT, announce

from ._unavailable import ResponseReplaced

P = ParamSpec("P")
T = TypeVar("T")

# Headers of the request that a durable task carries to its worker. tasks-core adds the trace context.
_TO_WORKER = frozenset((b"x-request-id", b"x-correlation-id"))

_ALWAYS = TaskConfig(when="always")
_RETURNED = "returned"  # the key of the phase of add_task()

SCOPE_KEY = "tasks_fastapi"
"""The key of the `RequestOrigin` in the ASGI scope; mounted applications inherit it."""


class RequestTasks(DurablePhase):
    """
    The tasks of one request: what FastAPI passes for a parameter annotated with `Tasks`.

    ```python
    @app.post("/orders")
    async def create_order(order: Order, tasks: Tasks) -> Receipt[Any]:
        tasks.schedule(track, order.id)  # now, concurrently with the endpoint
        tasks.after_route.schedule(audit, order.id)  # when the endpoint has returned
        tasks.after_response.schedule(send_receipt, order.id)  # when the client has the response
    ```

    Durable tasks are submitted to the engine before the response starts, whatever their phase. If the engine does not
    acknowledge one of them, the client gets a response with status 503. A durable task for another outcome than that of
    its phase is discarded.

    Every parameter of one request gets the same object. A task that is scheduled into a phase that has opened starts at
    the next turn of the event loop, or is discarded if it is for another outcome.
    """

    __slots__ = ("_phases", "_request")

    submitted: Outcome | None

    def __init__(self, scheduler: TaskScheduler, request: RequestOrigin | ApplicationOrigin) -> None:
        # Not super().__init__(), which doubles the cost of the call on Python 3.11.
        DurablePhase.__init__(self, scheduler, "immediate", origin=request, opened=True, submit_on=request.submit_on)
        self._request = request
        self._phases: dict[str, DurablePhase] = {}

    @property
    def after_route(self) -> DurablePhase:
        """
        The phase that opens when the endpoint has returned, right before the start of the response is sent.

        Its tasks run concurrently with the sending; the response does not wait for them.
        """
        return self._phases.get("after_route") or self._create("after_route")

    @property
    def after_response(self) -> DurablePhase:
        """
        The phase that opens when the last byte has been sent and every dependency has exited.

        What the dependencies commit when they exit is committed before its tasks start.
        """
        return self._phases.get("after_response") or self._create("after_response")

    if TYPE_CHECKING:

        @overload
        def add_task(self, func: DurableFunction[P, T, Any], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]: ...

        @overload
        def add_task(
            self, func: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
        ) -> Task[T]: ...

        @overload
        def add_task(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]: ...

        def add_task(self, func: Any, /, *args: Any, **kwargs: Any) -> Task[Any]: ...
    else:

        @property
        def add_task(self) -> Any:  # a property that returns a method, so that the task knows the line of the call
            """
            `add_task(func, *args, **kwargs)`: schedule a task by the rule of `fastapi.BackgroundTasks`.

            It starts when `after_response` opens, for every response that was returned, whatever its status, also if
            the client disconnected while it was sent. It is discarded if the endpoint or a dependency raised, also
            where an exception handler has turned the exception into a response.
            """
            return (self._phases.get(_RETURNED) or self._create(_RETURNED)).schedule

    def _create(self, key: str) -> DurablePhase:
        phase = self.sibling("after_response" if key is _RETURNED else key, self._request.submit_on)
        if key is _RETURNED:
            phase.config = phase.config.merge(_ALWAYS)
            self._request.note_handled_exception()
        # Atomic, without a lock: another thread, a signal handler or a finalizer may ask for the same phase meanwhile,
        # and a finalizer that runs while the thread holds a lock would wait for it indefinitely.
        phase = self._phases.setdefault(key, phase)
        # A race between the event loop and a worker thread: the event loop sets the outcome and then reads the phases;
        # the thread sets the phase and then reads the outcome. One of the two always opens the phase.
        outcome = self._request.route_outcome if key == "after_route" else self._request.final_outcome
        if outcome is not None:
            self._open_phase(key, phase, outcome)
        return phase

    def _open_phase(self, key: str, phase: DurablePhase, outcome: Outcome) -> None:
        if key is not _RETURNED:
            phase.open(outcome)
        elif self._request.returned:
            phase.open("success")
        else:
            phase.discard("no response was returned, because the endpoint or a dependency raised")

    def open_after_route(self, outcome: Outcome, observed: bool) -> None:
        """Open the phase if the application has used it. If *observed*, create it first."""
        phase = self._phases.get("after_route")
        if phase is not None:
            phase.open(outcome)
        elif observed:
            self._create("after_route")

    def open_after_response(self, outcome: Outcome, observed: bool) -> None:
        """Open the used phases of this moment. If *observed*, create `after_response` first."""
        phase = self._phases.get("after_response")
        if phase is not None:
            phase.open(outcome)
        elif observed:
            self._create("after_response")
        phase = self._phases.get(_RETURNED)
        if phase is not None:
            self._open_phase(_RETURNED, phase, outcome)

    def pass_barrier(self, outcome: Outcome) -> bool:
        """
        Return whether no durable task waits to be submitted when the response starts.

        If so, later ones are submitted at once. Tasks of `add_task()` are discarded if no response was returned.
        """
        phases = self._phases
        request = self._request
        if _RETURNED in phases and isinstance(request, RequestOrigin) and not request.check_returned():
            self._open_phase(_RETURNED, phases[_RETURNED], "error")
        for phase in phases.values():
            if phase.unsubmitted:
                return False
        if self.unsubmitted:
            return False
        self.submitted = outcome
        for key, phase in phases.items():
            phase.submitted = "success" if key is _RETURNED else outcome
        return True

    async def submit_all(self, outcome: Outcome) -> None:
        """Submit the durable tasks of all phases to the engine; return when it has acknowledged them."""
        await self.submit(outcome)
        for key, phase in list(self._phases.items()):
            await phase.submit("success" if key is _RETURNED else outcome)


class RequestOrigin:
    """
    An HTTP request as the outermost ASGI middleware sees it: the origin of its phases.

    Observers receive it in `origin_event()`, and read it from `task.phase.origin`.
    """

    __slots__ = (
        "__weakref__",
        "_complete",
        "_handled",
        "_headers",
        "_outcome",
        "_replaced",
        "_send",
        "_tasks",
        "_trailers",
        "error",
        "final_outcome",
        "method",
        "observed",
        "path",
        "raised",
        "returned",
        "route_outcome",
        "scheduler",
        "status",
        "submit_on",
    )

    method: str
    """The HTTP method, or `"WEBSOCKET"`."""
    path: str
    status: int
    """The status of the response; 0 before the response starts."""
    error: BaseException | None
    """The exception that the application raised; `None` if there was none, and again after `request_finished`."""
    scheduler: TaskScheduler
    submit_on: Literal["submit", "schedule"]
    """When durable tasks that are scheduled from now on are submitted to the engine."""
    route_outcome: Outcome | None
    """How the route ended; set before `after_route` opens."""
    final_outcome: Outcome | None
    """How the request ended; set before `after_response` opens."""
    raised: bool
    """Whether an exception handler was called for the request."""
    returned: bool
    """Whether a response was returned: the endpoint and its dependencies did not raise. Set when it starts."""
    observed: bool
    """Whether an observer was registered when the request started."""

    _harmless: ClassVar[tuple[type[BaseException], ...]] = ()
    """The exceptions that do not make the outcome an error."""

    def __init__(self, scheduler: TaskScheduler, scope: Scope, send: Send) -> None:
        self.method = scope.get("method", "WEBSOCKET")
        self.path = scope["path"]
        self.status = 0
        self.error = None
        self.scheduler = scheduler
        self._send = send
        self._complete = False
        self._replaced: ResponseReplaced | None = None
        self._headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
        self._trailers = False
        self._tasks: RequestTasks | None = None
        self.route_outcome = None
        self._outcome: Outcome = "error"  # until the response says otherwise
        self.final_outcome = None
        self.submit_on = "submit"
        self.raised = self.returned = False
        self._handled: BaseException | None = None

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        """Call the application; when it has returned or raised, open every phase that is not open."""
        scope[SCOPE_KEY] = self
        token = CURRENT.set(ref(self))
        self.observed = announce(self, "request_started")
        try:
            await app(scope, receive, self.send)
        except BaseException as error:
            self.error = error
            if not isinstance(error, self._harmless):
                self._outcome = "error"
            if self._replaced is None or not self._replaced.explains(error):
                raise
        finally:
            outcome = self._outcome
            if self.route_outcome is None:
                self._open_after_route(outcome)
            self._finish(outcome)
            tasks = self._tasks
            if tasks is not None:
                if tasks.unsubmitted:
                    tasks.open(outcome)  # no response started, so send() has not submitted them
                tasks.open_after_response(outcome, self.observed)
            if self.observed:
                announce(self, "request_finished")
            # These refer to the request, the errors through the frames of their tracebacks, and so would keep it alive.
            self._tasks = self.error = self._replaced = self._handled = None
            try:  # noqa: SIM105  suppress() costs a tenth of all that a request costs here
                CURRENT.reset(token)
            except ValueError:  # the garbage collector closes the coroutine, in another context
                pass

    def _finish(self, outcome: Outcome) -> None:
        self.final_outcome = outcome

    @property
    def finished(self) -> bool:
        """Whether the application has returned or raised."""
        return self.final_outcome is not None

    @property
    def task_headers(self) -> dict[str, str]:
        """The headers that a durable task carries to its worker: the request id, if the client or a proxy sent one."""
        return {name.decode(): value.decode("latin-1") for name, value in self._headers if name in _TO_WORKER}

    @property
    def tasks(self) -> RequestTasks:
        """The tasks of the request, created on first use."""
        tasks = self._tasks
        if tasks is None:
            tasks = RequestTasks(self.scheduler, self)
            if self.final_outcome is None:
                self._tasks = tasks
            if self.observed:  # created late: by the exit of a dependency, by a middleware, by a task
                if self.route_outcome is not None:
                    tasks.open_after_route(self.route_outcome, observed=True)
                if self.final_outcome is not None:
                    tasks.open_after_response(self.final_outcome, observed=True)
        return tasks

    @property
    def outcome(self) -> Outcome:
        """`"error"` if the application raised, the status is 400 or more, or the response is incomplete."""
        return self.final_outcome or self._outcome

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the application to the server; open `after_route` right before the first."""
        # Not a coroutine function: without one, messages with nothing left to do cost one frame less.
        if self._replaced is not None:
            return _ignored()  # the client has another response already
        kind = message["type"]
        if kind == "http.response.start":
            self.status = status = message["status"]
            if "trailers" in message:
                self._trailers = message["trailers"]
            outcome: Outcome = "success" if status < 400 else "error"
            self.returned = not self.raised
            tasks = self._tasks
            waits = tasks is not None and not tasks.pass_barrier(outcome)
            if waits or self.observed:
                return self._send_start(message, outcome, waits)
            self._open_after_route(outcome)
            return self._send(message)
        if kind == "http.response.body" and not self._trailers:
            last = not message.get("more_body", False)
        else:
            last = _is_last(message, self._trailers)
        return self._send(message) if self._complete or not last else self._send_last(message)

    def note_handled_exception(self) -> None:
        """Store the exception that the caller handles, which is not one that the endpoint raises later."""
        if self._handled is None and not self.finished:
            self._handled = sys.exception()

    def check_returned(self) -> bool:
        """Return whether the response that starts now was returned; a middleware may handle an exception with it."""
        exception = sys.exception()
        if exception is not None and exception is not self._handled:
            self.returned = False
        return self.returned

    async def _send_start(self, message: Message, outcome: Outcome, waits: bool) -> None:
        tasks = self._tasks
        if waits and tasks is not None:
            await self._submit(tasks, outcome)
        self._open_after_route(outcome)
        await self._send(message)
        if self.observed:
            announce(self, "response_started")

    async def _send_last(self, message: Message) -> None:
        # Complete before the call returns: a server may report the disconnect while it still closes the connection
        # (hypercorn on trio does), for which Starlette cancels the code that sends a stream.
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
            replaced = ResponseReplaced()
            replaced.__cause__ = error
            await self._replace_response(replaced)
            raise replaced from error

    async def _replace_response(self, replaced: ResponseReplaced) -> None:
        """Send a response in place of that of the application."""
        replaced.log(self.method, self.path, self.status)
        response = replaced.response()
        self._replaced = replaced
        self.returned = False
        self.status = response.status_code
        self._open_after_route("error")
        await self._send({"type": "http.response.start", "status": self.status, "headers": response.raw_headers})
        announce(self, "response_started")
        await self._send({"type": "http.response.body", "body": response.body})
        announce(self, "response_sent")

    def _open_after_route(self, outcome: Outcome) -> None:
        if self.route_outcome is not None:
            return
        self.submit_on = "schedule"
        self.route_outcome = outcome
        if self.observed:
            announce(self, "route_returned")
        if self._tasks is not None:
            self._tasks.open_after_route(outcome, self.observed)


class WebSocketOrigin(RequestOrigin):
    """
    A WebSocket connection: both phases open when the endpoint has returned.

    Its outcome is `"error"` if the connection was refused or the application raised. A disconnect is no error.
    """

    __slots__ = ()

    _harmless = (WebSocketDisconnect,)

    def __init__(self, scheduler: TaskScheduler, scope: Scope, send: Send) -> None:
        super().__init__(scheduler, scope, send)
        # A WebSocket has no response that could wait for the engine.
        self.submit_on: Literal["submit", "schedule"] = "schedule"

    async def send(self, message: Message) -> None:
        """Pass a message of the application to the server."""
        await self._send(message)
        if message["type"] == "websocket.accept":
            self._outcome: Outcome = "success"
        elif message["type"] == "websocket.http.response.start":
            self.status: int = message["status"]

    def _finish(self, outcome: Outcome) -> None:
        self.returned: bool = not self.raised and (self.error is None or isinstance(self.error, self._harmless))
        super()._finish(outcome)


class ApplicationOrigin:
    """
    The origin of tasks that belong to no request: `current_tasks()` in a periodic task, a consumer or a durable task.

    All phases are open, so that its tasks start at once.
    """

    __slots__ = ("__weakref__", "scheduler")

    scheduler: TaskScheduler
    submit_on: ClassVar[Literal["schedule"]] = "schedule"
    route_outcome: ClassVar[Outcome] = "success"
    final_outcome: ClassVar[Outcome] = "success"
    returned: ClassVar[bool] = True

    def __init__(self, scheduler: TaskScheduler) -> None:
        self.scheduler = scheduler

    @property
    def tasks(self) -> RequestTasks:
        """Tasks whose phases are open."""
        return RequestTasks(self.scheduler, self)

    def note_handled_exception(self) -> None:
        """Do nothing, because there is no endpoint that could raise."""


async def _ignored() -> None:
    pass


def _is_last(message: Message, trailers: bool) -> bool:
    """Return whether *message* completes the response; it is one of ASGI or of its extensions."""
    match message["type"]:
        case "http.response.body" | "http.response.zerocopysend":
            return not trailers and not message.get("more_body", False)
        case "http.response.trailers":
            return not message.get("more_trailers", False)
        case "http.response.pathsend":
            return not trailers
    return False

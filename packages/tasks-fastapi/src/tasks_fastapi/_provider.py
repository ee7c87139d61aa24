"""The dependencies of FastAPI in tasks: `async def send(order_id: int, session: SessionDep = Provided)`."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, TypeVar, get_args, get_origin
from weakref import WeakKeyDictionary, ref

from fastapi import FastAPI, Request, Response
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.params import Depends
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.types import Message, Scope
from tasks_core import current_task
from tasks_core.exceptions import InvalidTaskError

from ._dependencies import request_tasks
from ._request import SCOPE_KEY, ApplicationOrigin, RequestOrigin
from ._telemetry import leave_request, return_to_request

T = TypeVar("T")

_CALL = "tasks_fastapi.call"
_REQUEST = "tasks_fastapi_request"  # the parameter of the endpoint that is added to those of the function


class Dependencies:
    """
    Has FastAPI resolve the dependencies of a task, in a scope of its own for each attempt.

    For each function there is a route of FastAPI whose endpoint has the dependencies of the function as parameters and
    calls the function. An attempt serves a request to this route that no client has sent: dependencies with `yield`
    are entered before the function and exit after it, and overrides apply, as in any request.
    """

    def __init__(self, app: Starlette) -> None:
        self._app = _App(app)
        self._routes: WeakKeyDictionary[Callable[..., Any], dict[frozenset[str], _Route]] = WeakKeyDictionary()

    def parameters(self, func: Callable[..., Any], /) -> Collection[str]:
        """Return the parameters that have a dependency: as a default value, or in `Annotated`."""
        return [parameter.name for parameter in _parameters(func) if _is_dependency(parameter)]

    def check(self, func: Callable[..., Any], names: frozenset[str], /) -> None:
        """Raise if a dependency needs a request, which a task does not have."""
        self._route(func, names).check(self._app.dependency_overrides)

    async def call(
        self, func: Callable[..., Any], names: frozenset[str], run: Callable[[Mapping[str, Any]], Awaitable[T]], /
    ) -> T:
        """Resolve the dependencies, call *run* with them, and have them exit with what that raised."""
        call = _Call(run)
        token = leave_request()
        try:
            await self._route(func, names).serve(call, self._app.find())
        finally:
            if token is not None:
                return_to_request(token)
        result: T = call.result
        return result

    def _route(self, func: Callable[..., Any], names: frozenset[str]) -> _Route:
        try:
            routes = self._routes.setdefault(getattr(func, "__func__", func), {})
        except TypeError:  # it cannot be hashed, or not referenced weakly
            routes = {}
        if names not in routes:
            routes[names] = _Route(func, names, self._app)
        return routes[names]


class _App:
    """The application, for the routes: not kept alive by them, because it is what keeps them."""

    __slots__ = ("find",)

    def __init__(self, app: Starlette) -> None:
        self.find = ref(app)

    @property
    def dependency_overrides(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        """The overrides in force; FastAPI reads them for each attempt."""
        app = self.find()
        return app.dependency_overrides if isinstance(app, FastAPI) else {}


class _Call:
    """One attempt: what the endpoint calls, and its result."""

    __slots__ = ("_run", "result")

    def __init__(self, run: Callable[[Mapping[str, Any]], Awaitable[Any]]) -> None:
        self._run = run

    async def __call__(self, arguments: Mapping[str, Any]) -> None:
        # From Python 3.11 on, a frame keeps its function, and the functions of FastAPI lead to this object, also when
        # the frames of a task that failed have been cleared.
        run = self._run
        del self._run
        self.result: Any = await run(arguments)


class _Route:
    """The route of FastAPI that resolves the dependencies of one function."""

    def __init__(self, func: Callable[..., Any], names: frozenset[str], app: _App) -> None:
        self._name = getattr(func, "__qualname__", type(func).__qualname__).replace("<locals>.", "")

        async def endpoint(**values: Any) -> Response:
            request: Request = values.pop(_REQUEST)
            await request.scope[_CALL](values)
            return Response()

        keyword_only = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter(_REQUEST, keyword_only, annotation=Request)]
        for parameter in _parameters(func):
            if parameter.name in names:
                if not _is_dependency(parameter):
                    raise InvalidTaskError(
                        f"{self._name}: parameter {parameter.name!r} has the default Provided, and its annotation has "
                        f"no dependency. Write: {parameter.name}: Annotated[..., Depends(...)] = Provided"
                    )
                default = parameter.default if isinstance(parameter.default, Depends) else parameter.empty
                parameters.append(parameter.replace(kind=keyword_only, default=default))
        endpoint.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it
        self._route = APIRoute("/", endpoint, response_model=None, dependency_overrides_provider=app)
        # FastAPI requires it around each route, and closes uploaded files in it.
        self._serve = AsyncExitStackMiddleware(self._route.handle)

    async def serve(self, call: _Call, app: Starlette | None) -> None:
        """Serve a request that no client has sent, whose endpoint is *call*."""
        task = current_task()
        origin = None if task is None or task.phase is None else task.phase.origin
        if not isinstance(origin, (RequestOrigin, ApplicationOrigin)):
            scheduler = None if task is None else task.scheduler
            origin = None if scheduler is None else ApplicationOrigin(scheduler)
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "task",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "client": None,
            "server": None,
            "path_params": {},
            "app": app,
            SCOPE_KEY: origin,
            _CALL: call,
        }
        await self._serve(scope, _receive, _send)

    def check(self, overrides: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        """Raise `InvalidTaskError` if a dependency needs a request."""
        for dependant in self._route.dependant.dependencies:
            need = _need_of_request(dependant, overrides)
            if need is not None:
                raise InvalidTaskError(
                    f"{self._name}: its dependency {need}, and a task has no request. Pass what the task needs of the "
                    "request as an argument"
                )


def _need_of_request(dependant: Any, overrides: Mapping[Callable[..., Any], Callable[..., Any]]) -> str | None:
    """Say what a dependency, or one that it depends on, needs of a request; `None` if nothing."""
    call = overrides.get(dependant.call, dependant.call)
    if call is not dependant.call:
        dependant = APIRoute("/", _depending_on(call)).dependant.dependencies[0]
    if call is request_tasks:  # the request is that of the task
        return None
    name = getattr(call, "__qualname__", type(call).__qualname__).replace("<locals>.", "")
    for kind in ("path", "query", "header", "cookie", "body"):
        for field in getattr(dependant, f"{kind}_params"):
            return f"{name} needs the {kind} parameter {field.alias!r}"
    for kind in ("request", "websocket", "http_connection"):
        if getattr(dependant, f"{kind}_param_name") is not None:
            return f"{name} needs the request itself"
    for inner in dependant.dependencies:
        need = _need_of_request(inner, overrides)
        if need is not None:
            return need
    return None


def _depending_on(call: Callable[..., Any]) -> Callable[..., None]:
    def endpoint(_value: Any) -> None: ...

    endpoint.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # inspect reads it
        [inspect.Parameter("value", inspect.Parameter.KEYWORD_ONLY, default=Depends(call))]
    )
    return endpoint


def _parameters(func: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """List the parameters of a function, with their annotations evaluated as far as that is possible."""
    # Of the innermost function, because a wrapper has the annotations of the function that it wraps.
    namespace = getattr(inspect.unwrap(getattr(func, "__func__", func)), "__globals__", {})
    for parameter in inspect.signature(func, follow_wrapped=False).parameters.values():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            with suppress(Exception):  # a name that only type checkers know
                annotation = eval(annotation, namespace)  # noqa: S307  what typing.get_type_hints() does
        yield parameter.replace(annotation=getattr(annotation, "__value__", annotation))  # of `type X = ...`


def _is_dependency(parameter: inspect.Parameter) -> bool:
    if isinstance(parameter.default, Depends):
        return True
    if get_origin(parameter.annotation) is not Annotated:
        return False
    return any(isinstance(metadata, Depends) for metadata in get_args(parameter.annotation)[1:])


async def _receive() -> Message:
    raise NotImplementedError  # a dependency that needs the body is refused


async def _send(_message: Message) -> None:
    pass

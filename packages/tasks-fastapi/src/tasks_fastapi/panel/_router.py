"""`tasks_panel()`: the routes of the page, who may use them, and what its buttons do."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.params import Depends as DependsMarker
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from tasks_core import TaskScheduler
from tasks_core.engines import DurableState, EngineError, OperableEngine, StoredTaskPage, engine_of

from tasks_fastapi._access import get_scheduler

from . import _render
from ._assets import SCRIPT, STYLE
from ._history import History
from ._html import Html

logger = logging.getLogger("tasks_fastapi")

_LINE = 'app.include_router(tasks_panel(), prefix="/_tasks", dependencies=[Depends(admin)])'
_REFUSED = (
    "The page of the tasks is not shown, because nothing says who may see it. Give it a dependency that lets only "
    f"operators pass: {_LINE}. If the network does that already, write tasks_panel(allow_anonymous=True)."
)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# Seconds between two updates, and for which a stream lasts: the browser opens the next one, and a server that stops and
# waits for its requests does not wait for longer.
_EVERY, _STREAM = 2.0, 6.0
_PAGE = 50


def tasks_panel(
    *,
    dependencies: Sequence[DependsMarker] | None = None,
    allow_anonymous: bool = False,
    show_arguments: bool = False,
) -> APIRouter:
    """
    Return a router with a page for operators: what runs, what failed and why, and buttons to retry, cancel and pause.

    ```python
    app.include_router(tasks_panel(), prefix="/_tasks", dependencies=[Depends(admin)])
    ```

    The page is made by the server, uses nothing from another host, and works under the Content-Security-Policy that it
    sends. It shows this process (running tasks, periodic tasks, the last failures and warnings) and the queues and
    stored tasks of the engine, if the application has one. What changes something is accepted from the page itself
    only, and not from other sites.

    Args:
        dependencies: Who may see and use it, as for any router. They may also be given to `include_router()`.

        allow_anonymous: Whether each client may. Otherwise each request is refused with status 403 if the routes have
            no dependency at all.

        show_arguments: Whether the details of a stored task have its arguments, which may be secrets.
    """
    panel = _Panel(allow_anonymous, show_arguments)
    router = APIRouter(
        dependencies=[*(dependencies or ()), Depends(panel.refuse_strangers)], include_in_schema=False, tags=["tasks"]
    )
    router.get("/")(panel.page)
    router.get("/events")(panel.events)
    router.get("/style.css")(_style)
    router.get("/script.js")(_script)
    router.post("/act")(panel.act)
    return router


async def _style() -> Response:
    return Response(STYLE, media_type="text/css", headers=_HEADERS)


async def _script() -> Response:
    return Response(SCRIPT, media_type="text/javascript", headers=_HEADERS)


class _Panel:
    def __init__(self, allow_anonymous: bool, show_arguments: bool) -> None:
        self._allow_anonymous = allow_anonymous
        self._show_arguments = show_arguments
        self._history = History()
        self._said = False

    async def refuse_strangers(self, request: Request) -> None:
        """Refuse a request if nothing but this dependency stands before the page."""
        guards = [one for one in _dependencies_of(request) if one.dependency != self.refuse_strangers]
        if not guards and not self._allow_anonymous:
            if not self._said:
                self._said = True
                logger.error("The page of the tasks is refused, because it has no dependency that says who may see it")
            raise HTTPException(403, _REFUSED)

    # ---- looking ----

    async def page(self, request: Request) -> Response:
        query = {name: value for name, value in request.query_params.items() if value}
        scheduler = get_scheduler(request.app)
        parts = await self._parts(scheduler)
        engine = _engine(scheduler)
        stored = None if engine is None else await self._stored(engine, query)
        return HTMLResponse(_render.page(request.app.title, parts, stored), headers=_HEADERS)

    async def _parts(self, scheduler: TaskScheduler) -> dict[str, Html]:
        parts = {"process": _render.process(scheduler)}
        engine = _engine(scheduler)
        if engine is not None:
            statistics, problem = await self._history.queues(engine)
            parts["queues"] = _render.queues(statistics, problem, self._history)
        parts["troubles"] = _render.troubles(self._history)
        return parts

    async def _stored(self, engine: OperableEngine, query: dict[str, str]) -> Html:
        which: dict[str, Any] = {name: query[name] for name in ("name", "error", "queue") if name in query}
        if query.get("state", "") in {state.value for state in DurableState} - {DurableState.UNKNOWN.value}:
            which["state"] = DurableState(query["state"])
        shown = None
        try:
            found = await engine.find(after=query.get("after"), limit=_PAGE, **which)
            if "task" in query:
                shown = await engine.show(query["task"], arguments=self._show_arguments)
        except EngineError:  # the numbers of the queues say so
            found = StoredTaskPage((), None)
        return _render.stored(found, {name: value for name, value in query.items() if name != "task"}, shown)

    async def events(self, request: Request) -> Response:
        """Send the parts of the page that change, until the stream has lasted for its time."""
        scheduler = get_scheduler(request.app)

        async def stream() -> AsyncIterator[str]:
            yield "retry: 500\n\n"
            with anyio.move_on_after(_STREAM):
                while not scheduler.stopping.is_set():
                    parts = await self._parts(scheduler)
                    yield f"event: update\ndata: {json.dumps(parts)}\n\n"
                    with anyio.move_on_after(_EVERY):
                        await scheduler.stopping.wait()

        return StreamingResponse(stream(), media_type="text/event-stream", headers=_HEADERS)

    # ---- acting ----

    async def act(self, request: Request) -> Response:
        """Do what a button says, and show the page again."""
        if not _is_same_origin(request):
            return PlainTextResponse("Refused: the request does not come from this page.", 403, headers=_HEADERS)
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode("utf-8", "replace")).items()}
        scheduler = get_scheduler(request.app)
        try:
            done = await self._do(form.get("do", ""), form, scheduler)
        except EngineError as error:
            return PlainTextResponse(f"Nothing was done: {error}", 503, headers=_HEADERS)
        if not done:
            return PlainTextResponse("There is no such task, or no such action.", 404, headers=_HEADERS)
        self._history.ask_again()
        back = urlsplit(request.headers.get("referer", "")).query
        return RedirectResponse(f"./?{back}" if back else "./", 303, headers=_HEADERS)

    async def _do(self, do: str, form: dict[str, str], scheduler: TaskScheduler) -> bool:
        engine = _engine(scheduler)
        if do == "cancel_memory":
            number = form.get("id", "")
            task = scheduler.find(int(number)) if number.isdecimal() else None
            return task is not None and task.cancel()
        if engine is None:
            return False
        verbs = {"retry": engine.retry, "cancel": engine.cancel, "discard": engine.discard}
        if do in verbs and "id" in form:
            return bool(await verbs[do](form["id"]))
        pausing = {"pause": engine.pause, "resume": engine.resume}
        if do in pausing and "queue" in form:
            await pausing[do](queue=form["queue"], name=form.get("name"))
            return True
        return False


def _dependencies_of(request: Request) -> Sequence[DependsMarker]:
    """Return the dependencies of the route of a request, with those of the routers that include it."""
    # New releases of FastAPI keep the route as it is and put this beside it; older ones copy the route with all of
    # them. With a release that does neither, the page refuses each request.
    context = request.scope.get("fastapi", {}).get("effective_route_context") or request.scope["route"]
    found: Sequence[DependsMarker] = getattr(context, "dependencies", ())
    return found


def _engine(scheduler: TaskScheduler) -> OperableEngine | None:
    engine = engine_of(scheduler)
    return engine if isinstance(engine, OperableEngine) else None


def _is_same_origin(request: Request) -> bool:
    """Return whether the browser says that the page itself has sent the request; other sites cannot make it say so."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return urlsplit(request.headers.get("origin", "")).netloc == request.headers.get("host", "?")

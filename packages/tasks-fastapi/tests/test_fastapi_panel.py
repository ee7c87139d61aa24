"""The page for operators, asked in process: what is on it, what its buttons do, and what is refused."""

from __future__ import annotations

import gc
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from html.parser import HTMLParser
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
from asgi_spy import Spy, request, running, turns
from fastapi import Depends, FastAPI, HTTPException
from fastapi import Request as FastAPIRequest
from starlette.types import Message
from tasks_core import Cancel, TaskPhase, TaskScheduler, current_task, durable, every
from tasks_core.engines import DurableState, EngineUnavailableError, QueueStatistics, StoredTaskPage
from tasks_core.exceptions import DurableTaskFailedError, TaskCancelledError
from tasks_fastapi import add_tasks, get_scheduler
from tasks_fastapi.panel import tasks_panel
from tasks_fastapi.panel._history import History
from tasks_testing import InMemoryEngine

pytestmark = pytest.mark.anyio

AWAY = "the database is away"


@durable(name="panel-in-process.charge", retry=None)
async def charge(card: str, cents: int) -> None:
    raise ConnectionError("gateway")


@durable(name="panel-in-process.render")
async def render(title: str) -> dict[str, str]:
    task = current_task()
    assert task is not None
    task.report({"pages": 3})
    return {"title": title}


@durable(name="panel-in-process.visit")
async def visit() -> None:
    raise Cancel("the client has moved away")


async def clean_up() -> None: ...


class Engine(InMemoryEngine):
    """Counts what the page asks for, and is away on request."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.asked = 0

    def _check(self) -> None:
        if self.away:
            raise EngineUnavailableError(AWAY)

    async def statistics(self, **options: Any) -> tuple[QueueStatistics, ...]:
        self.asked += 1
        self._check()
        return await super().statistics(**options)

    async def find(self, **options: Any) -> StoredTaskPage:
        self._check()
        return await super().find(**options)

    async def pause(self, **options: Any) -> None:
        self._check()
        await super().pause(**options)


class Read(HTMLParser):
    """The buttons, links and rows of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.buttons: dict[str, dict[str, str]] = {}
        self.links: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self.numbers: dict[str, str] = {}
        self._fields: dict[str, str] = {}
        self._href: str | None = None
        self._texts: list[str] = []
        self._term = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._fields = {}
        elif tag == "input" and given.get("type") == "hidden":
            self._fields[given["name"]] = given["value"]
        elif tag == "button":
            self.buttons[given.get("aria-label", "")] = self._fields
        elif tag == "a":
            self._href = given["href"]
        elif tag == "tr":
            self.rows.append([])
        if tag in ("td", "dt", "dd", "a"):
            self._texts = []

    def handle_data(self, data: str) -> None:
        self._texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        text = "".join(self._texts)
        if tag == "td":
            self.rows[-1].append(text)
        elif tag == "dt":
            self._term = text
        elif tag == "dd":
            self.numbers[self._term] = text
        elif tag == "a" and self._href is not None:
            self.links[text] = self._href

    def row(self, text: str) -> list[str]:
        """Return the only row that has this text in a cell."""
        [found] = [row for row in self.rows if text in row]
        return found


class Operator:
    """The browser of an operator."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def open(self, link: str = "./") -> Read:
        response = await self.client.get(f"/_tasks/{link.removeprefix('./')}")
        assert response.status_code == 200
        self.text = response.text
        self.page = Read(response.text)
        self.url = str(response.url)
        return self.page

    async def press(self, label: str) -> Read:
        """Press a button, and go where the answer leads."""
        response = await self.act(**self.page.buttons[label])
        assert response.status_code == 303, response.text
        return await self.open(response.headers["location"])

    async def act(self, **fields: str) -> httpx.Response:
        headers = {"Origin": "http://shop", "Referer": self.url}
        return await self.client.post("/_tasks/act", data=fields, headers=headers)


def make(engine: InMemoryEngine | None, *, works: bool = False, **options: Any) -> FastAPI:
    app = FastAPI(title="Shop & Co")
    add_tasks(app, engine=engine, worker_concurrency=1 if works else None)
    app.include_router(tasks_panel(**options), prefix="/_tasks")
    return app


@asynccontextmanager
async def operator(app: FastAPI) -> AsyncIterator[Operator]:
    transport = httpx.ASGITransport(app)
    async with running(app), httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        one = Operator(client)
        await one.open()
        yield one


# ---- what is on it ----


async def test_page_without_an_engine_shows_the_process_alone() -> None:
    app = make(None, allow_anonymous=True)
    async with operator(app) as one:
        assert "<title>Tasks of Shop &amp; Co</title>" in one.text
        assert one.page.numbers["running"] == "0"
        assert one.page.rows == []
        assert "Durable queues" not in one.text
        assert "Stored tasks" not in one.text
        answer = await one.act(do="pause", queue="default")
        assert (answer.status_code, answer.text) == (404, "There is no such task, or no such action.")


async def test_tasks_of_the_process_by_state_and_phase() -> None:
    app = make(None, allow_anonymous=True)
    async with operator(app) as one:
        scheduler = get_scheduler(app)
        go_on = anyio.Event()
        scheduler.task(name="mail").schedule(go_on.wait)
        delayed = scheduler.task(delay=3600).schedule(clean_up)
        phase = TaskPhase(scheduler, "after the order")
        phase.schedule(clean_up)
        periodic = scheduler.periodic(every(hours=1)).schedule(clean_up)
        await turns()
        page = await one.open()
        assert [page.numbers[name] for name in ("running", "pending")] == ["1", "2"], "periodic tasks do not count"
        assert page.row("mail")[1] == "running"
        assert "Pending by phase: no phase 1, after the order 1" in one.text
        assert page.row(periodic.name)[1].endswith(" UTC")
        go_on.set()
        delayed.cancel()
        phase.open()


async def test_more_running_tasks_than_a_page_lists() -> None:
    app = make(None, allow_anonymous=True)
    async with operator(app) as one:
        go_on = anyio.Event()
        for _ in range(52):
            get_scheduler(app).schedule(go_on.wait)
        await turns()
        page = await one.open()
        assert page.numbers["running"] == "52"
        assert len([row for row in page.rows if row]) == 50
        assert "and 2 more" in one.text
        go_on.set()


async def test_running_task_is_cancelled() -> None:
    app = make(None, allow_anonymous=True)
    async with operator(app) as one:
        task = get_scheduler(app).task(name="mail").schedule(anyio.sleep_forever)
        await task.started.wait()
        await one.open()
        page = await one.press("Cancel mail")
        await task.wait()
        assert task.cancel_requested
        assert page.numbers["running"] in ("0", "1"), "it may clean up first"
        for number in (str(task.id), "12345", "x", ""):
            assert (await one.act(do="cancel_memory", id=number)).status_code == 404


async def test_failures_and_warnings_of_the_process() -> None:
    app = make(None, allow_anonymous=True)

    async def fail() -> None:
        raise KeyError("<b>4711</b>")

    async with operator(app) as one:
        assert one.text.count('<p class="dim">None</p>') == 2
        task = get_scheduler(app).task(name="import").schedule(fail)
        await task.wait()
        logging.getLogger("tasks_core").warning("the %s is <i>slow</i>", "loop")
        page = await one.open()
        assert "<b>import</b> KeyError " in one.text
        assert "raise KeyError(&quot;&lt;b&gt;4711&lt;/b&gt;&quot;)" in one.text
        assert page.row("the loop is <i>slow</i>")[1] == "WARNING"
        assert '<span class="bad">ERROR</span>' in one.text, "the failure is in the log"


async def test_history_that_is_no_longer_used_listens_no_more() -> None:
    """By itself, because FastAPI keeps functions of routes in a cache that outlives the application."""
    history = History()
    failures, warnings = history.failures, history.warnings

    async def fail() -> None:
        raise KeyError

    async with TaskScheduler() as scheduler:
        await scheduler.schedule(fail).wait()
        assert (len(failures), len(warnings)) == (1, 1)
        del history
        gc.collect()
        await scheduler.schedule(fail).wait()
        logging.getLogger("tasks_fastapi").warning("one more")
    assert (len(failures), len(warnings)) == (1, 1)


# ---- durable queues ----


async def test_numbers_of_the_queues_are_asked_for_every_two_seconds_at_most() -> None:
    engine = Engine()
    began = monotonic()
    async with operator(make(engine, allow_anonymous=True)) as one:
        for _ in range(3):
            await one.open()
        assert engine.asked <= 1 + (monotonic() - began) // 2
        asked = engine.asked
        page = await one.press("Pause default")
        assert engine.asked > asked, "an operator sees what the button has done"
        assert "Resume default" in page.buttons


async def test_numbers_that_need_a_look() -> None:
    class Busy(Engine):
        async def statistics(self, **options: Any) -> tuple[QueueStatistics, ...]:
            queues = await super().statistics(**options)
            return tuple(
                replace(queue, waiting=10_000, failed=1234, oldest_waiting=7200.0, workers_silent=2) for queue in queues
            )

    async with operator(make(Busy(), allow_anonymous=True)) as one:
        [queue] = [row for row in one.page.rows if row[:1] == ["default"]]
        assert (queue[1], queue[3], queue[6], queue[8]) == ("10,000+", "2 h", "1,234", "0 (2 silent)")
        for text in ('<span class="warn">2 h', '<span class="bad">1,234', '<span class="bad"> (2 silent)'):
            assert text in one.text


async def test_queue_and_function_are_paused_and_resumed() -> None:
    engine = Engine()
    app = make(engine, allow_anonymous=True)
    async with operator(app) as one:
        await get_scheduler(app).schedule(render, "a")
        await engine.pause(queue="default", name=render.name)
        page = await one.press("Pause default")
        assert {(one.queue, one.name) for one in await engine.pauses()} == {("default", None), ("default", render.name)}
        assert [row[1] for row in page.rows if row[:1] == ["default"]] == ["1"]
        assert "Waiting tasks over time: 0 to 1, 1 at most" in one.text
        await one.press("Resume default")
        page = await one.press(f"Resume {render.name}")
        assert await engine.pauses() == ()
        assert "Pause default" in page.buttons


async def test_engine_that_is_away() -> None:
    engine = Engine()
    engine.away = True
    async with operator(make(engine, allow_anonymous=True)) as one:
        assert f"These numbers are old: {AWAY}" in one.text
        assert "No such task" in one.text
        answer = await one.act(do="pause", queue="default")
        assert (answer.status_code, answer.text) == (503, f"Nothing was done: {AWAY}")
        engine.away = False
        await one.act(do="pause", queue="default")
        await one.open()
        assert "These numbers are old" not in one.text
        assert "Resume default" in one.page.buttons


# ---- stored tasks ----


async def test_failed_task_is_retried_and_discarded() -> None:
    engine = Engine()
    app = make(engine, works=True, allow_anonymous=True)
    async with operator(app) as one:
        receipt = await get_scheduler(app).schedule(charge, "4242", cents=4711)
        with pytest.raises(DurableTaskFailedError):
            await receipt.result()
        page = await one.open()
        assert page.row(charge.name)[2:5] == ["failed", "default", "1"]
        assert page.row(charge.name)[6] == "ConnectionError"
        await one.press(f"Retry task {receipt.id}, {charge.name}")
        with pytest.raises(DurableTaskFailedError):
            await receipt.result()
        page = await one.open()
        assert page.row(charge.name)[4] == "2"
        page = await one.press(f"Discard task {receipt.id}, {charge.name}")
        assert "No such task" in one.text
        assert (await receipt.status()).state is DurableState.UNKNOWN
        for do in ("retry", "cancel", "discard"):
            assert (await one.act(do=do, id=receipt.id)).status_code == 404


async def test_waiting_task_is_cancelled_and_retried() -> None:
    app = make(Engine(), allow_anonymous=True)
    async with operator(app) as one:
        receipt = await get_scheduler(app).schedule(render, "a")
        await one.open()
        page = await one.press(f"Cancel task {receipt.id}, {render.name}")
        assert page.row(render.name)[2] == "cancelled"
        assert f"Cancel task {receipt.id}, {render.name}" not in page.buttons
        page = await one.press(f"Retry task {receipt.id}, {render.name}")
        assert page.row(render.name)[2] == "pending"


async def test_task_that_has_succeeded_has_no_buttons() -> None:
    app = make(Engine(), works=True, allow_anonymous=True)
    async with operator(app) as one:
        receipt = await get_scheduler(app).schedule(render, "a")
        await receipt.result()
        page = await one.open()
        assert page.row(render.name)[2] == "succeeded"
        assert page.row(render.name)[-1] == ""


@pytest.mark.parametrize("show_arguments", [False, True])
async def test_details_have_the_arguments_only_if_the_application_says_so(show_arguments: bool) -> None:
    app = make(Engine(), works=True, allow_anonymous=True, show_arguments=show_arguments)
    async with operator(app) as one:
        scheduler = get_scheduler(app)
        failed = await scheduler.schedule(charge, "4242", cents=4711)
        with pytest.raises(DurableTaskFailedError):
            await failed.result()
        await one.open()
        page = await one.open(one.page.links[failed.id])
        assert f"Task {failed.id}, {charge.name}: failed" in one.text
        assert page.numbers["key"] == failed.idempotency_key
        assert page.numbers["attempts"] == "1"
        assert [row[1] for row in page.rows if len(row) == 2] == ["pending", "running", "failed"]
        assert "<summary>Attempt 1: ConnectionError</summary>" in one.text
        assert "raise ConnectionError(" in one.text
        if show_arguments:
            assert json.loads(page.numbers["arguments"]) == {"card": "4242", "cents": 4711}
        else:
            assert "arguments" not in page.numbers
            assert "4711" not in one.text


async def test_details_have_progress_and_the_reason_of_a_cancellation() -> None:
    app = make(Engine(), works=True, allow_anonymous=True)
    async with operator(app) as one:
        scheduler = get_scheduler(app)
        rendered, cancelled = await scheduler.schedule(render, "a"), await scheduler.schedule(visit)
        await rendered.result()
        with pytest.raises(TaskCancelledError):
            await cancelled.result()
        assert json.loads((await one.open(f"./?task={rendered.id}")).numbers["progress"]) == {"pages": 3}
        assert (await one.open(f"./?task={cancelled.id}")).numbers["reason"] == "the client has moved away"
        assert "No traceback" not in one.text
        await one.open("./?task=12345")
        assert "reason" not in one.page.numbers


async def test_filter_stays_when_a_button_is_pressed() -> None:
    app = make(Engine(), works=True, allow_anonymous=True)
    async with operator(app) as one:
        scheduler = get_scheduler(app)
        failed = [await scheduler.schedule(charge, "4242", cents=1) for _ in range(2)]
        await (await scheduler.schedule(render, "a")).result()
        for receipt in failed:
            with pytest.raises(DurableTaskFailedError):
                await receipt.result()
        page = await one.open(f"./?state=failed&name={charge.name}&error=connection&queue=")
        assert [row[0] for row in page.rows if len(row) == 8] == [failed[1].id, failed[0].id]
        assert '<option value="failed" selected>failed</option>' in one.text
        page = await one.press(f"Discard task {failed[0].id}, {charge.name}")
        assert urlsplit(one.url).query == f"state=failed&name={charge.name}&error=connection&queue="
        assert [row[0] for row in page.rows if len(row) == 8] == [failed[1].id]
        for nothing in ("error=timeout", "queue=mail", "state=running"):
            await one.open(f"./?{nothing}")
            assert "No such task" in one.text
        for all_tasks in ("state=", "state=unknown", "state=none"):
            assert len([row for row in (await one.open(f"./?{all_tasks}")).rows if len(row) == 8]) == 2


async def test_pages_follow_one_another() -> None:
    app = make(Engine(), allow_anonymous=True)
    async with operator(app) as one:
        receipts = [await get_scheduler(app).schedule(render, "a") for _ in range(51)]
        page = await one.open(f"./?name={render.name}")
        assert len([row for row in page.rows if len(row) == 8]) == 50
        page = await one.open(page.links["Next page"])
        assert [row[0] for row in page.rows if len(row) == 8] == [receipts[0].id]
        assert "Next page" not in page.links


# ---- live ----


async def test_stream_sends_the_parts_that_change_and_ends_when_the_application_stops() -> None:
    app = make(Engine(), allow_anonymous=True)
    updated = anyio.Event()
    spy = Spy()

    async def send(message: Message) -> None:
        await spy(message)
        if b"event: update" in message.get("body", b""):
            updated.set()

    async def stop() -> None:
        await updated.wait()
        await get_scheduler(app).aclose()

    async with running(app), anyio.create_task_group() as group:
        group.start_soon(stop)
        await request(app, "/_tasks/events", send=send)
    assert spy.answer.headers["content-type"].startswith("text/event-stream")
    text = spy.answer.body.decode()
    assert text.startswith("retry: 500\n\n")
    for data in re.findall("^event: update\ndata: (.*)\n\n", text, re.MULTILINE):
        assert list(json.loads(data)) == ["process", "queues", "troubles"]


async def test_assets_and_policy() -> None:
    async with operator(make(None, allow_anonymous=True)) as one:
        for path, kind in (("", "text/html"), ("style.css", "text/css"), ("script.js", "text/javascript")):
            response = await one.client.get(f"/_tasks/{path}")
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(kind)
            assert response.headers["content-security-policy"].startswith("default-src 'none'")


# ---- who may ----


async def test_page_without_a_dependency_is_refused_with_the_line_to_write(caplog: pytest.LogCaptureFixture) -> None:
    app = make(Engine())
    async with running(app):
        for path in ("", "events", "style.css", "script.js"):
            answer = await request(app, f"/_tasks/{path}")
            assert answer.status == 403
            line = 'app.include_router(tasks_panel(), prefix="/_tasks", dependencies=[Depends(admin)])'
            assert line in json.loads(answer.body)["detail"]
    assert [record.getMessage() for record in caplog.records if "is refused" in record.getMessage()] == [
        "The page of the tasks is refused, because it has no dependency that says who may see it"
    ]


@pytest.mark.parametrize("where", ["panel", "application"])
async def test_stranger_gets_what_the_dependency_says(where: str) -> None:
    def admin(request: FastAPIRequest) -> None:
        if "x-admin" not in request.headers:
            raise HTTPException(401)

    app = FastAPI()
    add_tasks(app)
    guards = [Depends(admin)]
    if where == "panel":
        app.include_router(tasks_panel(dependencies=guards), prefix="/_tasks")
    else:
        app.include_router(tasks_panel(), prefix="/_tasks", dependencies=guards)
    async with running(app):
        assert (await request(app, "/_tasks/")).status == 401
        assert (await request(app, "/_tasks/act", "POST")).status == 401
        assert (await request(app, "/_tasks/", headers=[(b"host", b"test"), (b"x-admin", b"1")])).status == 200


async def test_buttons_are_accepted_from_the_page_itself_only() -> None:
    engine = Engine()
    async with operator(make(engine, allow_anonymous=True)) as one:

        async def act(do: str, **headers: str) -> int:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            data = {"do": do, "queue": "default"}
            return (await one.client.post("/_tasks/act", data=data, headers=headers)).status_code

        assert await act("pause") == 403
        assert await act("pause", origin="http://evil.example") == 403
        assert await act("pause", origin="null") == 403
        assert await act("pause", sec_fetch_site="same-site", origin="http://shop") == 403
        assert await engine.pauses() == ()
        assert await act("explode", sec_fetch_site="same-origin") == 404
        assert await act("retry", sec_fetch_site="same-origin") == 404, "without an id"
        assert (await one.act(do="pause")).status_code == 404, "without a queue"
        assert await act("pause", sec_fetch_site="same-origin") == 303
        assert len(await engine.pauses()) == 1
        response = await one.client.post(
            "/_tasks/act", data={"do": "resume", "queue": "default"}, headers={"origin": "http://shop"}
        )
        assert response.headers["location"] == "./", "without a referrer, the page has no filter"
        assert await engine.pauses() == ()

"""With 100,000 failed rows, the page asks a few statements, each of which reads a bounded part of an index."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from urllib.parse import urljoin

import httpx
import pytest
from asgi_spy import running
from core_plans import Asked, insert_failed
from core_postgres import new_database, postgres
from fastapi import FastAPI
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import add_tasks
from tasks_fastapi.panel import tasks_panel

__all__ = ("postgres",)

pytestmark = pytest.mark.anyio

MANY = 100_000


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def address(postgres: str) -> AsyncIterator[str]:
    async with new_database(postgres, "panel_many_failed") as address:
        async with ProcrastinateEngine(address):
            pass
        await insert_failed(address, "tasks", MANY)
        yield address


def shown_ids(page: str) -> list[int]:
    return [int(number) for number in re.findall(r"[?&;]task=(\d+)", html.unescape(page))]


async def test_pages_follow_one_another_at_the_same_cost(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = FastAPI()
    add_tasks(app, engine=ProcrastinateEngine(address))
    app.include_router(tasks_panel(allow_anonymous=True), prefix="/_tasks")
    seen: list[int] = []
    async with running(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        asked = Asked(monkeypatch)
        place = "/_tasks/?state=failed"
        for _ in range(3):
            response = await client.get(place)
            assert response.status_code == 200
            ids = list(dict.fromkeys(shown_ids(response.text)))
            assert len(ids) == 50
            seen += ids
            # Two for the tasks of the page, and one for the numbers, if they are older than two seconds.
            assert 2 <= len(asked.statements) <= 3
            reads = await asked.reads(address)
            assert reads.whole == set()
            assert reads.rows <= 300 + 10_000 + 2 * 2_000, "the numbers of the page count to 10,000"
            [place] = re.findall(r'<a href="([^"]+)">Next page</a>', response.text)
            place = urljoin("/_tasks/", html.unescape(place))
    assert seen == sorted(set(seen), reverse=True), "no task is shown twice, and the newest comes first"
    assert seen[0] - seen[-1] == len(seen) - 1, "none is left out"

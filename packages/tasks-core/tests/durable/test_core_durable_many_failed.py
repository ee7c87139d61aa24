"""With 100,000 failed rows, operators get an answer that was read from an index, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from core_durable_functions import forget
from core_plans import Asked, insert_failed
from core_postgres import execute, new_database, postgres
from tasks_core import durable
from tasks_core.engines import DEFAULT_QUEUE, DurableState
from tasks_core.engines.procrastinate import ProcrastinateEngine

__all__ = ("forget", "postgres")

pytestmark = pytest.mark.anyio

MANY = 100_000
PAGE = 50


async def never() -> None:
    """Has queues without rows: to find that out must not read the rows of the other queues."""


for number in range(3):
    durable(name=f"many failed: none of {number}", queue=f"without-failures-{number}")(never)


class Stored(NamedTuple):
    address: str
    first: int
    last: int


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=[False, True], ids=["new table", "analyzed"])
async def stored(postgres: str, request: pytest.FixtureRequest) -> AsyncIterator[Stored]:
    """A database of its own. PostgreSQL knows nothing of a table that was filled a moment ago."""
    name = f"many_failed_{'analyzed' if request.param else 'new'}"
    async with new_database(postgres, name) as address:
        async with ProcrastinateEngine(address):
            pass
        first, last = await insert_failed(address, "tasks", MANY)
        if request.param:
            await execute(address, "ANALYZE")
        yield Stored(address, first, last)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


@pytest.mark.parametrize("pages_before", [0, 1, 1_000, 1_999])
async def test_each_page_is_read_by_its_key(stored: Stored, asked: Asked, pages_before: int) -> None:
    """The last page costs what the first one does."""
    newest = stored.last - pages_before * PAGE
    async with ProcrastinateEngine(stored.address) as engine:
        after = str(newest + 1)
        page = await engine.find(state=DurableState.FAILED, after=after, limit=PAGE)
    assert [int(task.id) for task in page.tasks] == list(range(newest, newest - PAGE, -1))
    assert page.after == str(newest - PAGE + 1)
    assert len(asked.statements) == 2
    reads = await asked.reads(stored.address)
    assert reads.whole == set()
    # A look at a hundred rows; then, for each task of the page, its row and its three events.
    assert reads.rows <= 100 + 4 * PAGE


@pytest.mark.parametrize("state", sorted({*DurableState} - {DurableState.FAILED, DurableState.UNKNOWN}))
async def test_states_without_rows_are_not_looked_for_in_all_rows(
    stored: Stored, asked: Asked, state: DurableState
) -> None:
    async with ProcrastinateEngine(stored.address) as engine:
        assert (await engine.find(state=state, limit=PAGE)).tasks == ()
    reads = await asked.reads(stored.address)
    assert reads.whole == set()
    # Those that succeeded are found in the order of their ids: a bounded number of rows is looked at.
    assert reads.rows <= (10_000 if state is DurableState.SUCCEEDED else 0)


async def test_filter_that_fits_nothing_reads_a_bounded_part(stored: Stored, asked: Asked) -> None:
    async with ProcrastinateEngine(stored.address) as engine:
        page = await engine.find(state=DurableState.FAILED, name="no such function", limit=PAGE)
    assert page.tasks == ()
    assert page.after is not None, "the caller may go on"
    reads = await asked.reads(stored.address)
    assert reads.whole == set()
    assert reads.rows <= 10_000


async def test_numbers_count_to_their_bound(stored: Stored, asked: Asked) -> None:
    async with ProcrastinateEngine(stored.address) as engine:
        numbers = {one.queue: one for one in await engine.statistics(count_to=1_000)}
    assert numbers[DEFAULT_QUEUE].failed == 1_000
    reads = await asked.reads(stored.address)
    assert reads.whole == set()
    # The count, and the 2,000 events by which the rate is known, each with its task: once, and not for each queue.
    assert reads.rows <= 1_000 + 2 * 2_000


async def test_details_of_a_task_are_its_own_rows(stored: Stored, asked: Asked) -> None:
    async with ProcrastinateEngine(stored.address) as engine:
        shown = await engine.show(str(stored.first))
    assert shown is not None
    assert shown.task.error == "ConnectionError"
    reads = await asked.reads(stored.address)
    assert reads.whole == set()
    assert reads.rows <= 10

"""A role with the grants of the runbook, and no others, submits, works and operates."""

from __future__ import annotations

import re
from pathlib import Path

import anyio
import pytest
from core_postgres import ends, execute_each, new_database, postgres, queue, working
from psycopg.conninfo import make_conninfo
from tasks_core import TaskScheduler, durable
from tasks_core.engines import DurableState
from tasks_core.engines.procrastinate import ProcrastinateEngine

__all__ = ("postgres", "queue")

GRANTS = (Path(__file__).parents[1] / "examples" / "monitoring" / "grants.sql").read_text(encoding="utf-8")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@durable(name="docs grants", retry=None)
async def fail() -> None:
    raise ValueError


async def test_grants_are_enough(postgres: str, queue: str) -> None:
    async with new_database(postgres, "granted", role="shop") as address:
        async with ProcrastinateEngine(address):
            pass
        statements = re.sub("^--.*$", "", GRANTS, flags=re.MULTILINE).split(";")
        await execute_each(address, "CREATE ROLE shop LOGIN", *filter(None, map(str.strip, statements)))
        engine = ProcrastinateEngine(make_conninfo(address, user="shop"), queue=queue)
        async with TaskScheduler(engine=engine) as scheduler, working(engine):
            receipt = await scheduler.schedule(fail.configure(idempotency_key="k"))
            await ends(receipt, DurableState.FAILED)
            assert [numbers.failed for numbers in await engine.statistics_in_turn(60.0) if numbers.failed] == [1]
            await engine.pause(name=fail.name)
            await engine.resume(name=fail.name)
            assert await engine.retry(receipt.id) == 1
            await ends(receipt, DurableState.FAILED)
            assert await engine.discard(receipt.id) == 1


async def test_they_are_needed(postgres: str) -> None:
    async with new_database(postgres, "ungranted", role="stranger") as address:
        async with ProcrastinateEngine(address):
            pass
        await execute_each(address, "CREATE ROLE stranger LOGIN")
        engine = ProcrastinateEngine(make_conninfo(address, user="stranger"))
        with pytest.raises(Exception, match="permission denied"), anyio.fail_after(30):
            async with TaskScheduler(engine=engine) as scheduler:
                await scheduler.schedule(fail)

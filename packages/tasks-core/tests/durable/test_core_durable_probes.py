"""Probes of a worker: what they answer, and from where."""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from core_engine import ListEngine
from core_postgres import postgres, queue, until, working
from tasks_core import Worker
from tasks_core._durable import probes as module
from tasks_core._durable.command import main
from tasks_core.engines import EngineUnavailableError, Pause
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_core.exceptions import InvalidConfigError
from tasks_core.frameworks import probes, worker_problems
from tasks_testing import InMemoryEngine

__all__ = ("postgres", "queue")

pytestmark = pytest.mark.anyio


def options(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"health_port": None, "health_host": "127.0.0.1", "health_file": None, "health_beat": 30.0, **given}
    )


async def ask(caplog: pytest.LogCaptureFixture, path: str = "/ready") -> tuple[int, Any]:
    """Ask the server whose address is in the log."""
    [port] = re.findall(r"http://127\.0\.0\.1:(\d+)/alive", caplog.text)[-1:]
    return await anyio.to_thread.run_sync(ask_port, int(port), path)


def ask_port(port: int, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, json.loads(body) if body else None


class Away(InMemoryEngine):
    async def pauses(self) -> Sequence[Pause]:  # type: ignore[override]  # a test double
        raise EngineUnavailableError("the database is away")


class Slow(InMemoryEngine):
    async def pauses(self) -> Sequence[Pause]:  # type: ignore[override]  # a test double
        await anyio.sleep_forever()
        raise AssertionError


class Old(InMemoryEngine):
    def last_beat(self) -> float | None:
        return 31.0


# ---- what is wrong ----


async def test_a_worker_that_runs_has_no_problems() -> None:
    engine, stop = InMemoryEngine(), anyio.Event()
    assert await worker_problems(engine) == ("No worker of this process has given a sign of life",)
    async with anyio.create_task_group() as group:
        group.start_soon(Worker(engine).run, stop)
        await anyio.wait_all_tasks_blocked()
        assert await worker_problems(engine) == ()
        await engine.pause(name="charge")
        assert await worker_problems(engine) == ()
        await engine.pause(queue="default")
        assert await worker_problems(engine) == ("Queue 'default' is paused",)
        assert await worker_problems(engine, works=False) == ()
        stop.set()


async def test_what_is_wrong_with_an_engine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await worker_problems(ListEngine()) == (), "nothing is known of it"
    assert await worker_problems(Away(), works=False) == ("the database is away",)
    assert await worker_problems(Old()) == ("The engine has acknowledged no sign of life of this worker for 31 s",)
    assert await worker_problems(Old(), beat_within=60) == ()
    monkeypatch.setattr(module, "_ANSWER_WITHIN", 0.01)
    assert await worker_problems(Slow()) == ("The engine did not answer within 0.01 s",)


# ---- the server ----


async def test_server_says_what_is_wrong_and_when_nothing_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    monkeypatch.setattr(module, "_CHECK", 0.01)
    engine, stop = InMemoryEngine(), anyio.Event()

    async def is_ready() -> bool:
        return (await ask(caplog))[0] == 200

    async with anyio.create_task_group() as group, probes(engine, stop, options(health_port=0)):
        status, answer = await ask(caplog, "/alive")
        assert (status, answer["alive"], answer["ready"]) == (200, True, False)
        assert (await ask(caplog))[0] == 503
        assert await ask(caplog, "/other") == (404, None)
        group.start_soon(Worker(engine).run, stop)
        await until(is_ready)
        assert (await ask(caplog))[1] == {"alive": True, "ready": True, "problems": []}
        stop.set()
        status, answer = await ask(caplog)
        assert (status, answer["alive"]) == (503, True)
        assert answer["problems"][-1] == "The worker is being stopped"
    with pytest.raises(ConnectionRefusedError):
        await ask(caplog)


async def test_server_answers_while_the_event_loop_is_blocked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    monkeypatch.setattr(module, "_TURN", 0.05)
    monkeypatch.setattr(module, "_STALLED", 0.5)
    answers: list[tuple[int, Any]] = []
    async with anyio.create_task_group() as group, probes(ListEngine(), anyio.Event(), options(health_port=0)):
        [port] = re.findall(r"http://127\.0\.0\.1:(\d+)/alive", caplog.text)

        def watch() -> None:
            while not answers or answers[-1][0] == 200:
                answers.append(ask_port(int(port), "/alive"))

        group.start_soon(anyio.to_thread.run_sync, watch)
        await anyio.wait_all_tasks_blocked()
        while not answers or answers[-1][0] == 200:
            time.sleep(0.01)  # noqa: ASYNC251  what the test is about
    status, answer = answers[-1]
    assert (status, answer["alive"], answer["ready"]) == (503, False, False)
    assert answer["problems"][-1].startswith("The event loop has been blocked for")


async def test_port_that_is_taken_and_one_that_there_is_not() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port in (taken.getsockname()[1], 70000):
            with pytest.raises(InvalidConfigError, match=rf"--health-port {port} cannot be opened at 127\.0\.0\.1: "):
                async with probes(ListEngine(), anyio.Event(), options(health_port=port)):
                    pass


@pytest.mark.parametrize("seconds", [0.0, float("nan")])
async def test_age_of_a_beat_is_a_length_of_time(seconds: float) -> None:
    with pytest.raises(InvalidConfigError, match="health_beat"):
        async with probes(ListEngine(), anyio.Event(), options(health_beat=seconds)):
            pass


# ---- the file ----


async def test_file_is_written_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHECK", 0.01)
    path = tmp_path / "health"

    async def is_ready() -> bool:
        return bool(json.loads(path.read_text())["ready"])

    async with probes(ListEngine(), anyio.Event(), options(health_file=str(path))):
        await until(is_ready)
        assert json.loads(path.read_text()) == {"alive": True, "ready": True, "problems": []}
    assert not path.exists()


async def test_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"--health-file .*/none/health cannot be written: No such file"):
        async with probes(ListEngine(), anyio.Event(), options(health_file=str(tmp_path / "none" / "health"))):
            pass


# ---- with the engine on PostgreSQL, and the command ----


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_beat_is_known_while_a_worker_runs(postgres: str, queue: str, anyio_backend: str) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, heartbeat=0.1)
    async with engine:
        assert engine.last_beat() is None
        async with working(engine):

            async def has_beat() -> bool:
                return engine.last_beat() is not None

            await until(has_beat)
            beat = engine.last_beat()
            assert beat is not None
            assert 0 <= beat < 5
        assert engine.last_beat() is None


PORT = re.compile(r"answers probes at http://127\.0\.0\.1:(\d+)/alive and /ready")

SHOP = """
from tasks_core.engines import EngineUnavailableError
from tasks_testing import InMemoryEngine

class Gone(InMemoryEngine):
    async def __aenter__(self):
        raise EngineUnavailableError("not there")

    async def pauses(self):
        raise EngineUnavailableError("not there")

engine, gone = InMemoryEngine(), Gone()
"""


@pytest.mark.parametrize("target, ready, problems", [("engine", True, []), ("gone", False, ["not there"])])
def test_command_answers_probes(tmp_path: Path, target: str, ready: bool, problems: list[str]) -> None:
    """Also while it waits for an engine that is away."""
    (tmp_path / "shop.py").write_text(SHOP)
    with subprocess.Popen(
        [sys.executable, "-m", "tasks_core", "worker", f"shop:{target}", "--health-port=0", "--health-file=health"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            port = next(int(match[1]) for line in process.stderr if (match := PORT.search(line)))
            status, answer = ask_port(port, "/ready")
            while answer["problems"] != problems and process.poll() is None:
                status, answer = ask_port(port, "/ready")
            assert (status, answer["ready"], answer["problems"]) == (200 if ready else 503, ready, problems)
            assert (tmp_path / "health").exists()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    assert not (tmp_path / "health").exists()


def test_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "probed_shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert main(["worker", "probed_shop:engine", "--health-file=none/health"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == "InvalidConfigError: --health-file none/health cannot be written: No such file or directory"

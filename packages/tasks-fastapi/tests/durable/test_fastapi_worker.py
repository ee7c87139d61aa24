"""`python -m tasks_fastapi worker`: the durable tasks of an application, in its lifespan and with its dependencies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import core_engine
import pytest
from tasks_fastapi._worker import main

MODULE = """
from contextlib import asynccontextmanager
from typing import Annotated

from core_engine import ListEngine
from fastapi import Depends, FastAPI, Request
from tasks_core import durable, Provided
from tasks_core.engines import DurableCall, EngineUnavailableError
from tasks_fastapi import add_tasks, current_tasks


class Away(ListEngine):
    tries = 0

    async def __aenter__(self):
        self.tries += 1
        if self.tries == 1:
            raise EngineUnavailableError("not there yet")
        return self

class Broken(ListEngine):
    async def work(self, run, /, *, concurrency, stopping):
        raise ConnectionError("the worker is broken")

@asynccontextmanager
async def lifespan(app):
    print("open", flush=True)
    app.state.greeting = "hello"
    yield
    print("closed", flush=True)

async def session():
    print("session open", flush=True)
    yield app.state.greeting
    print("session closed", flush=True)

async def follow(name):
    print("goodbye", name, flush=True)

@durable(name="greet in an application")
async def greet(name: str, greeting: Annotated[str, Depends(session)] = Provided) -> None:
    print(greeting, name, flush=True)
    await current_tasks().after_response.schedule(follow, name)

def make(engine, **options):
    engine.calls.append(DurableCall("greet in an application", {"name": "ann"}, "k"))
    app = FastAPI(lifespan=lifespan)
    add_tasks(app, engine=engine, **options)
    return app

app = make(ListEngine(), grace_period=5.0, shield_timeout=5.0)
away, broken = make(Away()), make(Broken())
without = FastAPI()
add_tasks(without)
nothing = object()

@asynccontextmanager
async def fails(app):
    raise ValueError("no such resource")
    yield

failing = FastAPI(lifespan=fails)
add_tasks(failing, engine=ListEngine())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "durable_app.py").write_text(MODULE)
    (tmp_path / "core_engine.py").write_text(Path(core_engine.__file__).read_text())
    return tmp_path


@contextmanager
def command(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tasks_fastapi", "worker", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


LINES = ["open", "session open", "hello ann", "goodbye ann", "session closed"]


@pytest.mark.parametrize(
    "signal_number, option, shown",
    [
        (signal.SIGTERM, "--concurrency=2", "2 at once"),
        (signal.SIGINT, "--queue=default=2", "default=2 at once"),
    ],
)
def test_runs_tasks_in_the_lifespan_until_a_signal(
    folder: Path, signal_number: signal.Signals, option: str, shown: str
) -> None:
    with command(folder, "durable_app:app", option) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in LINES] == LINES
        process.send_signal(signal_number)
        rest, logged = process.communicate(timeout=30)
    assert process.returncode == 0, logged
    assert rest == "closed\n"
    assert f"Worker takes tasks from list: 1 functions, {shown}" in logged
    assert "Stopping: no more tasks are taken" in logged
    reports = [
        line.partition("tasks_core: ")[2].partition(" in ")[0] for line in logged.splitlines() if "drained" in line
    ]
    assert reports == ["Worker of list: Tasks drained", "Tasks drained"]


def test_waits_for_an_engine_that_is_away(folder: Path) -> None:
    with command(folder, "durable_app:away") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        process.terminate()
        _, logged = process.communicate(timeout=30)
    assert process.returncode == 0, logged
    assert "The worker waits for its engine: not there yet" in logged


def test_ends_when_the_worker_fails(folder: Path) -> None:
    with command(folder, "durable_app:broken") as process:
        _, logged = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the worker is broken" in logged


@pytest.mark.parametrize(
    "target, message",
    [
        ("durable_app:nothing", "TargetError: 'durable_app:nothing' is a object, not an application of FastAPI"),
        ("durable_app:missing", "TargetError: the module 'durable_app' has no 'missing'"),
        (
            "durable_app:without",
            "TargetError: 'durable_app:without' has no engine for durable tasks. Write: add_tasks(app, engine=...)",
        ),
    ],
)
def test_what_it_cannot_run(folder: Path, target: str, message: str) -> None:
    with command(folder, target) as process:
        _, logged = process.communicate(timeout=60)
    assert process.returncode == 2
    assert logged.splitlines() == [message]


def test_a_lifespan_that_fails(folder: Path) -> None:
    with command(folder, "durable_app:failing") as process:
        _, logged = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no such resource" in logged


# ---- commands for operators ----


def test_operator_asks_the_engine_of_an_application(folder: Path) -> None:
    """Without its lifespan: an operator may look at the tasks of an application that does not start."""
    (folder / "operated.py").write_text(OPERATED)
    done = subprocess.run(
        [sys.executable, "-m", "tasks_fastapi", "status", "operated:app", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [numbers] = json.loads(done.stdout)
    assert numbers["waiting"] == 0


@pytest.mark.parametrize(
    "target, message",
    [
        ("durable_app:without", "TargetError: 'durable_app:without' has no engine for durable tasks."),
        ("durable_app:app", "TargetError: ListEngine has not the methods for operators (OperableEngine)"),
    ],
)
def test_operator_who_asks_for_what_is_not_there_gets_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert main(["status", target]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


OPERATED = """
from contextlib import asynccontextmanager

from fastapi import FastAPI
from tasks_fastapi import add_tasks
from tasks_testing import InMemoryEngine

@asynccontextmanager
async def lifespan(app):
    raise ValueError("no such resource")
    yield

app = FastAPI(lifespan=lifespan)
add_tasks(app, engine=InMemoryEngine())
"""

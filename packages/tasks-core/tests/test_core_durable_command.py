"""`python -m tasks_core worker`: where the engine is found, what is said when it is not, and how signals stop it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
from contextlib import asynccontextmanager

from core_engine import ListEngine
from tasks_core import EngineSchemaError, EngineUnavailableError, TaskCall, durable

class Away(ListEngine):
    tries = 0

    async def __aenter__(self):
        self.tries += 1
        if self.tries == 1:
            raise EngineUnavailableError("not there yet")
        print("entered", flush=True)
        return self

class Gone(ListEngine):
    async def __aenter__(self):
        raise EngineUnavailableError("not there at all")

class Old(ListEngine):
    async def __aenter__(self):
        raise EngineSchemaError("tables of an older release")

@durable(name="greet")
async def greet(name: str) -> None:
    print("hello", name, flush=True)

@asynccontextmanager
async def lifespan():
    print("open", flush=True)
    yield
    print("closed", flush=True)

engine, away, gone, old, nothing = ListEngine(), Away(), Gone(), Old(), object()
for each in (engine, away):
    each.calls.append(TaskCall("greet", {"name": "ann"}, "k"))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(MODULE)
    (tmp_path / "core_engine.py").write_text((Path(__file__).parent / "core_engine.py").read_text())
    return tmp_path


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tasks_core", "worker", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_runs_tasks_until_a_signal(folder: Path, signal_number: signal.Signals) -> None:
    with command(folder, "shop:engine", "--concurrency=2") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hello ann\n"
        process.send_signal(signal_number)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert "Worker takes tasks from list: 1 functions, 2 at once" in told
    assert "Stopping: no more tasks are taken" in told


def test_waits_for_an_engine_that_is_away(folder: Path) -> None:
    with command(folder, "shop:away") as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["entered\n", "hello ann\n"]
        process.terminate()
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert "The worker waits for its engine: not there yet" in told


def test_stops_while_it_waits(folder: Path) -> None:
    with command(folder, "shop:gone") as process:
        assert process.stderr is not None
        assert "not there at all" in process.stderr.readline()
        process.terminate()
        assert process.wait(timeout=30) == 0
        process.stderr.close()


@pytest.mark.parametrize(
    "target, text",
    [
        ("shop", "names a module only. Write module:name"),
        ("shop:missing", "the module 'shop' has no 'missing'"),
        ("shop:nothing", "is a object, not an engine"),
        ("shop:old", "EngineSchemaError: tables of an older release"),
    ],
)
def test_says_why_it_cannot_start(folder: Path, target: str, text: str) -> None:
    with command(folder, target) as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert text in told.splitlines()[-1]
    assert "Traceback" not in told


def test_wrong_option_is_said_in_one_line(folder: Path) -> None:
    with command(folder, "shop:engine", "--concurrency=0") as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert told.startswith("InvalidConfigError: concurrency=0")


def test_lifespan_is_around_all_tasks(folder: Path) -> None:
    with command(folder, "shop:engine", "--lifespan=shop:lifespan") as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["open\n", "hello ann\n"]
        process.terminate()
        printed, _ = process.communicate(timeout=30)
    assert printed == "closed\n"


def test_imports_more_modules(folder: Path) -> None:
    (folder / "more.py").write_text("print('imported', flush=True)")
    with command(folder, "shop:engine", "--import", "more") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "imported\n"
        process.terminate()
        process.communicate(timeout=30)

"""`python -m tasks_core worker`: where the engine is found, what is said when it is not, and how signals stop it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tasks_core._durable.command import main

MODULE = """
import signal
from contextlib import asynccontextmanager

import anyio
from core_engine import ListEngine
from tasks_core import durable
from tasks_core.engines import EngineSchemaError, EngineUnavailableError, DurableCall

class Away(ListEngine):
    tries = 0

    async def __aenter__(self):
        self.tries += 1
        if self.tries == 1:
            raise EngineUnavailableError("not there yet")
        if self.tries == 2:
            print("entered", flush=True)
        return self

class Gone(ListEngine):
    async def __aenter__(self):
        print("not there", flush=True)
        raise EngineUnavailableError("not there at all")

class Old(ListEngine):
    async def __aenter__(self):
        raise EngineSchemaError("tables of an older release")

@durable(name="greet")
async def greet(name: str) -> None:
    print("hello", name, flush=True)

@durable(name="greet and stop")
async def greet_and_stop(name: str, signals: int) -> None:
    print("hello", name, flush=True)
    for _ in range(signals):
        signal.raise_signal(signal.SIGTERM)
    if signals > 1:
        await anyio.sleep_forever()

@asynccontextmanager
async def lifespan():
    print("open", flush=True)
    yield
    print("closed", flush=True)

@asynccontextmanager
async def broken():
    raise ValueError("no such resource")
    yield

def with_call(engine, function, /, **arguments):
    engine.calls.append(DurableCall(function, arguments, "k"))
    return engine

engine, away = (with_call(engine, "greet", name="ann") for engine in (ListEngine(), Away()))
stopping = with_call(ListEngine(), "greet and stop", name="bob", signals=1)
impatient = with_call(ListEngine(), "greet and stop", name="eve", signals=2)
gone, old, nothing = Gone(), Old(), object()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "durable_shop.py").write_text(MODULE)
    (tmp_path / "core_engine.py").write_text((Path(__file__).parent / "core_engine.py").read_text())
    return tmp_path


# ---- in a process of its own ----


@contextmanager
def command(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tasks_core", "worker", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_runs_tasks_until_a_signal(folder: Path, signal_number: signal.Signals) -> None:
    with command(folder, "durable_shop:engine", "--concurrency=2") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hello ann\n"
        process.send_signal(signal_number)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert "Worker takes tasks from list: 2 functions, 2 at once" in told
    assert "Stopping: no more tasks are taken" in told


def test_serves_the_queues_that_are_named(folder: Path) -> None:
    with command(folder, "durable_shop:engine", "--queue=payments=4", "--queue=default=2") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hello ann\n"
        process.terminate()
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert "Worker takes tasks from list: 2 functions, payments=4, default=2 at once" in told


def test_waits_for_an_engine_that_is_away(folder: Path) -> None:
    with command(folder, "durable_shop:away") as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["entered\n", "hello ann\n"]
        process.terminate()
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert "The worker waits for its engine: not there yet" in told


def test_stops_while_it_waits(folder: Path) -> None:
    with command(folder, "durable_shop:gone") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "not there\n"
        process.terminate()
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert "not there at all" in told


def test_says_why_it_cannot_start(folder: Path) -> None:
    with command(folder, "durable_shop:missing") as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert told.splitlines() == ["TargetError: the module 'durable_shop' has no 'missing'"]


# ---- in this process ----


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield folder
    for module in ("durable_shop", "more"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("text", ["payments", "payments=", "=4", "payments=x", "payments=-1"])
def test_a_queue_without_a_number_is_refused(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["worker", "durable_shop:engine", "--queue", text])
    assert stopped.value.code == 2
    assert f"{text!r} is not NAME=N, as in --queue payments=4" in capsys.readouterr().err


def test_stops_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "durable_shop:stopping"]) == 0
    assert capsys.readouterr().out == "hello bob\n"


def test_second_signal_ends_the_grace_period(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "durable_shop:impatient", "--grace-period=600"]) == 0
    assert capsys.readouterr().out == "hello eve\n"
    engine = sys.modules["durable_shop"].impatient
    assert "again greet and stop in 0" in engine.log


def test_lifespan_is_around_all_tasks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "durable_shop:stopping", "--lifespan=durable_shop:lifespan"]) == 0
    assert capsys.readouterr().out.splitlines() == ["open", "hello bob", "closed"]


def test_imports_more_modules(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "more.py").write_text("print('imported')")
    assert main(["worker", "durable_shop:stopping", "--import", "more"]) == 0
    assert capsys.readouterr().out.splitlines() == ["imported", "hello bob"]


def test_error_that_is_not_its_own_is_not_hidden(here: Path) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="no such resource"), flatten_subgroups=True):
        main(["worker", "durable_shop:engine", "--lifespan=durable_shop:broken"])


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["durable_shop"], "TargetError: 'durable_shop' names a module only. Write module:name"),
        (["durable_shop:nothing"], "TargetError: 'durable_shop:nothing' is a object, not an engine"),
        (["durable_shop:old"], "EngineSchemaError: tables of an older release"),
        (["durable_shop:engine", "--concurrency=0"], "InvalidConfigError: concurrency=0"),
        (["durable_shop:engine", "--queue=a=0"], "InvalidConfigError: queues={'a': 0}: the slots of a queue must be"),
        (["durable_shop:engine", "--queue=a=1", "--queue=a=2"], "InvalidConfigError: --queue was given twice"),
        (["durable_shop:engine", "--queue=a=1", "--concurrency=2"], "InvalidConfigError: concurrency= is for a worker"),
    ],
)
def test_says_what_is_wrong_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert main(["worker", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(text)

"""`python -m tasks_core status` and the other commands for operators."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from core_durable_functions import flaky, forget, note
from core_postgres import ends, postgres, queue, working
from tasks_core import TaskScheduler
from tasks_core._durable import console
from tasks_core._durable.command import main
from tasks_core.engines import (
    AttemptRecord,
    Delivery,
    DurableCall,
    DurableState,
    EngineHealth,
    EngineUnavailableError,
)
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_testing import InMemoryEngine

__all__ = ("forget", "postgres", "queue")

MODULE = """
from core_engine import ListEngine
from test_core_durable_operator_command import Gone, filled

engine, gone, unable = filled(), Gone(), ListEngine()
"""


class Gone(InMemoryEngine):
    """An engine that does not answer."""

    async def statistics(self, *, count_to: int = 0) -> Any:
        raise EngineUnavailableError("gone")

    async def health(self) -> EngineHealth:
        return EngineHealth(reachable=False, problems=("gone",))


def filled() -> InMemoryEngine:
    """Make an engine with three tasks that have failed and one that waits."""
    engine = InMemoryEngine()

    async def fill() -> None:
        stopping = anyio.Event()
        left = 3

        async def run(delivery: Delivery) -> None:
            nonlocal left
            left -= 1
            if not left:
                stopping.set()
            raise KeyError(delivery.call.args["cents"])

        for number in range(3):
            await engine.submit(DurableCall("charge", {"cents": f"secret {number}"}, f"charge-{number}"))
        await engine.work(run, concurrency=1, stopping=stopping)
        await engine.submit(DurableCall("mail\x1b[31m", {}, "mail-1", headers={"traceparent": "00-1"}))

    anyio.run(fill)
    return engine


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryEngine]:
    """The engine that the command names `operated:engine`."""
    (tmp_path / "operated.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    sys.path.insert(0, str(tmp_path))
    yield importlib.import_module("operated").engine
    sys.modules.pop("operated")


@pytest.fixture
def out(engine: InMemoryEngine, capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    return capsys


def states(engine: InMemoryEngine) -> list[str]:
    async def look() -> list[str]:
        return [(await engine.status(str(number))).state.value for number in range(len(engine.calls))]

    return anyio.run(look)


# ---- looking ----


def test_status_prints_a_table(out: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "operated:engine"]) == 0
    head, *lines = out.readouterr().out.splitlines()
    [line] = [line for line in lines if line.startswith("default ")]
    assert head.split() == [
        "QUEUE",
        "WAITING",
        "OLDEST",
        "RUNNING",
        "DELAYED",
        "FAILED",
        "ENDED/S",
        "WORKERS",
        "PAUSED",
    ]
    cells = line.split()
    assert cells[:2] == ["default", "1"]
    assert cells[3:] == ["s", "0", "0", "3", "0.05", "0", "-"]


def test_status_prints_json(out: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "operated:engine", "--json"]) == 0
    [queue] = [one for one in json.loads(out.readouterr().out) if one["queue"] == "default"]
    assert (queue["queue"], queue["waiting"], queue["failed"], queue["paused"]) == ("default", 1, 3, False)


def test_list_prints_tasks_without_arguments(out: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "operated:engine"]) == 0
    text = out.readouterr().out
    assert [line.split()[:2] for line in text.splitlines()[1:]] == [
        ["3", "pending"],
        ["2", "failed"],
        ["1", "failed"],
        ["0", "failed"],
    ]
    assert "KeyError" in text
    assert "secret" not in text
    assert "\x1b" not in text
    assert r"mail\x1b[31m" in text


def test_list_filters_and_goes_on(out: pytest.CaptureFixture[str]) -> None:
    arguments = ["list", "operated:engine", "--state=failed", "--name=charge", "--error=keyerror", "--queue=default"]
    assert main([*arguments, "--older-than=0s", "--limit=2"]) == 0
    *_, last = out.readouterr().out.splitlines()
    assert last == "There are more: --after 1"
    assert main([*arguments, "--limit=2", "--after=1", "--json"]) == 0
    answer = json.loads(out.readouterr().out)
    assert [task["id"] for task in answer["tasks"]] == ["0"]
    assert answer["after"] is None
    assert answer["tasks"][0]["submitted_at"].endswith("+00:00")


def test_list_that_finds_nothing_says_so_by_its_status(out: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "operated:engine", "--name=nothing", "--older-than=1.5d"]) == 1
    assert out.readouterr().out == "No such task\n"


def test_list_reads_short_pages_until_it_has_enough(
    engine: InMemoryEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that reads a bounded number of rows may find few in one of them."""
    find = engine.find
    monkeypatch.setattr(engine, "find", lambda *, limit, **which: find(limit=min(limit, 2), **which))
    assert main(["list", "operated:engine", "--limit=3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 + 1


def test_show_prints_all_but_the_arguments(out: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "operated:engine", "1"]) == 0
    text = out.readouterr().out
    first, *lines = text.splitlines()
    assert first == "Task 1, charge: failed"
    assert lines[:3] == ["  key       charge-1", "  queue     default", "  attempts  1"]
    assert [line.split()[-1] for line in lines[3:6]] == ["pending", "running", "failed"]
    assert lines[6].startswith("  attempt 1, ")
    assert lines[6].endswith("UTC: KeyError")
    assert "secret" not in text
    assert main(["show", "operated:engine", "1", "--arguments"]) == 0
    assert '  arguments {"cents": "secret 1"}' in out.readouterr().out
    assert main(["show", "operated:engine", "3"]) == 0
    assert '  headers   {"traceparent": "00-1"}' in out.readouterr().out


def test_show_prints_json(out: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "operated:engine", "1", "--json"]) == 0
    shown = json.loads(out.readouterr().out)
    assert (shown["task"]["id"], shown["arguments"]) == ("1", None)
    assert shown["errors"][0]["error"] == "KeyError"


def test_show_of_no_task(out: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "operated:engine", "99"]) == 1
    assert out.readouterr().out == "No such task\n"
    assert main(["show", "operated:engine", "99", "--json"]) == 1
    assert out.readouterr().out == "null\n"


def test_health_says_what_is_wrong(engine: InMemoryEngine, out: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "operated:engine"]) == 1
    assert out.readouterr().out == "Queue 'default' has tasks to run, and no worker is alive\n"
    assert main(["cancel", "operated:engine", "3"]) == 0
    out.readouterr()
    assert main(["health", "operated:engine"]) == 0
    assert out.readouterr().out == "healthy\n"
    anyio.run(partial(engine.pause, queue="default"))
    anyio.run(partial(engine.pause, queue="default", name="charge"))
    assert main(["health", "operated:engine"]) == 1
    assert out.readouterr().out == "Queue 'default' is paused\nQueue 'default': 'charge' is paused\n"
    assert main(["health", "operated:gone", "--json"]) == 3
    assert json.loads(out.readouterr().out) == {"healthy": False, "reachable": False, "problems": ["gone"]}


# ---- acting ----


def test_retry_of_ids(engine: InMemoryEngine, out: pytest.CaptureFixture[str]) -> None:
    assert main(["retry", "operated:engine", "0", "2", "99", "--dry-run"]) == 0
    assert out.readouterr().out == "2 tasks would be back in the queue\n"
    assert states(engine) == ["failed", "failed", "failed", "pending"]
    assert main(["retry", "operated:engine", "0", "2", "99"]) == 0
    assert out.readouterr().out == "2 tasks are back in the queue\n"
    assert states(engine) == ["pending", "failed", "pending", "pending"]
    assert main(["retry", "operated:engine", "99"]) == 1


def test_verb_counts_first_and_asks(
    engine: InMemoryEngine, out: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["discard", "operated:engine", "--name=charge"]) == 4
    assert out.readouterr().err.splitlines()[-1] == (
        "Discard 3 tasks? Nothing was done: there is no terminal to ask at. Add --yes"
    )
    for answer, status in (("n\n", 4), ("", 4), ("Yes\n", 0)):
        stdin = io.StringIO(answer)
        monkeypatch.setattr(stdin, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["discard", "operated:engine", "--name=charge"]) == status
        assert out.readouterr().err.splitlines()[-1].startswith("Discard 3 tasks? [y/N]")
    assert states(engine) == ["unknown", "unknown", "unknown", "pending"]


def test_verb_on_all(engine: InMemoryEngine, out: pytest.CaptureFixture[str]) -> None:
    assert main(["cancel", "operated:engine", "--all", "--dry-run", "--json"]) == 0
    assert json.loads(out.readouterr().out) == {"verb": "cancel", "dry_run": True, "count": 1}
    assert main(["cancel", "operated:engine", "--all", "--yes"]) == 0
    assert out.readouterr().out == "1 tasks are cancelled\n"
    assert states(engine)[3] == "cancelled"
    assert main(["cancel", "operated:engine", "--all", "--yes"]) == 1
    assert main(["retry", "operated:engine", "--state=failed", "--yes"]) == 0


def test_verb_says_how_far_it_is_at_a_terminal(
    out: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert main(["retry", "operated:engine", "--all", "--yes"]) == 0
    assert stderr.getvalue().endswith("\rcounting 3\n\rback in the queue 3\n")


@pytest.mark.parametrize(
    "arguments",
    [["retry"], ["cancel", "1", "--all"], ["discard", "--name=charge", "--all"], ["retry", "1", "--queue=x"]],
)
def test_verb_needs_one_of_ids_filter_and_all(out: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    verb, *rest = arguments
    assert main([verb, "operated:engine", *rest]) == 2
    assert out.readouterr().err.splitlines()[-1] == (
        f"{verb} takes IDs, or a filter such as --name, or --all: one of them"
    )


def test_pause_and_resume(engine: InMemoryEngine, out: pytest.CaptureFixture[str]) -> None:
    assert main(["pause", "operated:engine", "--queue=default", "--name=charge"]) == 0
    assert out.readouterr().out.startswith("paused: queue default, charge, 20")
    assert main(["pause", "operated:engine", "--queue=default"]) == 0
    assert "all functions" in out.readouterr().out
    assert main(["status", "operated:engine"]) == 0
    assert " all" in out.readouterr().out
    assert main(["resume", "operated:engine", "--queue=default"]) == 0
    assert main(["status", "operated:engine"]) == 0
    assert " charge" in out.readouterr().out
    assert main(["resume", "operated:engine", "--queue=default", "--name=charge", "--json"]) == 0
    assert json.loads(out.readouterr().out) == []
    assert main(["resume", "operated:engine", "--queue=default", "--name=charge"]) == 0
    assert out.readouterr().out == "Nothing is paused\n"


def test_purge(engine: InMemoryEngine, out: pytest.CaptureFixture[str]) -> None:
    assert main(["purge", "operated:engine", "--older-than=2h", "--state=failed"]) == 4
    assert "Delete failed tasks that ended 2 h ago? Nothing was done" in out.readouterr().err
    assert main(["purge", "operated:engine"]) == 4
    assert "Delete all tasks that ended longer ago than they are kept?" in out.readouterr().err
    assert main(["purge", "operated:engine", "--older-than=2h", "--yes", "--json"]) == 0
    assert json.loads(out.readouterr().out) == {"count": 0}
    assert main(["purge", "operated:engine", "--older-than=0s", "--queue=default", "--state=failed", "--yes"]) == 0
    assert out.readouterr().out == "3 tasks are deleted\n"
    assert states(engine) == ["unknown", "unknown", "unknown", "pending"]


# ---- what is wrong ----


@pytest.mark.parametrize(
    "arguments, status, text",
    [
        (
            ["status", "operated:unable"],
            2,
            "TargetError: ListEngine has not the methods for operators (OperableEngine)",
        ),
        (["status", "operated"], 2, "TargetError: 'operated' names a module only."),
        (["status", "operated:gone"], 3, "EngineUnavailableError: gone"),
        (["pause", "operated:engine"], 2, "InvalidConfigError: pause() needs a queue or a name"),
        (["retry", "operated:engine", "--state=running"], 2, "InvalidConfigError: retry() was given state='running'"),
    ],
)
def test_says_what_is_wrong_in_one_line(
    out: pytest.CaptureFixture[str], arguments: list[str], status: int, text: str
) -> None:
    assert main(arguments) == status
    [line] = out.readouterr().err.splitlines()
    assert line.startswith(text)


@pytest.mark.parametrize("option", ["--limit=0", "--limit=x", "--older-than=soon", "--state=unknown"])
def test_wrong_option_is_an_error_of_the_command_line(out: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["list", "operated:engine", option])
    assert exit_.value.code == 2


def test_help_has_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["retry", "--help"])
    assert "3 the engine does not answer" in " ".join(capsys.readouterr().out.split())


# ---- texts ----


@pytest.mark.parametrize(
    "seconds, text",
    [
        (None, "-"),
        (0.5, "0.5 s"),
        (119, "119 s"),
        (120, "2 min"),
        (5400, "90 min"),
        (9000, "2.5 h"),
        (200000, "2.31 d"),
    ],
)
def test_durations_have_the_largest_unit_that_fits(seconds: float | None, text: str) -> None:
    assert console.duration(seconds) == text


def test_details_show_what_there_is() -> None:
    async def look() -> str:
        engine = InMemoryEngine()
        await engine.submit(DurableCall("mail", {"to": "ann"}, "k", not_before=4102444800.0))
        shown = await engine.show("0", arguments=True)
        assert shown is not None
        error = AttemptRecord(3, 86390.0, 86400.0, "KeyError\x07", 'File "x", line 1\n  raise KeyError\x1b')
        return console.details(replace(shown, errors=(error,), progress={"percent": 5}, result="é"))

    lines = anyio.run(look).splitlines()
    assert "  due       2100-01-01 00:00:00 UTC" in lines
    assert '  progress  {"percent": 5}' in lines
    assert '  result    "é"' in lines
    assert lines[-3:] == [
        "  attempt 3, 1970-01-02 00:00:00 UTC: KeyError\\x07",
        '    File "x", line 1',
        "      raise KeyError\\x1b",
    ]


def test_long_errors_are_cut_in_tables() -> None:
    async def look() -> str:
        engine = InMemoryEngine()
        await engine.submit(DurableCall("mail", {}, "k"))
        [task] = (await engine.find()).tasks
        return console.tasks_table([replace(task, error="x" * 100, submitted_at=None)])

    assert f"  -  {'x' * 59}…  k" in anyio.run(look)


# ---- with the engine on PostgreSQL, in processes of their own ----


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_operates_on_a_database(postgres: str, queue: str, tmp_path: Path, anyio_backend: str) -> None:
    (tmp_path / "operated.py").write_text(
        "from tasks_core.engines.procrastinate import ProcrastinateEngine\n"
        f"engine = ProcrastinateEngine({postgres!r}, queue={queue!r}, pool_size=2)\n"
    )

    async def command(*arguments: str) -> Any:
        done = await anyio.run_process(
            [sys.executable, "-m", "tasks_core", arguments[0], "operated:engine", *arguments[1:], "--json"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr.decode()

    engine = ProcrastinateEngine(postgres, queue=queue, heartbeat=0.2)
    async with TaskScheduler(engine=engine) as scheduler:
        failed = await scheduler.schedule(flaky, 9, "KeyError")
        async with working(engine):
            await ends(failed, DurableState.FAILED)
        waiting = await scheduler.schedule(note, "waits")
        [numbers], _ = await command("status")
        assert (numbers["queue"], numbers["waiting"], numbers["failed"]) == ("default", 1, 1)
        listed, _ = await command("list", "--state=failed")
        assert [task["id"] for task in listed["tasks"]] == [failed.id]
        _, log = await command("cancel", waiting.id)
        assert f"key {waiting.idempotency_key}, job {waiting.id}, queue default, is cancelled, by an operator" in log
        assert (await waiting.status()).state is DurableState.CANCELLED
        answer, _ = await command("discard", "--all", "--yes")
        assert answer["count"] == 1
        assert (await failed.status()).state is DurableState.UNKNOWN

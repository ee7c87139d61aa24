"""A short run of the chaos command, and proof that it would notice a loss."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from servers.event_log import EventLog
from servers.process import SERVERS

CHAOS = Path(__file__).parents[1] / "benchmarks" / "chaos.py"


def test_nothing_is_lost_in_two_rounds_with_each_server() -> None:
    command = [sys.executable, str(CHAOS), "--rounds", "2"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [line.split() for line in run.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == list(SERVERS)
    for _, rounds, requests, accepted, shielded, alive, _, late, lost, stuck in rows:
        assert rounds == "2"
        assert int(requests) > 0
        assert int(accepted) > int(shielded) > 0
        assert int(alive) > 0  # when the signal came
        assert late == lost == stuck == "0"


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("chaos", CHAOS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "chaos", module)  # where its dataclass looks for itself
    spec.loader.exec_module(module)
    return module


CANCELLED = "log Task '%s' #3 (immediate, 0.1 s old, scheduled at app.py:7) was cancelled: the grace period was over"
RETRIED = "log Task '%s' #3 (immediate, scheduled at app.py:7) failed in attempt 1 (OSError) and runs again in 1 s"


@pytest.mark.parametrize(
    "events, lost, late",
    [
        pytest.param(["accepted job", "done job", "lifespan closed"], set(), set(), id="done"),
        pytest.param(["done job", "accepted job"], set(), set(), id="done before schedule() returned"),
        pytest.param(["accepted job", "lifespan closed"], {"job"}, set(), id="vanished"),
        pytest.param(["accepted job", CANCELLED % "job"], {"job"}, set(), id="shielded and cancelled"),
        pytest.param(["accepted job-plain", CANCELLED % "job-plain"], set(), set(), id="cancelled and named"),
        pytest.param(["accepted job-plain", RETRIED % "job-plain"], {"job-plain"}, set(), id="named, but not as lost"),
        pytest.param(["accepted job", "lifespan closed", "done job"], set(), {"job"}, id="done when it was too late"),
    ],
)
def test_what_counts_as_a_loss(
    chaos: ModuleType, tmp_path: Path, events: list[str], lost: set[str], late: set[str]
) -> None:
    log = EventLog(tmp_path / "events")
    for event in events:
        log.note(event)
    log.close()
    result = chaos.read(log, seed=1)
    assert result.lost == lost
    assert result.late == late

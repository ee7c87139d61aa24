"""The short form of `benchmarks/durable.py`: real processes, a real PostgreSQL, a real `kill -9`."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "durable.py"


@pytest.mark.timeout(300)  # starts up to five processes and a server, and waits for a worker to be missed
@pytest.mark.parametrize("test", ["web", "worker", "postgres", "two", "complete"])
def test_nothing_acknowledged_is_lost(test: str) -> None:
    ended = subprocess.run(
        [sys.executable, BENCHMARK, "--short", test], capture_output=True, text=True, check=False, timeout=280
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr

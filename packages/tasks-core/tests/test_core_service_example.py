"""The example of a service without a web framework, as a process that gets a real signal."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVICE = Path(__file__).parents[3] / "docs" / "examples" / "service" / "service.py"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_reading_that_was_taken_is_written(backend: str, number: signal.Signals, tmp_path: Path) -> None:
    file, log_file = tmp_path / "readings.txt", tmp_path / "log.txt"
    command = [sys.executable, str(SERVICE), str(file), "--backend", backend]
    with (
        log_file.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            taken = [process.stdout.readline() for _ in range(15)]
            process.send_signal(number)
            began = time.monotonic()
            # Not communicate(), which does not see what readline() has read ahead.
            output = process.stdout.read()
            process.wait(timeout=30)
        finally:
            process.kill()
    log = log_file.read_text()
    assert process.returncode == 0, log
    assert time.monotonic() - began < 12
    taken = [line for line in "".join([*taken, output]).splitlines() if line.startswith("took")]
    assert sorted(map(int, file.read_text().split())) == list(range(1, len(taken) + 1))
    assert f"stopping because of {number.name}" in output
    summary = output.splitlines()[-1]
    assert re.fullmatch(r"Tasks drained in \d\.\d\d s: \d+ succeeded, \d+ cancelled", summary), summary
    assert "runs again in 0.1 s" in log, "the tenth write fails, and is tried again"
    assert len(re.findall(r"'count_reading' .* was cancelled: the grace period of the shutdown was over", log)) > 0
